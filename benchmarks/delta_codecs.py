"""What `benchmarks.deltas` compares: deltas in our format and in those of others, and entropies.

Everything is counted, headers and other files of the folder too, except where a codec has no
container: there, the bytes of its payloads. Formats of others are written by our exporters or by
their own packages (`fireworks-delta-compression`, `zipnn` and `pyxdelta`, if installed); of what
has no package, the codec is written here from its description. The entropies are of the
elements alone: what a code could reach that knows nothing else.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

import trimtab
from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.deltas.exchange.arc import write_arc_v2
from trimtab.deltas.exchange.index_value import write_index_value
from trimtab.deltas.exchange.slime import write_slime
from trimtab.elements.dtypes import Bits, DType, exponent_place
from trimtab.elements.update_coding import decode_tensor, encode_tensor
from trimtab.elements.update_predictor import MAX_RANK

LONGEST = 16
"""Distances up to here have a symbol each; longer ones one for each bit length, and low bits."""

GAP_LIMIT = (1 << 16) - 1
"""Longest gap of NeMo's u16; a larger one takes several."""


class Change(NamedTuple):
    """A tensor of both checkpoints."""

    name: str
    dtype: DType
    base: Bits
    tuned: Bits


def changes(base: Checkpoint, tuned: Checkpoint) -> Iterator[Change]:
    """Every tensor, one at a time."""
    for name, tensor in tuned.tensors.items():
        yield Change(name, tensor.dtype, base.tensors[name].read(), tensor.read())


class TensorCodec(NamedTuple):
    """A codec without a file of its own: it codes one tensor, given its base, and decodes it."""

    encode: Callable[[Change], Any]
    decode: Callable[[Change, Any], Bits]
    size: Callable[[Any], int] = len


def _encode_ours(change: Change, *, max_rank: int) -> list[bytes]:
    return encode_tensor(*change[2:], change.dtype, max_rank=max_rank)


def _decode_ours(change: Change, coded: list[bytes]) -> Bits:
    return decode_tensor(change.base, coded, change.dtype)


def _encode_xor(change: Change) -> bytes:
    return _zstd((change.base ^ change.tuned).tobytes(), 1)


def _decode_xor(change: Change, coded: bytes) -> Bits:
    return np.frombuffer(_unzstd(coded), change.base.dtype).reshape(change.base.shape) ^ change.base


def _encode_gaps(change: Change) -> bytes:
    """Gaps in u16, a longer one as so many of the largest, each without a value."""
    before, after = (bits.reshape(-1) for bits in change[2:])
    where = np.flatnonzero(before != after)
    gaps = np.diff(where, prepend=-1)
    whole = gaps // GAP_LIMIT
    packed = np.full(gaps.size + int(whole.sum()), GAP_LIMIT, "<u2")
    packed[np.cumsum(whole + 1) - 1] = gaps % GAP_LIMIT
    return _zstd(packed.tobytes() + (before ^ after)[where].tobytes(), 1)


def _decode_gaps(change: Change, coded: bytes) -> Bits:
    data = np.frombuffer(_unzstd(coded), "<u2")
    after = change.base.reshape(-1).copy()
    # As many gaps as there are values, and the longest ones, which have none.
    num_gaps, num_long = (data.size + 1) // 2, -1
    while num_long != (count := int((data[:num_gaps] == GAP_LIMIT).sum())):
        num_long, num_gaps = count, (data.size + count) // 2
    places = np.cumsum(data[:num_gaps], dtype=np.int64) - 1
    after[places[data[:num_gaps] != GAP_LIMIT]] ^= data[num_gaps:]
    return after.reshape(change.base.shape)


def _encode_rows(change: Change) -> bytes:
    """Rows since the last change in u8, columns since it (or from the left) in u16, and values."""
    columns = change.base.shape[-1] if change.base.ndim > 1 else 1
    where = np.flatnonzero(change.base.reshape(-1) != change.tuned.reshape(-1))
    row, column = np.divmod(where, columns)
    rows = np.diff(row, prepend=0)
    gaps = np.where(rows == 0, np.diff(column, prepend=0), column)
    if rows.max(initial=0) > 255 or gaps.max(initial=0) > GAP_LIMIT:
        rows, gaps = rows.astype("<u4"), gaps.astype("<u4")
    else:
        rows, gaps = rows.astype("u1"), gaps.astype("<u2")
    values = change.tuned.reshape(-1)[where]
    return _zstd(rows.tobytes() + gaps.tobytes() + values.tobytes(), 1)


def _encode_arc_v3(change: Change) -> Any:
    fireworks = importlib.import_module("fireworks_delta_compression")
    src, dst = (_torch_bf16(bits) for bits in change[2:])
    return fireworks.delta_compress(src=src, dst=dst, compression_format="arc_v3")


