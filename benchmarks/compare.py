"""Speed and memory of `trimtab compare`, as ratios to named peers measured in the same run.

Peers, on the same files in the page cache:

- `numpy`: `count_nonzero(base != tuned)` over the two files mapped as uint16. It answers one
  question out of all those that trimtab answers, and no program that looks at every byte in NumPy
  does less.
- `published script`: the arithmetic of the script of arXiv 2505.11711 (research notes on
  `check_sparsity.py`): both state dicts in memory, subtract, concatenate, `isclose`. Loading is not
  counted.
- `reading`: the physical limit: the bytes of both files copied out of the page cache, nothing else.

Run `make bench`, or `python -m benchmarks.compare --help`. Each round runs every contestant once,
in turn; medians of the rounds and of the ratios within a round are reported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

import trimtab
from benchmarks.provenance import provenance

HIDDEN, INTERMEDIATE, VOCABULARY = 1024, 2816, 32000
BLOCK = 1 << 23

Bits = NDArray[np.uint16]


def shapes(num_layers: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama with grouped-query attention."""
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(num_layers):
        at = f"model.layers.{layer}"
        tensors[f"{at}.input_layernorm.weight"] = (HIDDEN,)
        tensors[f"{at}.post_attention_layernorm.weight"] = (HIDDEN,)
        for kind, width in (("q", HIDDEN), ("k", HIDDEN // 4), ("v", HIDDEN // 4), ("o", HIDDEN)):
            tensors[f"{at}.self_attn.{kind}_proj.weight"] = (width, HIDDEN)
        tensors[f"{at}.mlp.gate_proj.weight"] = (INTERMEDIATE, HIDDEN)
        tensors[f"{at}.mlp.up_proj.weight"] = (INTERMEDIATE, HIDDEN)
        tensors[f"{at}.mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
    tensors["model.norm.weight"] = (HIDDEN,)
    return tensors


def layers_for(num_bytes: int) -> int:
    """Layers that give a file of at least so many bytes."""
    outside = (VOCABULARY + 1) * HIDDEN
    per_layer = 2 * HIDDEN + 2.5 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE
    return int(-(-(num_bytes / 2 - outside) // per_layer))


def pair_of_blocks(density: float, seed: int) -> tuple[Bits, Bits]:
    """Bf16 weights N(0, 0.02), and the same with a share of them moved by 1 to 3 ulp."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(BLOCK, dtype=np.float32) * np.float32(0.02)
    base = (weights.view(np.uint32) >> 16).astype(np.uint16)
    hit = rng.random(BLOCK, dtype=np.float32) < density
    step = rng.integers(1, 4, BLOCK, dtype=np.uint16)
    tuned = np.where(hit, np.where(rng.random(BLOCK) < 0.5, base + step, base - step), base)
    return base, tuned


def make_pair(folder: Path, num_bytes: int, density: float, num_blocks: int) -> tuple[Path, Path]:
    """Write two checkpoints; the file repeats `num_blocks` different blocks of weights."""
    tensors = shapes(layers_for(num_bytes))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    blocks = [pair_of_blocks(density, seed) for seed in range(num_blocks)]
    paths = []
    for side, name in enumerate(("base", "tuned")):
        path = folder / f"{name}-{density:g}-{num_bytes}.safetensors"
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for start in range(0, end, 2 * BLOCK):
                block = blocks[start // (2 * BLOCK) % num_blocks][side]
                file.write(block.view(np.uint8)[: end - start].data)
        paths.append(path)
    return paths[0], paths[1]


def numpy_count(base: Path, tuned: Path) -> int:
    """The bare peer: how many uint16 differ."""
    left, right = (np.memmap(path, np.uint16, "r") for path in (base, tuned))
    return int(np.count_nonzero(left != right))


def read_all(base: Path, tuned: Path, threads: int) -> None:
    """The limit: read both files in pieces of 1 MB, by as many threads as the contestant has."""
    size = base.stat().st_size

    def read_share(index: int) -> None:
        buffer = np.empty(1 << 20, np.uint8)
        with base.open("rb", buffering=0) as left, tuned.open("rb", buffering=0) as right:
            for start in range(index * len(buffer), size, threads * len(buffer)):
                for file in (left, right):
                    file.seek(start)
                    file.readinto(buffer.data)

    with ThreadPoolExecutor(threads) as executor:
        for task in [executor.submit(read_share, index) for index in range(threads)]:
            task.result()


def published_arithmetic(base: Path, tuned: Path) -> Callable[[], float]:
    """Load both state dicts, and return the part of the published script that is timed."""
    import torch
    from safetensors.torch import load_file

    left, right = load_file(base), load_file(tuned)

    def measure() -> float:
        deltas = [right[name] - left[name] for name in left]
        exact = sum(int((delta == 0).sum()) for delta in deltas)
        flat = torch.cat([delta.flatten() for delta in deltas])
        near = torch.isclose(flat, torch.zeros_like(flat), atol=1e-5).sum()
        return exact + float(near)

    return measure


def timed(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speed(folder: Path, num_bytes: int, density: float, rounds: int) -> dict[str, Any]:
    """Time all contestants on one pair."""
    base, tuned = make_pair(folder, num_bytes, density, num_blocks=8)
    result = trimtab.compare(base, tuned, threads=2)  # compiles, and fills the page cache
    published = published_arithmetic(base, tuned)
    contestants: dict[str, Callable[[], object]] = {
        "numpy": lambda: numpy_count(base, tuned),
        "trimtab, 2 threads": lambda: trimtab.compare(base, tuned, threads=2),
        "trimtab, 1 thread": lambda: trimtab.compare(base, tuned, threads=1),
        "reading, 2 threads": lambda: read_all(base, tuned, 2),
        "reading, 1 thread": lambda: read_all(base, tuned, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            seconds[name].append(timed(work))
    seconds["published script"] = [timed(published) for _ in range(3)]
    for path in (base, tuned):
        path.unlink()

    def ratio(name: str, peer: str) -> float:
        return median(a / b for a, b in zip(seconds[name], seconds[peer], strict=True))

    two = median(seconds["trimtab, 2 threads"])
    return {
        "num_bytes_each": result.base.num_elements * 2,
        "density": result.total.density("bits"),
        "rounds": rounds,
        "seconds": {name: median(values) for name, values in seconds.items()},
        "ratio to numpy, 2 threads": ratio("trimtab, 2 threads", "numpy"),
        "ratio to numpy, 1 thread": ratio("trimtab, 1 thread", "numpy"),
        "ratio to reading, 2 threads": ratio("trimtab, 2 threads", "reading, 2 threads"),
        "two threads over one": ratio("trimtab, 1 thread", "trimtab, 2 threads"),
        "two threads over one, reading": ratio("reading, 1 thread", "reading, 2 threads"),
        "published script over trimtab": median(seconds["published script"]) / two,
        "gigabytes per second, both files": 4e-9 * result.base.num_elements / two,
    }


PEAK = """
import sys
from trimtab.cli import main
try:
    main(sys.argv[1:])
finally:
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            print(line.split()[1], file=sys.stderr)
"""
"""Runs the command and then tells its peak resident memory in KiB, mapped pages included."""


def child_seconds(arguments: list[str]) -> float:
    """Wall time of the whole process of one command."""
    command = [sys.executable, "-m", "trimtab", *arguments]
    return timed(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))


def child_peak(arguments: list[str]) -> float:
    """Peak resident memory of one command, in MB.

    The process is asked itself: what the kernel reports of a child includes its parent's size.
    """
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stderr.split()[-1]) * 1024 / 1e6


def memory(folder: Path, num_bytes: int) -> dict[str, Any]:
    """Peak memory of the command on a pair that is larger than the bound it must keep."""
    base, tuned = make_pair(folder, num_bytes, 0.05, num_blocks=2)
    arguments = ["compare", str(base), str(tuned)]
    result = {
        "num_bytes_each": base.stat().st_size,
        "peak_mb": child_peak(arguments),
        "seconds": child_seconds(arguments),
    }
    for path in (base, tuned):
        path.unlink()
    return result


def start_up(folder: Path, rounds: int) -> dict[str, float]:
    """Wall time of the whole process: help, and a comparison of two tiny checkpoints."""
    base, tuned = make_pair(folder, 1 << 20, 0.1, num_blocks=1)
    small = [folder / f"{path.stem}-small.safetensors" for path in (base, tuned)]
    for path, target in zip((base, tuned), small, strict=True):
        first = 2 * HIDDEN * 64
        header = {"w": {"dtype": "BF16", "shape": [64, HIDDEN], "data_offsets": [0, first]}}
        text = json.dumps(header).encode()
        with path.open("rb") as file:
            file.seek(-first, os.SEEK_END)
            target.write_bytes(len(text).to_bytes(8, "little") + text + file.read())

    def seconds(arguments: list[str]) -> float:
        return median(child_seconds(arguments) for _ in range(rounds))

    return {
        "trimtab --help": seconds(["--help"]),
        "compare of a tiny pair": seconds(["compare", *map(str, small)]),
    }


def main() -> None:
    """Run everything and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default 7)")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of each timed file")
    parser.add_argument("--large", type=float, default=8.0, help="size of each file for memory")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    report: dict[str, Any] = {"provenance": provenance("numpy")}
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as name:
        folder = Path(name)
        report["start_up"] = start_up(folder, options.rounds)
        for density in (0.01, 0.2):
            size = int(options.gigabytes * 1e9)
            report[f"speed, {density:.0%} changed"] = speed(folder, size, density, options.rounds)
        report["memory"] = memory(folder, int(options.large * 1e9))
    text = json.dumps(report, indent=2)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
