"""Sizes of one tuned checkpoint as a delta, in our format and in those of others, and memory.

    python -m benchmarks.delta_sizes GRPO=demo/base,demo/grpo/model --output result.json

Everything is counted, headers and other files of the folder too, except where a codec has no
container: there, the bytes of its payloads. Formats of others are written by our exporters or by
their own packages (`fireworks-delta-compression`, `zipnn` and `pyxdelta`, if installed); of what
has no package, the codec is written here from its description. The entropies are of the
elements alone: what a code could reach that knows nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

import trimtab
from benchmarks.processes import in_own_process, peak_resident, reset_peak
from benchmarks.provenance import provenance
from trimtab.checkpoints.checkpoint import Checkpoint, open_checkpoint
from trimtab.checkpoints.safetensors import file_start
from trimtab.deltas.exchange.arc import write_arc_v2
from trimtab.deltas.exchange.index_value import write_index_value
from trimtab.deltas.exchange.slime import write_slime
from trimtab.elements.dtypes import Bits, DType, exponent_place

LONGEST = 16
"""Distances up to here have a symbol each; longer ones one for each bit length, and low bits."""

GAP_LIMIT = (1 << 16) - 1
"""Longest gap of NeMo's u16; a larger one takes several."""

MEMORY_TENSORS, MEMORY_ELEMENTS = 4, 1 << 28
"""Of the pair whose memory is measured: 4 tensors of 512 MB."""


class Change(NamedTuple):
    """A tensor of both checkpoints."""

    name: str
    dtype: DType
    base: Bits
    tuned: Bits


def changes(base: Checkpoint, tuned: Checkpoint) -> Iterator[Change]:
    """Every tensor, one at a time, as vectors."""
    for name, tensor in tuned.tensors.items():
        yield Change(
            name, tensor.dtype, base.tensors[name].read().reshape(-1), tensor.read().reshape(-1)
        )


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
    fireworks = importlib.import_module("fireworks_delta_compression")
    torch = importlib.import_module("torch")
    num_bytes = 0
    for name, dtype, before, after in changes(base, tuned):
        if dtype.name != "BF16":
            raise ValueError(f"{name} is {dtype.name}: this benchmark is for BF16")
        shape = tuned.tensors[name].shape
        src, dst = (
            torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).reshape(shape)
            for bits in (before, after)
        )
        coded, _ = fireworks.delta_compress(src=src, dst=dst, compression_format="arc_v3")
        num_bytes += coded.numel() * coded.element_size()
    return num_bytes


