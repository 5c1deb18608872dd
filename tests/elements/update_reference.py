"""A slow decoder of updates, written from the docs page "Formats" and not from the kernels."""

from __future__ import annotations

from math import prod

CHUNK, SEGMENT = 1 << 22, 4096


class Decoder:
    """An interval of 64 bits; words of 32 bits are read as it becomes small."""

    def __init__(self, content: bytes) -> None:
        self.words = [
            int.from_bytes(content[i : i + 4], "little") for i in range(0, len(content), 4)
        ]
        self.span, self.code, self.num_read = (1 << 64) - 1, 0, 0
        for _ in range(2):
            self.read()

    def read(self) -> None:
        word = self.words[self.num_read] if self.num_read < len(self.words) else 0
        self.code, self.num_read = self.code << 32 | word, self.num_read + 1

    def narrow(self, start: int, span: int) -> None:
        self.code, self.span = self.code - start, span
        if self.span < 1 << 32:
            self.read()
            self.span <<= 32

    def bit(self, slot: list[int], limit: int) -> int:
        """A bit, by a slot of its probability and how many bits it has learned from."""
        probability, num = slot
        bound = (self.span >> 16) * (probability | 1)
        bit = int(self.code < bound)
        if bit:
            self.narrow(0, bound)
        else:
            self.narrow(bound, self.span - bound)
        rate = int(65535 / (num + 1.6))
        slot[:] = [
            probability + ((65535 * bit - probability) * rate >> 16),
            num + (num < limit),
        ]
        return bit

    def symbol(self, row: Row) -> int:
        share = self.span >> 16
        value = min(self.code // share, 65535)
        starts = row.starts()
        symbol = max(s for s in range(16) if starts[s] <= value)
        self.narrow(share * starts[symbol], share * (starts[symbol + 1] - starts[symbol]))
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

    def is_at_end(self) -> bool:
        return self.num_read == len(self.words) + 1


class Row:
    """The counts of 16 symbols, and where their intervals start."""

    def __init__(self) -> None:
        self.counts = [0] * 16
        self.gap = self.left = 0
        self.now: list[int] = []

    def starts(self) -> list[int]:
        if self.left == 0:
            if sum(self.counts) + 16 > 24_000:
                self.counts = [count >> 1 for count in self.counts]
            scale = (65520 << 16) // (sum(self.counts) + 16)
            before = [sum(self.counts[:s]) + s for s in range(16)]
            self.now = [(number * scale >> 16) + s for s, number in enumerate(before)] + [65536]
            self.gap = self.left = min(max(2 * self.gap, 1), 256)
        self.left -= 1
        return self.now


class Predictor:
    """What predicts changes: factors of rows and of columns."""

    def __init__(self, frame: bytes, shape: tuple[int, ...]) -> None:
        rank, self.shift, weights = frame[0], frame[1], frame[2 : 2 + frame[0]]
        decoder = Decoder(frame[2 + rank :])
        self.num_rows, self.num_columns = prod(shape[:-1]), shape[-1]
        self.factors = []
        for weight in weights:
            row, numbers = Row(), []
            for _ in range(self.num_rows + self.num_columns):
                symbol = decoder.symbol(row)
                numbers.append(symbol - 7 if symbol < 15 else decoder.digits(8) - 128)
            self.factors.append((weight, numbers))
        assert decoder.is_at_end()

    def level(self, i: int) -> tuple[int, bool]:
        """How large the prediction of an element is, and whether it is downwards."""
        row, column = divmod(i, self.num_columns)
        number = sum(
            weight * numbers[row] * numbers[self.num_rows + column]
            for weight, numbers in self.factors
        )
        return min(abs(number) >> self.shift, 15), number < 0


def decode(
    base: list[int], shape: tuple[int, ...], frames: list[bytes], width: int, num_mantissa: int
) -> list[int]:
    """Elements of a tensor of floats of `width` bits, from those of its base."""
    predictor = Predictor(frames[0], shape) if frames[0] else None
    result = []
    for number, frame in enumerate(frames[1:]):
        chunk = range(number * CHUNK, min((number + 1) * CHUNK, len(base)))
        if frame[0] == 0:
            result += [base[i] for i in chunk]
        elif frame[0] == 1:
            result += _decode_chunk(base, chunk, frame, width, num_mantissa, predictor)
        else:
            size = width // 8
            parts = (frame[1:][at : at + size] for at in range(0, len(chunk) * size, size))
            result += [int.from_bytes(part, "little") for part in parts]
    return result


def _decode_chunk(
    base: list[int],
    chunk: range,
    frame: bytes,
    width: int,
    num_mantissa: int,
    predictor: Predictor | None,
) -> list[int]:
    full, sign = (1 << width) - 1, 1 << width - 1
    last_warm = int.from_bytes(frame[1:3], "little")
    decoder = Decoder(frame[3:])
    block = [1 << 15, 0]
    flags: dict[tuple[int, int], list[int]] = {}
    signs: dict[int, list[int]] = {}
    rows: dict[tuple[int, str, int], Row] = {}
    result = {i: base[i] for i in chunk}
    exponents = {i: (base[i] & ~sign) >> num_mantissa for i in chunk}
    for first in chunk[::SEGMENT]:
        segment = range(first, min(first + SEGMENT, chunk.stop))
        levels = {
            i: predictor.level(i) if predictor else (0, bool(base[i] & sign)) for i in segment
        }
        changed = []
        for at in segment[::64]:
            some = decoder.bit(block, 500)
            for i in range(at, min(at + 64, segment.stop)):
                if some or exponents[i] <= last_warm:
                    slot = flags.setdefault((exponents[i], levels[i][0] // 2), [1 << 15, 0])
                    if decoder.bit(slot, 60):
                        changed.append(i)
        is_down = {}
        for i in changed:
            size, expected = levels[i]
            is_down[i] = bool(decoder.bit(signs.setdefault(size, [1 << 15, 0]), 500)) != expected
        for i in changed:

            def symbol(kind: str, which: int, exponent: int = exponents[i]) -> int:
                return decoder.symbol(rows.setdefault((exponent, kind, which), Row()))

            distance = symbol("distance", levels[i][0] // 2) + 1
            if distance == 16:
                high = symbol("high", 0)
                length = 16 * high + symbol("low", high)
                top = symbol("top", length)
                distance = (8 + top) << (length - 3) | decoder.digits(length - 3)
            place = base[i] ^ full if base[i] & sign else base[i] | sign
            place = (place - distance if is_down[i] else place + distance) & full
            result[i] = place ^ sign if place & sign else place ^ full
    assert decoder.is_at_end()
    return list(result.values())
