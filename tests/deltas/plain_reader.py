"""A reader of deltas written from the page "Formats" alone: Python's own integers, nothing of ours.

It is slow, and checks little: the tests show with it that the page says all that a reader needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import xxhash
import zstandard

MANTISSA = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7, "F8_E5M2": 2, "F8_E4M3": 3}
WIDTH = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32} | {
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
}
"""Bits of an element; 8 for all other dtypes."""

CHUNK, SEGMENT, BLOCK = 1 << 22, 4096, 64

Files = Mapping[str, bytes]


def safetensors_parts(content: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Header of a safetensors file, and the bytes of each tensor."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    parts = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            parts[name] = content[start + begin : start + end]
    return header, parts


def inflated(frame: bytes, dictionary: bytes = b"") -> bytes:
    raw = zstandard.DICT_TYPE_RAWCONTENT
    known = zstandard.ZstdCompressionDict(dictionary, dict_type=raw) if dictionary else None
    return zstandard.ZstdDecompressor(dict_data=known).decompress(frame)


def read(delta: bytes, base: Files, mask: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """Every file of the result, given the files of the base, and the bits of the mask by tensor."""
    header, parts = safetensors_parts(delta)
    metadata = header["__metadata__"]
    assert (metadata["format"], metadata["format_version"]) == ("trimtab.delta", "1")
    assert xxhash.xxh3_128_hexdigest(parts["manifest"]) == metadata["manifest_hash"]
    manifest = json.loads(inflated(parts["manifest"]))
    before: dict[str, bytes] = {}
    for name, content in base.items():
        if name.endswith(".safetensors"):
            before |= safetensors_parts(content)[1]
    stored, start = {}, 0
    for entry in manifest["tensors"]:
        stored[entry["name"]] = parts.get("tensors", b"")[start : start + entry["num_stored"]]
        start += entry["num_stored"]
    assert start == len(parts.get("tensors", b""))
    tensors: dict[str, bytes] = {}
    for entry in sorted(manifest["tensors"], key=lambda entry: "copy_of" in entry):
        name = entry["name"]
        if "copy_of" in entry:
            tensors[name] = tensors[entry["copy_of"]]
        else:
            old = before[entry["base"]] if entry["base"] is not None else b""
            bits = (mask or {})[entry["mask"]] if "mask" in entry else None
            tensors[name] = decoded_tensor(entry, stored[name], old, bits)
        assert xxhash.xxh3_128_hexdigest(tensors[name]) == entry["hash"]
    result = {}
    for file in manifest["files"]:
        path = file["path"]
        known = base[file["base"]] if file["base"] is not None else b""
        frame = parts.get(f"file:{path}")
        content = known if frame is None else inflated(frame, known)
        if file["kind"] == "weights":
            described = json.loads(content[8:])
            described.pop("__metadata__", None)
            names = sorted(described, key=lambda name: described[name]["data_offsets"])
            content += b"".join(tensors[name] for name in names)
        assert xxhash.xxh3_128_hexdigest(content) == file["hash"]
        result[path] = content
    return result


def decoded_tensor(entry: Mapping[str, Any], part: bytes, base: bytes, mask: bytes | None) -> bytes:
    """The bytes of a tensor, given those of its part and of its base, and the bits of its mask."""
    width = WIDTH.get(entry["dtype"], 8)
    size, common, shape = width // 8, entry["num_common"], entry["shape"]
    old = base[: common * size]
    frames = []
    for num_bytes in entry["frames"]:
        frames.append(part[:num_bytes])
        part = part[num_bytes:]
    if not frames:
        return old + part
    predictor = read_predictor(frames[0], common // shape[-1], shape[-1]) if frames[0] else None
    result = b""
    for number, frame in enumerate(frames[1:]):
        chunk = old[number * CHUNK * size : (number + 1) * CHUNK * size]
        elements = [
            int.from_bytes(chunk[i : i + size], "little") for i in range(0, len(chunk), size)
        ]
        coded = [*range(len(elements))]
        if mask is not None:
            places = range(number * CHUNK, number * CHUNK + len(elements))
            coded = [i for i, at in enumerate(places) if mask[at // 8] >> at % 8 & 1]
        before = [elements[i] for i in coded]
        match frame[0]:
            case 0:
                after = before
            case 2:
                stored = frame[1:]
                after = [
                    int.from_bytes(stored[i : i + size], "little")
                    for i in range(0, len(stored), size)
                ]
            case 1:
                numbers = Numbers.of(entry["dtype"], width)
                after = decoded_chunk(before, frame[1:], numbers, predictor, number * CHUNK)
        for i, element in zip(coded, after, strict=True):
            elements[i] = element
        result += b"".join(element.to_bytes(size, "little") for element in elements)
    return result + part


class Numbers(NamedTuple):
    """The numbers that belong to a dtype."""

    width: int
    sign: int
    shift: int
    field: int

    @classmethod
    def of(cls, dtype: str, width: int) -> Numbers:
        if dtype not in MANTISSA:
            return cls(width, 0, 0, 0)
        shift = MANTISSA[dtype]
        return cls(width, 1 << (width - 1), shift, (1 << (width - 1 - shift)) - 1)

    @property
    def full(self) -> int:
        return (1 << self.width) - 1

    def exponent(self, element: int) -> int:
        return (element >> self.shift) & self.field

    def place(self, element: int) -> int:
        return element ^ (self.full if element & self.sign else self.sign)

    def at(self, place: int) -> int:
        return place ^ (self.sign if not self.sign or place & self.sign else self.full)


class Slot:
    """A probability of 1, and how many bits it was learned from."""

    def __init__(self) -> None:
        self.p, self.n = 32768, 0


class Row:
    """Counts of symbols, and the intervals that were computed of them."""

    def __init__(self) -> None:
        self.counts, self.starts, self.left, self.gap = [0] * 16, [0] * 17, 0, 0

    def refresh(self) -> None:
        total = sum(self.counts) + 16
        if total > 24000:
            self.counts = [count >> 1 for count in self.counts]
            total = sum(self.counts) + 16
        scale = (65536 - 16) * 65536 // total
        before = 0
        for i in range(16):
            self.starts[i] = (before * scale >> 16) + i
            before += self.counts[i] + 1
        self.starts[16] = 65536
        self.gap = self.left = min(max(2 * self.gap, 1), 256)


class Decoder:
    """The range decoder of one frame."""

    def __init__(self, content: bytes) -> None:
        self.words = [
            int.from_bytes(content[i : i + 4], "little") for i in range(0, len(content), 4)
        ]
        self.span, self.code, self.num_read = (1 << 64) - 1, 0, 0
        self.read_word()
        self.read_word()

    def read_word(self) -> None:
        word = self.words[self.num_read] if self.num_read < len(self.words) else 0
        self.code = self.code << 32 | word
        self.num_read += 1

    def narrow(self, start: int, size: int) -> None:
        self.code, self.span = self.code - start, size
        if self.span < 1 << 32:
            self.read_word()
            self.span <<= 32

    def bit(self, slot: Slot, limit: int) -> int:
        bound = (self.span >> 16) * (slot.p | 1)
        bit = int(self.code < bound)
        self.narrow(*((0, bound) if bit else (bound, self.span - bound)))
        slot.p += (65535 * bit - slot.p) * int(65535 / (slot.n + 1.6)) >> 16
        slot.n = min(slot.n + 1, limit)
        return bit

    def symbol(self, row: Row) -> int:
        if row.left == 0:
            row.refresh()
        row.left -= 1
        share = self.span >> 16
        value = min(self.code // share, 65535)
        symbol = max(i for i in range(16) if row.starts[i] <= value)
        self.narrow(
            share * row.starts[symbol], share * (row.starts[symbol + 1] - row.starts[symbol])
        )
        row.counts[symbol] += 24
        return symbol

    def digits(self, width: int) -> int:
        number = 0
        while width > 0:
            part = min(width, 16)
            width -= part
            share = self.span >> part
            digits = min(self.code // share, (1 << part) - 1)
            self.narrow(share * digits, share)
            number = number << part | digits
        return number

    def ensure_end(self) -> None:
        assert self.num_read == len(self.words) + 1


class Predictor(NamedTuple):
    """Factors of rows and columns, and what makes levels of their products."""

    shift: int
    weights: list[int]
    rows: list[list[int]]
    columns: list[list[int]]

    def prediction(self, element: int) -> int:
        row, column = divmod(element, len(self.columns[0]))
        return sum(
            weight * left[row] * right[column]
            for weight, left, right in zip(self.weights, self.rows, self.columns, strict=True)
        )


def read_predictor(frame: bytes, rows: int, columns: int) -> Predictor:
    rank, shift, weights = frame[0], frame[1], list(frame[2 : 2 + frame[0]])
    decoder = Decoder(frame[2 + rank :])
    factors = []
    for _ in range(rank):
        row = Row()
        factor = []
        for _ in range(rows + columns):
            symbol = decoder.symbol(row)
            factor.append(symbol - 7 if symbol < 15 else decoder.digits(8) - 128)
        factors.append(factor)
    decoder.ensure_end()
    return Predictor(shift, weights, [f[:rows] for f in factors], [f[rows:] for f in factors])


def decoded_chunk(
    base: list[int], content: bytes, numbers: Numbers, predictor: Predictor | None, start: int
) -> list[int]:
    """The elements of a chunk whose first element is number `start` of its tensor."""
    num_exponents = numbers.field + 1
    last_warm = int.from_bytes(content[:2], "little")
    limit = (last_warm << numbers.shift) + (1 << numbers.shift) - 1
    decoder = Decoder(content[2:])
    some_cold, signs = Slot(), [Slot() for _ in range(16)]
    flags = [[Slot() for _ in range(8)] for _ in range(num_exponents)]
    rows = [[Row() for _ in range(13 + numbers.width)] for _ in range(num_exponents)]
    result = list(base)

    def is_cold(element: int) -> bool:
        return bool(numbers.sign) and element & (numbers.full ^ numbers.sign) > limit

    for first in range(0, len(base), SEGMENT):
        segment = range(first, min(first + SEGMENT, len(base)))
        predictions = dict.fromkeys(segment, 0)
        levels = dict.fromkeys(segment, 0)
        if predictor is not None:
            predictions = {i: predictor.prediction(start + i) for i in segment}
            levels = {i: min(abs(p) >> predictor.shift, 15) for i, p in predictions.items()}
        changed = []
        for at in range(first, segment.stop, BLOCK):
            some = decoder.bit(some_cold, 500)
            for i in range(at, min(at + BLOCK, segment.stop)):
                if some or not is_cold(base[i]):
                    slot = flags[numbers.exponent(base[i])][levels[i] >> 1]
                    if decoder.bit(slot, 60):
                        changed.append(i)
        downs = []
        for i in changed:
            is_guessed_down = predictions[i] < 0 if predictor else base[i] & numbers.sign != 0
            downs.append(decoder.bit(signs[levels[i]], 500) ^ is_guessed_down)
        for i, is_down in zip(changed, downs, strict=True):
            own = rows[numbers.exponent(base[i])]
            symbol = decoder.symbol(own[levels[i] >> 1])
            distance = symbol + 1
            if symbol == 15:
                high = decoder.symbol(own[8])
                length = 16 * high + decoder.symbol(own[9 + high])
                top = decoder.symbol(own[13 + length]) & 7
                distance = (8 | top) << (length - 3) | decoder.digits(length - 3)
            place = numbers.place(base[i]) + (-distance if is_down else distance)
            result[i] = numbers.at(place & numbers.full)
    decoder.ensure_end()
    return result