def nemo(base: Checkpoint, tuned: Checkpoint, scratch: Path) -> int:
    """NeMo-RL's sparse refit: u16 gaps between changed elements and XOR values, zstd-1."""
    num_bytes = 0
    for _, _, before, after in changes(base, tuned):
        where = np.flatnonzero(before != after)
        gaps = np.diff(where, prepend=-1)
        # A gap that does not fit is written as so many of the largest, each without a value.
        long = int((gaps // GAP_LIMIT).sum())
        packed = np.concatenate([np.full(long, GAP_LIMIT), gaps % GAP_LIMIT]).astype("<u2")
        num_bytes += len(_zstd(packed.tobytes() + (before ^ after)[where].tobytes(), 1))
    return num_bytes


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


Codec = Callable[[Checkpoint, Checkpoint, Path], int]

CODECS: Mapping[str, Codec] = {
    "trimtab delta": ours,
    "Fireworks arc_v3": arc_v3,
    "NeMo-RL: u16 gaps, XOR, zstd-1": nemo,
    "slime: XOR, zstd-1": slime,
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
    for _, dtype, before, after in changes(base, tuned):
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


def measure_pair(
    base_path: str, tuned_path: str, codecs: Mapping[str, Codec], sizes: dict[str, Any]
) -> dict[str, Any]:
    """Sizes of one pair, beside those that were measured before."""
    with ExitStack() as stack:
        base, tuned = (stack.enter_context(open_checkpoint(p)) for p in (base_path, tuned_path))
        num_bytes = sum(tensor.num_bytes for tensor in tuned.tensors.values())
        num_changed = sum(int((c.base != c.tuned).sum()) for c in changes(base, tuned))
        num_elements = sum(tensor.num_elements for tensor in tuned.tensors.values())
        for name, codec in codecs.items():
            try:
                with tempfile.TemporaryDirectory() as scratch:
                    start = perf_counter()
                    size = codec(base, tuned, Path(scratch))
                    seconds = perf_counter() - start
            except ModuleNotFoundError as error:
                print(f"{name}: left out, {error}")
                continue
            sizes[name] = {"num_bytes": size, "seconds": seconds}
            print(f"{name}: {size / num_bytes:.2%}", flush=True)
        return {
            "num_bytes": num_bytes,
            "density": num_changed / num_elements,
            "sizes": {name: sizes[name] for name in CODECS if name in sizes},
            "entropies": entropies(base, tuned),
        }


def write_pair(folder: Path) -> tuple[Path, Path]:
    """A base and a tuned checkpoint of 2 GB each, generated: normal weights, 9 % of them moved."""
    rng = np.random.default_rng(0)
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(MEMORY_TENSORS)]
    start = file_start(dict.fromkeys(names, ("BF16", (1 << 14, 1 << 14))), {"format": "pt"})
    paths = folder / "base", folder / "tuned"
    for path in paths:
        path.mkdir()
        (path / "config.json").write_text("{}")
    piece = 1 << 24
    with (
        (paths[0] / "model.safetensors").open("wb") as base,
        (paths[1] / "model.safetensors").open("wb") as tuned,
    ):
        base.write(start)
        tuned.write(start)
        for _ in range(MEMORY_TENSORS * MEMORY_ELEMENTS // piece):
            floats = 0.02 * rng.standard_normal(piece, np.float32)
            bits = (floats.view(np.uint32) >> 16).astype(np.uint16)
            base.write(bits.tobytes())
            tuned.write((bits ^ (rng.random(piece, np.float32) < 0.09)).tobytes())
    return paths


def _peak_of(step: str, folder: Path, threads: int) -> dict[str, float]:
    """Seconds, and highest resident bytes above those before."""
    base, tuned, delta = folder / "base", folder / "tuned", folder / "x.delta"
    tiny = folder / f"tiny-{step}-{threads}"
    tiny.mkdir()
    for path in (tiny / "base", tiny / "tuned"):  # so that kernels are compiled and loaded
        path.mkdir()
        bits = np.arange(8, dtype=np.uint16) + (path.name == "tuned")
        (path / "model.safetensors").write_bytes(
            file_start({"w": ("BF16", (8,))}, {}) + bits.tobytes()
        )
    trimtab.make_delta(tiny / "base", tiny / "tuned", tiny / "x.delta")
    trimtab.apply_delta(tiny / "base", tiny / "x.delta", tiny / "out")
    reset_peak()
    before, start = peak_resident(), perf_counter()
    if step == "make":
        trimtab.make_delta(base, tuned, delta, threads=threads, force=True)
    else:
        trimtab.apply_delta(base, delta, tiny / "result", threads=threads)
    seconds = perf_counter() - start
    return {"num_bytes": peak_resident() - before, "seconds": seconds}


def measure_memory() -> dict[str, Any]:
    """Memory of making and applying a delta of a pair of 2 GB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pair(folder)
        return {
            "num_bytes": 2 * MEMORY_TENSORS * MEMORY_ELEMENTS,
            "num_bytes_of_a_tensor": 2 * MEMORY_ELEMENTS,
            **{step: in_own_process(_peak_of, step, folder, 2) for step in ("make", "apply")},
        }


def _packages() -> dict[str, str]:
    found = {}
    for package in PACKAGES.values():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Measure pairs and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairs", nargs="*", metavar="NAME=BASE,TUNED")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=[*CODECS, "memory"],
        metavar="NAME",
        help="measure this alone, which replaces its figures in the output file",
    )
    options = parser.parse_args()
    only = options.only or [*CODECS, "memory"]
    report: dict[str, Any] = {"provenance": {}, "pairs": {}}
    if options.output is not None and options.output.exists():
        report = json.loads(options.output.read_text())
    found = {**provenance("numpy", "zstandard"), "packages": _packages()}
    report |= {"provenance": found}
    codecs = {name: CODECS[name] for name in CODECS if name in only}
    for pair in options.pairs:
        name, _, paths = pair.partition("=")
        before = report["pairs"].get(name, {}).get("sizes", {})
        base, tuned = paths.split(",", 1)
        report["pairs"][name] = measure_pair(base, tuned, codecs, before)
        if options.output is not None:
            options.output.write_text(json.dumps(report, indent=1) + "\n")
    if "memory" in only:
        report["memory"] = measure_memory()
        if options.output is not None:
            options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
