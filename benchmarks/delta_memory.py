"""Time and memory of a delta of a large model: made, verified and applied.

    python -m benchmarks.delta_memory --output result.json

The pair is generated: shards of bf16 in the shapes of Qwen2.5-7B. Weights are normal, with a scale
for each row. The tuned ones are the base's in fp32, plus steps of which a share has four directions
and the rest is noise, rounded to bf16 again; so which elements change follows from their exponents,
as in training.
Of noise there are 32 million numbers, read from other places for every part of every tensor.

Each step runs in a process of its own. Its memory is the highest resident size (`VmHWM`) minus that
before, when compiled kernels are loaded. Checkpoints are read, not mapped, so the page cache is no
part of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

import trimtab
from benchmarks.delta_pairs import rounded
from benchmarks.processes import counted_threads, in_own_process, peak_resident, reset_peak
from benchmarks.provenance import provenance
from trimtab.checkpoints.safetensors import file_start
from trimtab.checkpoints.tensors import hash_of_file

HIDDEN, INNER, KEYS, VOCABULARY = 3584, 18_944, 512, 152_064
"""Sizes of Qwen2.5-7B, which has 28 layers."""

SCALE, STEP = 0.02, 7e-6
"""Typical size of a weight, and of what was added to it: about 8 % of the elements change."""

NUM_DIRECTIONS, SHARE = 4, 0.8
"""Directions of the steps, and their share of the variance."""

BLOCK = 1 << 22
"""Elements that are generated together."""

SHARD_BYTES = 4_000_000_000

Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(num_layers: int) -> Shapes:
    """Name -> shape of the tensors of a model of so many layers."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for number in range(num_layers):
        layer = f"model.layers.{number}"
        for name, shape in {
            "input_layernorm.weight": (HIDDEN,),
            "mlp.down_proj.weight": (HIDDEN, INNER),
            "mlp.gate_proj.weight": (INNER, HIDDEN),
            "mlp.up_proj.weight": (INNER, HIDDEN),
            "post_attention_layernorm.weight": (HIDDEN,),
            "self_attn.k_proj.weight": (KEYS, HIDDEN),
            "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            "self_attn.v_proj.weight": (KEYS, HIDDEN),
        }.items():
            shapes[f"{layer}.{name}"] = shape
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def write_pair(folder: Path, shapes: Shapes) -> None:
    """Write `base` and `tuned`, folders of shards, each with an index and a config."""
    rng = np.random.default_rng(0)
    pool = rng.standard_normal(1 << 25, np.float32)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = SHARD_BYTES
    for name, shape in shapes.items():
        if shards[-1] and 2 * int(np.prod(shape)) > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = shape
        room -= 2 * int(np.prod(shape))
    paths = folder / "base", folder / "tuned"
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    index = {
        "metadata": {"total_size": 2 * sum(int(np.prod(shape)) for shape in shapes.values())},
        "weight_map": {
            name: file for file, part in zip(names, shards, strict=True) for name in part
        },
    }
    for path in paths:
        path.mkdir(parents=True)
        (path / "config.json").write_text('{"model_type": "qwen2"}')
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    for file, part in zip(names, shards, strict=True):
        start = file_start({n: ("BF16", shape) for n, shape in part.items()}, {"format": "pt"})
        with (paths[0] / file).open("wb") as base, (paths[1] / file).open("wb") as tuned:
            base.write(start)
            tuned.write(start)
            for shape in part.values():
                for before, after in _blocks(shape, pool, rng):
                    base.write(before.data)
                    tuned.write(after.data)