def _decode_arc_v3(change: Change, coded: Any) -> Bits:
    fireworks = importlib.import_module("fireworks_delta_compression")
    torch = importlib.import_module("torch")
    result = fireworks.delta_decompress(
        src=_torch_bf16(change.base),
        compressed_diff=coded[0],
        checksum=coded[1],
        compression_format="arc_v3",
    )
    bits: Bits = result.view(torch.int16).numpy().view(np.uint16)
    return bits


def _torch_bf16(bits: Bits) -> Any:
    torch = importlib.import_module("torch")
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


TENSOR_CODECS: Mapping[str, TensorCodec] = {
    "trimtab delta": TensorCodec(
        partial(_encode_ours, max_rank=MAX_RANK), _decode_ours, lambda frames: sum(map(len, frames))
    ),
    "trimtab delta, --max-rank 0": TensorCodec(
        partial(_encode_ours, max_rank=0), _decode_ours, lambda frames: sum(map(len, frames))
    ),
    "Fireworks arc_v3": TensorCodec(
        _encode_arc_v3, _decode_arc_v3, lambda coded: coded[0].numel() * coded[0].element_size()
    ),
    "NeMo-RL: u16 gaps, XOR, zstd-1": TensorCodec(_encode_gaps, _decode_gaps),
    "XOR, zstd-1": TensorCodec(_encode_xor, _decode_xor),
}
"""Codecs whose speed is measured: bf16 tensors to bytes in memory, and back."""


def ours(base: Checkpoint, tuned: Checkpoint, scratch: Path) -> int:
    path = scratch / "x.delta"
    trimtab.make_delta(base, tuned, path, threads=1)
    return path.stat().st_size


def slime(base: Checkpoint, tuned: Checkpoint, scratch: Path) -> int:
    return write_slime(base, tuned, scratch / "slime").num_bytes


def arc_v2(base: Checkpoint, tuned: Checkpoint, scratch: Path) -> int:
    return write_arc_v2(base, tuned, scratch / "arc_v2").num_bytes


def arc_v3(base: Checkpoint, tuned: Checkpoint, scratch: Path) -> int:
    """The package of Fireworks itself, tensor by tensor, as its `delta_compress_dicts` does."""
    return _sum("Fireworks arc_v3", base, tuned)


def nemo(base: Checkpoint, tuned: Checkpoint, scratch: Path) -> int:
    """NeMo-RL's sparse refit: u16 gaps between changed elements and XOR values, zstd-1."""
    return _sum("NeMo-RL: u16 gaps, XOR, zstd-1", base, tuned)


def grail(base: Checkpoint, tuned: Checkpoint, scratch: Path) -> int:
    """Grail's sparse codec 3.1: rows in u8, columns in u16, absolute values, zstd-1."""
    return sum(len(_encode_rows(change)) for change in changes(base, tuned))


def _sum(name: str, base: Checkpoint, tuned: Checkpoint) -> int:
    codec = TENSOR_CODECS[name]
    return sum(codec.size(codec.encode(change)) for change in changes(base, tuned))


def index_value(base: Checkpoint, tuned: Checkpoint, scratch: Path) -> int:
    return write_index_value(base, tuned, scratch / "index_value.safetensors").num_bytes


def index_value_zstd(base: Checkpoint, tuned: Checkpoint, scratch: Path) -> int:
    index_value(base, tuned, scratch)
    return len(_zstd((scratch / "index_value.safetensors").read_bytes(), 1))


def zipnn(base: Checkpoint, tuned: Checkpoint, scratch: Path) -> int:
    """ZipNN's own package, the tuned weights as one buffer; it does not look at the base."""
    coder = importlib.import_module("zipnn").ZipNN(
        input_format="byte", bytearray_dtype="bfloat16", threads=1
    )
    return len(coder.compress(b"".join(change.tuned.tobytes() for change in changes(base, tuned))))


def xdelta3(base: Checkpoint, tuned: Checkpoint, scratch: Path) -> int:
    """xdelta3 in the package pyxdelta, file by file, with the default settings."""
    coder = importlib.import_module("pyxdelta")
    num_bytes = 0
    for number, (before, after) in enumerate(zip(_paths(base), _paths(tuned), strict=True)):
        patch = scratch / f"{number}.xdelta"
        if not coder.run(str(before), str(after), str(patch)):
            raise RuntimeError(f"xdelta3 failed on {after.name}")
        num_bytes += patch.stat().st_size
    return num_bytes


def zstd(base: Checkpoint, tuned: Checkpoint, scratch: Path, *, level: int) -> int:
    return sum(len(_zstd(data, level)) for data in _files(tuned))


