"""Speed and memory of `trimtab mask`, as ratios to named peers measured in the same run.

Masks have the shapes of a Llama of 7 billion parameters and select a tenth at random. All files
are in the page cache. The peers:

- `numpy`: both mask files read once in pieces of 1 MB, and `bitwise_count(a & b)` of them summed
  up, on words of 64 bits: one number, with nothing checked.
- `reading`: the physical limit: the bytes of the base copied out of the page cache, nothing else.
- `hashing`: the base read and hashed by xxh3, as every pass of trimtab reads.
- `compare`: `trimtab.compare` of the same two checkpoints, beside `mask extract`.

Run `make bench-masks`, or `python -m benchmarks.masks --help`. Each round runs every contestant
once, in turn; medians of the rounds and of the ratios within a round are reported.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

import trimtab
from benchmarks.compare import child_peak, make_pair, pair_of_blocks, timed
from benchmarks.provenance import provenance
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.checkpoints.stream import Source, new_buffer
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.masks.algebra import DerivedMask
from trimtab.masks.extract import extract_mask
from trimtab.masks.header import MaskHeader
from trimtab.masks.overlap import overlap
from trimtab.masks.packed import PackedTensor, num_packed_bytes

HIDDEN, INTERMEDIATE, VOCABULARY = 4096, 11008, 32000
DENSITY = 0.1
PIECE = 1 << 20

Contestants = Mapping[str, Callable[[], object]]


def shapes(num_layers: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama of 7 billion parameters with 32 layers, or of one with fewer."""
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(num_layers):
        at = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{norm}.weight"] = (HIDDEN,)
        for kind in "qkvo":
            tensors[f"{at}.self_attn.{kind}_proj.weight"] = (HIDDEN, HIDDEN)
        for kind in ("gate", "up"):
            tensors[f"{at}.mlp.{kind}_proj.weight"] = (INTERMEDIATE, HIDDEN)
        tensors[f"{at}.mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
    return tensors | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def make_mask(path: Path, num_layers: int, seed: int) -> Path:
    """Write a mask whose bits are drawn independently; it repeats 16 MB of them."""
    rng = np.random.default_rng(seed)
    drawn = [np.packbits(rng.random(8 * PIECE, np.float32) < DENSITY) for _ in range(16)]
    block = np.concatenate(drawn)
    of_model = shapes(num_layers)

    def tensor(name: str) -> PackedTensor:
        bits = np.resize(block, num_packed_bytes(prod(of_model[name])))
        return PackedTensor.of(of_model[name], bits)

    DerivedMask(MaskHeader(of_model, {}, {}), tensor).save(path)
    return path


def make_base(path: Path, num_layers: int) -> Path:
    """Write a checkpoint of bf16 weights N(0, 0.02)."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes(num_layers).items():
        size = 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    weights, _ = pair_of_blocks(0.0, seed=0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, weights.nbytes):
            file.write(weights.view(np.uint8)[: end - start].data)
    return path


def numpy_popcount(first: Path, second: Path) -> int:
    """The bare peer: bits that both files have."""
    pieces: NDArray[np.uint64] = np.empty((2, PIECE // 8), np.uint64)
    num = 0
    with first.open("rb", buffering=0) as left, second.open("rb", buffering=0) as right:
        while count := left.readinto(pieces[0].data):
            right.readinto(pieces[1].data)
            words = count // 8
            num += int(np.bitwise_count(pieces[0, :words] & pieces[1, :words]).sum())
    return num


def read_all(path: Path, threads: int) -> None:
    """The limit: read a file in pieces of 1 MB."""
    size = path.stat().st_size

    def read_share(index: int) -> None:
        buffer = np.empty(PIECE, np.uint8)
        with path.open("rb", buffering=0) as file:
            for start in range(index * PIECE, size, threads * PIECE):
                file.seek(start)
                file.readinto(buffer.data)

    in_threads(read_share, list(range(threads)), threads)


def hash_all(path: Path, threads: int) -> None:
    """Read and hash every tensor of a checkpoint."""

    def hash_one(tensor: StoredTensor) -> str:
        return Source(tensor, tensor.dtype, None, new_buffer()).finish()

    with open_checkpoint(path) as checkpoint:
        in_threads(hash_one, list(checkpoint.tensors.values()), threads)


def in_threads(work: Callable[[Any], object], items: list[Any], threads: int) -> None:
    """Do some work for each item."""
    with ThreadPoolExecutor(threads) as executor:
        for task in [executor.submit(work, item) for item in items]:
            task.result()


def measured(
    contestants: Contestants, peers: Sequence[tuple[str, str]], rounds: int
) -> dict[str, Any]:
    """Time all in turn: seconds by name, and ratios of the first to the second of each of `peers`.

    Wall time, and the time of all processors together: on a busy machine threads share one.
    """
    for work in contestants.values():  # compiles, and fills the page cache
        work()
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            start = time.process_time()
            wall[name].append(timed(work))
            cpu[name].append(time.process_time() - start)

    def ratios(seconds: Mapping[str, list[float]]) -> dict[str, float]:
        return {
            f"{name} / {peer}": median(
                a / b for a, b in zip(seconds[name], seconds[peer], strict=True)
            )
            for name, peer in peers
        }

    return {
        "rounds": rounds,
        "seconds": {name: median(values) for name, values in wall.items()},
        "cpu_seconds": {name: median(values) for name, values in cpu.items()},
        "ratios": ratios(wall),
        "cpu_ratios": ratios(cpu),
    }


def overlap_speed(folder: Path, num_layers: int, rounds: int) -> dict[str, Any]:
    """Two masks under the independent and the per-tensor null, and the memory that takes."""
    masks = [make_mask(folder / f"mask-{seed}.safetensors", num_layers, seed) for seed in (0, 1)]
    num_bytes = sum(path.stat().st_size for path in masks)

    def derived(threads: int) -> Callable[[], object]:
        return lambda: overlap(*masks, threads=threads).total().nulls

    contestants = {
        "numpy": lambda: numpy_popcount(*masks),
        "overlap, 2 threads": derived(2),
        "overlap, 1 thread": derived(1),
    }
    peers = [(name, "numpy") for name in list(contestants)[1:]]
    result = measured(contestants, peers, rounds)
    peak = child_peak(["mask", "overlap", *map(str, masks)])
    for path in masks:
        path.unlink()
    return {"num_bytes": num_bytes, **result, "peak_mb": peak}


def magnitude_speed(folder: Path, num_layers: int, rounds: int) -> dict[str, Any]:
    """Two masks and their base, under all three nulls."""
    masks = [make_mask(folder / f"mask-{seed}.safetensors", num_layers, seed) for seed in (0, 1)]
    base = make_base(folder / "base.safetensors", num_layers)

    def derived(threads: int) -> Callable[[], object]:
        return lambda: overlap(*masks, base=base, threads=threads).total().nulls

    contestants = {
        "reading, 2 threads": lambda: read_all(base, 2),
        "hashing, 2 threads": lambda: hash_all(base, 2),
        "overlap, 2 threads": derived(2),
        "hashing, 1 thread": lambda: hash_all(base, 1),
        "overlap, 1 thread": derived(1),
    }
    result = measured(
        contestants,
        [
            ("overlap, 2 threads", "reading, 2 threads"),
            ("overlap, 2 threads", "hashing, 2 threads"),
            ("overlap, 1 thread", "hashing, 1 thread"),
        ],
        rounds,
    )
    peak = child_peak(["mask", "overlap", *map(str, masks), "--base", str(base)])
    num_bytes = base.stat().st_size
    for path in (*masks, base):
        path.unlink()
    return {"num_bytes": num_bytes, **result, "peak_mb": peak}


def extract_speed(folder: Path, num_bytes: int, density: float, rounds: int) -> dict[str, Any]:
    """`mask extract` beside `compare`, on the pair of the benchmark of compare."""
    base, tuned = make_pair(folder, num_bytes, density, num_blocks=8)
    contestants = {
        "compare, 2 threads": lambda: trimtab.compare(base, tuned, threads=2),
        "extract, 2 threads": lambda: extract_mask(base, tuned, threads=2),
        "compare, 1 thread": lambda: trimtab.compare(base, tuned, threads=1),
        "extract, 1 thread": lambda: extract_mask(base, tuned, threads=1),
    }
    result = measured(
        contestants,
        [
            ("extract, 2 threads", "compare, 2 threads"),
            ("extract, 1 thread", "compare, 1 thread"),
        ],
        rounds,
    )
    peak = child_peak(["mask", "extract", str(base), str(tuned), "-o", str(folder / "mask")])
    size = base.stat().st_size
    for path in (base, tuned, folder / "mask"):
        path.unlink()
    return {"num_bytes": size, "density": density, **result, "peak_mb": peak}


def main() -> None:
    """Run everything and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default 7)")
    parser.add_argument("--layers", type=int, default=32, help="of the model of the two masks")
    parser.add_argument("--base-layers", type=int, default=4, help="of the base and its masks")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of each side of an extract")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    report: dict[str, Any] = {"provenance": provenance("numpy", "numba")}
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as name:
        folder = Path(name)
        report["overlap"] = overlap_speed(folder, options.layers, options.rounds)
        report["magnitude"] = magnitude_speed(folder, options.base_layers, options.rounds)
        for density in (0.01, 0.2):
            size = int(options.gigabytes * 1e9)
            report[f"extract, {density:.0%} changed"] = extract_speed(
                folder, size, density, options.rounds
            )
    text = json.dumps(report, indent=2)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