def _blocks(
    shape: tuple[int, ...], pool: NDArray[np.float32], rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.uint16], NDArray[np.uint16]]]:
    """Bits of a tensor before and after training, some rows at a time."""
    rows, columns = (1, *shape)[-2:]
    left = rng.standard_normal((rows, NUM_DIRECTIONS), np.float32)
    right = rng.standard_normal((NUM_DIRECTIONS, columns), np.float32)
    right *= np.float32(STEP * (SHARE / NUM_DIRECTIONS) ** 0.5)
    scales = SCALE * np.exp2(rng.uniform(-1, 1, (rows, 1))).astype(np.float32)
    height = max(1, BLOCK // columns)
    for first in range(0, rows, height):
        part = slice(first, min(first + height, rows))
        num = (part.stop - first) * columns
        weights, noise = (
            pool[at : at + num].reshape(-1, columns) for at in rng.integers(0, pool.size - num, 2)
        )
        before = rounded(weights * scales[part])
        wide = (before.astype(np.uint32) << 16).view(np.float32)
        wide += left[part] @ right
        wide += noise * np.float32(STEP * (1 - SHARE) ** 0.5)
        yield before, rounded(wide)


def _measured(step: str, folder: Path, threads: int) -> dict[str, float]:
    """Time, threads that had work on average, and highest resident bytes above those before."""

    def work(step: str, folder: Path) -> None:
        base, tuned, delta = (folder / name for name in ("base", "tuned", "x.delta"))
        match step:
            case "make":
                trimtab.make_delta(base, tuned, delta, threads=threads, force=True)
            case "verify":
                trimtab.verify_delta(base, delta, threads=threads)
            case "apply":
                trimtab.apply_delta(base, delta, folder / "result", threads=threads)

    with tempfile.TemporaryDirectory(dir=folder) as tiny:  # so that kernels are loaded
        write_pair(Path(tiny), {"w": (64, 64)})
        for each in ("make", step):
            work(each, Path(tiny))
    reset_peak()
    before, start, processor_start = peak_resident(), perf_counter(), process_time()
    with counted_threads() as counts:
        work(step, folder)
    return {
        "seconds": perf_counter() - start,
        "processor_seconds": process_time() - processor_start,
        "busy_threads": sum(min(count, threads) for count in counts) / max(1, len(counts)),
        "num_bytes": peak_resident() - before,
        "num_bytes_in_all": peak_resident(),
    }


def measure(folder: Path, num_layers: int, threads: list[int]) -> dict[str, Any]:
    """Make a delta of a pair, verify and apply it, and compare the files."""
    result: dict[str, Any] = {"steps": {}}
    if not (folder / "base").exists():
        write_pair(folder, shapes_of(num_layers))
        result["num_layers"] = num_layers
    for number in threads:
        for step in ("make", "verify", "apply"):
            shutil.rmtree(folder / "result", ignore_errors=True)
            steps = result["steps"].setdefault(str(number), {})  # as JSON has it
            steps[step] = in_own_process(_measured, step, folder, number)
            print(f"{step}, {number} threads: {steps[step]}", flush=True)
        for path in (folder / "result").iterdir():
            if hash_of_file(path) != hash_of_file(folder / "tuned" / path.name):
                raise RuntimeError(f"{path.name} did not come back byte for byte")
        shutil.rmtree(folder / "result")
    with trimtab.DeltaFile(folder / "x.delta") as delta:
        tensors = delta.manifest.tensors
        return result | {
            "num_tensors": len(tensors),
            "num_bytes": sum(entry.num_bytes for entry in tensors),
            "num_bytes_of_largest_tensor": max(entry.num_bytes for entry in tensors),
            "num_bytes_of_delta": delta.num_bytes,
            "density": delta.manifest.num_changed / delta.manifest.num_elements,
        }


def main() -> None:
    """Measure a pair and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=26, help="26 for 14 GB (default)")
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--name", default="large", help="name of the pair in the result")
    parser.add_argument(
        "--folder",
        type=Path,
        help="for the pair, three times its size; if it has base and tuned, they are measured",
    )
    parser.add_argument("--output", type=Path, help="write the JSON here, beside other pairs")
    options = parser.parse_args()
    report: dict[str, Any] = {"pairs": {}}
    if options.output is not None and options.output.exists():
        report = json.loads(options.output.read_text())
    result = provenance("numpy", "numba")
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch) if options.folder is None else options.folder
        measured = measure(folder, options.layers, options.threads)
    report["pairs"][options.name] = {"provenance": result, **measured}
    text = json.dumps(report, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