def patch_from(base: Checkpoint, tuned: Checkpoint, scratch: Path) -> int:
    """The program zstd with the file of the base: `zstd -3 --long=30 --patch-from`."""
    if shutil.which("zstd") is None:
        raise ModuleNotFoundError("no program zstd")
    num_bytes = 0
    for number, (before, after) in enumerate(zip(_paths(base), _paths(tuned), strict=True)):
        patch = scratch / f"{number}.zst"
        command = [
            "zstd",
            "-q",
            "-3",
            "--long=30",
            f"--patch-from={before}",
            str(after),
            "-o",
            str(patch),
        ]
        subprocess.run(command, check=True)
        num_bytes += patch.stat().st_size
    return num_bytes


def _paths(checkpoint: Checkpoint) -> list[Path]:
    return sorted({tensor.file.path for tensor in checkpoint.tensors.values()})


def _files(checkpoint: Checkpoint) -> Iterator[bytes]:
    return (path.read_bytes() for path in _paths(checkpoint))


def _zstd(data: bytes, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level).compress(data)


def _unzstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(data)


Codec = Callable[[Checkpoint, Checkpoint, Path], int]

CODECS: Mapping[str, Codec] = {
    "trimtab delta": ours,
    "Fireworks arc_v3": arc_v3,
    "NeMo-RL: u16 gaps, XOR, zstd-1": nemo,
    "slime: XOR, zstd-1": slime,
    "grail: rows and columns, values, zstd-1": grail,
    "Fireworks arc_v2": arc_v2,
    "u32 index and value, zstd-1": index_value_zstd,
    "u32 index and value": index_value,
    "zstd -3 --patch-from base": patch_from,
    "xdelta3": xdelta3,
    "ZipNN, without the base": zipnn,
    "zstd -19, without the base": partial(zstd, level=19),
    "zstd -3, without the base": partial(zstd, level=3),
}

PACKAGES = {
    "Fireworks arc_v3": "fireworks-delta-compression",
    "xdelta3": "pyxdelta",
    "ZipNN, without the base": "zipnn",
}
"""Codec -> package whose own code it is."""


def _entropy(counts: NDArray[np.int64]) -> float:
    """Bits of all symbols of each row of counts, by the shares of that row."""
    counts = counts.reshape(-1, counts.shape[-1])
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.ones(counts.shape), where=counts > 0)
    return float(-(counts * np.log2(shares)).sum())


def entropies(base: Checkpoint, tuned: Checkpoint) -> dict[str, dict[str, float]]:
    """Bytes of positions, distances and signs: flat, and given what a decoder knows.

    Distances are symbols up to `LONGEST` and bit lengths above, whose low bits are not coded.
    """
    positions, distances, signs = [], [], []
    raw_bits = 0
    num_symbols = LONGEST + 64
    for _, dtype, *pair in changes(base, tuned):
        before, after = (bits.reshape(-1) for bits in pair)
        shift, mask = exponent_place(dtype)
        exponent = ((before >> np.asarray(shift, before.dtype)) & mask).astype(np.int64)
        moved = before != after
        steps = _places(after[moved], dtype) - _places(before[moved], dtype)
        sizes = np.abs(steps)
        lengths = np.frexp(sizes.astype(np.float64))[1].astype(np.int64) - 1
        symbols = np.where(sizes <= LONGEST, sizes - 1, LONGEST + lengths)
        raw_bits += int(lengths[sizes > LONGEST].sum())
        rows = mask + 1
        positions.append(_table(exponent, moved.astype(np.int64), rows, 2))
        distances.append(_table(exponent[moved], symbols, rows, num_symbols))
        signs.append(_table(exponent[moved], (steps > 0).astype(np.int64), rows, 2))
    result: dict[str, dict[str, float]] = {}
    for kind, parts in (("positions", positions), ("distances", distances), ("signs", signs)):
        counts = np.stack(parts)
        extra = raw_bits if kind == "distances" else 0
        for given, grouped in {
            "flat": counts.sum(axis=(0, 1)),
            "given exponent": counts.sum(axis=0),
            "given tensor and exponent": counts,
        }.items():
            result.setdefault(given, {})[kind] = (_entropy(grouped) + extra) / 8
    for part in result.values():
        part["sum"] = sum(part.values())
    return result


def _places(bits: Bits, dtype: DType) -> NDArray[np.int64]:
    """Places of elements of up to 32 bits on the line of values."""
    width = 8 * dtype.num_bytes
    places = bits.astype(np.int64)
    magnitude = places & ((1 << (width - 1)) - 1)
    return np.where(places >> (width - 1) == 1, -magnitude - 1, magnitude)


def _table(
    row: NDArray[np.int64], column: NDArray[np.int64], rows: int, columns: int
) -> NDArray[np.int64]:
    counts = np.bincount(row * columns + column, minlength=rows * columns)
    return counts.reshape(rows, columns)
