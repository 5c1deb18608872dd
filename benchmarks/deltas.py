"""Sizes of deltas in our format and in those of others, and their speed.

    python -m benchmarks.deltas --demo demo --cache deltas-out --output result.json

It measures

- `pairs`: the runs of the demo (if its folder is given), models that are trained and tuned here
  (`benchmarks.delta_models`) and synthetic pairs, in every format, beside entropies, and by the
  rank of our predictor;
- `steps`: some steps of long runs, each against the base;
- `chains`: the first steps of these runs, each against the one before;
- `speeds`: of coding and decoding, beside copying, reading and hashing the same bytes.

`benchmarks.delta_memory` has the time and memory of a large model.

What is trained and generated stays in the cache, and what the output file has is not measured
again: an interrupted benchmark resumes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import xxhash

from benchmarks import delta_models, delta_pairs
from benchmarks.delta_codecs import (
    CODECS,
    PACKAGES,
    TENSOR_CODECS,
    Change,
    TensorCodec,
    changes,
    entropies,
)
from benchmarks.processes import in_own_process
from benchmarks.provenance import provenance
from trimtab.checkpoints.checkpoint import Checkpoint, open_checkpoint
from trimtab.elements.update_coding import decode_tensor, encode_tensor
from trimtab.elements.update_predictor import RANKS, read_predictor

PARTS = ("pairs", "steps", "chains", "speeds")

OURS = "trimtab delta"

ROUNDS = 3
"""Times that a speed is measured: the median counts."""

OF_STEPS = [
    name
    for name in CODECS
    if not name.startswith(("zstd", "xdelta3", "ZipNN")) and name != "u32 index and value"
]
"""Formats in which every step of a run is measured: those that look at elements."""

Report = dict[str, Any]
Save = Callable[[], None]


@contextmanager
def opened(*paths: Path) -> Iterator[list[Checkpoint]]:
    with ExitStack() as stack:
        yield [stack.enter_context(open_checkpoint(path)) for path in paths]


def measure_pair(
    base_path: Path,
    tuned_path: Path,
    codecs: Iterable[str],
    result: Report,
    save: Save = lambda: None,
) -> None:
    """Complete the sizes of one pair, as far as they were not measured before."""
    with opened(base_path, tuned_path) as (base, tuned):
        if "entropies" not in result:
            result["num_bytes"] = sum(tensor.num_bytes for tensor in tuned.tensors.values())
            result["num_elements"] = sum(tensor.num_elements for tensor in tuned.tensors.values())
            result["num_changed"] = sum(
                int((c.base != c.tuned).sum()) for c in changes(base, tuned)
            )
            result["entropies"] = entropies(base, tuned)
        sizes = result.setdefault("sizes", {})
        for name in codecs:
            if name in sizes:
                continue
            try:
                with tempfile.TemporaryDirectory() as scratch:
                    size = CODECS[name](base, tuned, Path(scratch))
            except ModuleNotFoundError as error:
                print(f"{name}: left out, {error}")
                continue
            sizes[name] = size
            print(f"{tuned_path}, {name}: {size / result['num_bytes']:.2%}", flush=True)
            save()
        result["sizes"] = {name: sizes[name] for name in CODECS if name in sizes}


def by_rank(base_path: Path, tuned_path: Path, ranks: Sequence[int], result: Report) -> None:
    """Bytes that our coder takes for each kind of information, by the largest rank allowed."""
    with opened(base_path, tuned_path) as (base, tuned):
        for max_rank in ranks:
            if str(max_rank) in result:
                continue
            tally, elements = np.zeros(3), Counter[int]()
            predictors = total = 0
            for change in changes(base, tuned):
                frames = encode_tensor(*change[2:], change.dtype, max_rank=max_rank, tally=tally)
                again = decode_tensor(change.base, frames, change.dtype)
                if again.tobytes() != change.tuned.tobytes():
                    raise RuntimeError(f"{change.name} did not come back bit for bit")
                elements[read_predictor(frames[0], change.base.shape).rank] += change.base.size
                predictors += len(frames[0])
                total += sum(map(len, frames))
            result[str(max_rank)] = {
                "all": total,
                **dict(zip(("positions", "signs", "distances"), tally / 8, strict=True)),
                "predictors": predictors,
                "elements_by_rank": {str(rank): elements[rank] for rank in sorted(elements)},
            }
            print(f"{tuned_path}, rank {max_rank}: {total:,}", flush=True)


def timed(work: Callable[[Any], Any], items: Sequence[Any], threads: int) -> tuple[Report, Any]:
    """Seconds of applying a function to all items, and what it returned."""
    start, processor_start = perf_counter(), process_time()
    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(work, items))
    seconds = {
        "seconds": perf_counter() - start,
        "processor_seconds": process_time() - processor_start,
    }
    return seconds, results


def measure_speed(codec: TensorCodec, pairs: Sequence[Change], threads: int) -> Report:
    """GB of tuned tensors a second, of wall time and of processor time, and the size."""
    rounds: list[Report] = []
    size = 0
    for _ in range(ROUNDS):
        encoding, coded = timed(codec.encode, pairs, threads)
        decoding, tensors = timed(
            lambda item: codec.decode(*item), list(zip(pairs, coded, strict=True)), threads
        )
        rounds.append({"encode": encoding, "decode": decoding})
        size = sum(map(codec.size, coded))
        for pair, again in zip(pairs, tensors, strict=True):
            if again.tobytes() != pair.tuned.tobytes():
                raise RuntimeError(f"{pair.name} did not come back bit for bit")
    return {"num_bytes": size, "threads": threads, **_median(rounds)}


def measure_limits(pairs: Sequence[Change], paths: Sequence[Path]) -> Report:
    """Copying and hashing the tuned tensors, and reading their files from the page cache."""
    limits: dict[str, tuple[Callable[[Any], Any], Sequence[Any]]] = {
        "copy": (lambda pair: pair.tuned.copy(), pairs),
        "xxh3_128": (lambda pair: xxhash.xxh3_128_digest(pair.tuned.data), pairs),
        "read": (lambda path: len(path.read_bytes()), paths),
    }
    rounds = [
        {name: timed(work, items, 1)[0] for name, (work, items) in limits.items()}
        for _ in range(ROUNDS)
    ]
    return _median(rounds)


def _median(rounds: Sequence[Report]) -> Report:
    return {
        name: {key: median(one[name][key] for one in rounds) for key in rounds[0][name]}
        for name in rounds[0]
    }


def _speeds_of(base_path: Path, tuned_path: Path, codecs: Sequence[str], threads: int) -> Report:
    with opened(base_path, tuned_path) as (base, tuned):
        pairs = [
            Change(c.name, c.dtype, c.base.copy(), c.tuned.copy()) for c in changes(base, tuned)
        ]
        paths = sorted({tensor.file.path for tensor in tuned.tensors.values()})
        num_bytes = sum(pair.tuned.nbytes for pair in pairs)
        small = Change("", pairs[0].dtype, *(bits[:2] for bits in pairs[0][2:]))
        result: Report = {"num_bytes": num_bytes}
        if threads == 1:
            result["limits"] = measure_limits(pairs, paths)
        for name in codecs:
            try:
                codec = TENSOR_CODECS[name]
                codec.decode(small, codec.encode(small))  # compiled, if it was not
                result[name] = measure_speed(codec, pairs, threads)
            except ModuleNotFoundError as error:
                print(f"{name}: left out, {error}")
    return result


def measure_speeds(pairs: Mapping[str, tuple[Path, Path]], result: Report, save: Save) -> None:
    """Speeds on some pairs, with one thread, and with two for those that have threads."""
    for name, paths in pairs.items():
        for threads, codecs in ((1, list(TENSOR_CODECS)), (2, list(TENSOR_CODECS)[:2])):
            part = result.setdefault(name, {})
            if str(threads) not in part:
                part[str(threads)] = in_own_process(_speeds_of, *paths, codecs, threads)
                print(f"speeds of {name}, {threads} threads: measured", flush=True)
                save()


def pairs_of(demo: Path | None, cache: Path, models: Sequence[str]) -> dict[str, tuple[Path, Path]]:
    """Name of a pair -> its base and its tuned checkpoint; synthetic pairs are written first."""
    found = {}
    if demo is not None:
        for name in ("grpo", "sft"):
            found[f"demo, {name.upper()}"] = (demo / "base", demo / name / "model")
    for model in models:
        for run, tuning in delta_models.MODELS[model].runs.items():
            tuned = cache / model / run / f"step-{tuning.saved[-1]}"
            found[f"{model}, {label(run)}"] = (cache / model / "base" / "model", tuned)
    for name in delta_pairs.SHARES:
        found[f"synthetic {name}"] = delta_pairs.write_synthetic(cache / "synthetic" / name, name)
    return found


def label(run: str) -> str:
    """`rl-1e-6` as `RL, 1e-6`."""
    method, _, rate = run.partition("-")
    return f"{method.upper()}, {rate}" if rate else method.upper()


def long_runs(models: Sequence[str]) -> Iterator[tuple[str, str, Sequence[int]]]:
    """Model, run and saved steps of every run of more than one saved step."""
    for model in models:
        for run, tuning in delta_models.MODELS[model].runs.items():
            if len(tuning.saved) > 1:
                yield model, run, tuning.saved


def consecutive(saved: Sequence[int]) -> list[int]:
    """The first steps of which none is missing."""
    return [step for number, step in enumerate(saved, 1) if step == number]


def measure_steps(cache: Path, models: Sequence[str], report: Report, save: Save) -> None:
    """Some steps of long runs against the base, in the formats that look at elements."""
    for model, run, saved in long_runs(models):
        for step in (step for step in saved if step in (1, 2, 5, 10) or step not in range(20)):
            part = report.setdefault(f"{model}, {label(run)}", {}).setdefault(str(step), {})
            base, tuned = cache / model / "base" / "model", cache / model / run / f"step-{step}"
            measure_pair(base, tuned, OF_STEPS, part, save)


def measure_chains(cache: Path, models: Sequence[str], report: Report, save: Save) -> None:
    """The first steps of these runs, each against the one before, and all of them as one."""
    for model, run, saved in long_runs(models):
        part = report.setdefault(f"{model}, {label(run)}", {"links": {}, "compacted": {}})
        folders = [cache / model / "base" / "model"]
        folders += [cache / model / run / f"step-{step}" for step in consecutive(saved)]
        for number, (before, after) in enumerate(pairwise(folders), 1):
            measure_pair(before, after, OF_STEPS, part["links"].setdefault(str(number), {}), save)
        measure_pair(folders[0], folders[-1], OF_STEPS, part["compacted"], save)


def forget(part: Report, names: Sequence[str]) -> None:
    """Remove the sizes of some codecs, wherever they are."""
    for name in names:
        part.get("sizes", {}).pop(name, None)
    if OURS in names:
        part.pop("by_rank", None)
    for below in part.values():
        if isinstance(below, dict):
            forget(below, names)


def packages() -> dict[str, str]:
    """Versions of the packages whose codecs are compared, of those that are installed."""
    found = {}
    for package in PACKAGES.values():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Measure what is asked for, into the output file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--demo", type=Path, help="folder of `trimtab demo`")
    parser.add_argument("--cache", type=Path, default=Path("deltas-out"), help="for models")
    parser.add_argument("--models", nargs="*", default=["wide", "native"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--output", type=Path, required=True, help="the JSON, completed if it is there"
    )
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS), metavar="NAME")
    parser.add_argument(
        "--again", nargs="+", choices=CODECS, default=[], metavar="NAME", help="measure it again"
    )
    parser.add_argument("--speeds-of", nargs="+", default=["demo, GRPO", "wide, SFT"])
    options = parser.parse_args()
    report: Report = {"provenance": {}, "pairs": {}, "steps": {}, "chains": {}, "speeds": {}}
    if options.output.exists():
        report |= json.loads(options.output.read_text())
    for part in ("pairs", "steps", "chains") if options.again else ():
        forget(report[part], options.again)
    before = provenance("numpy", "numba", "zstandard")

    def save() -> None:
        options.output.write_text(json.dumps(report, indent=1) + "\n")

    if {"pairs", "steps", "chains", "speeds"} & set(options.parts):
        delta_models.make(options.cache, options.models)
        trained = delta_models.summary(options.cache, options.models)
        report["models"] = {**report.get("models", {}), **trained}
    report["provenance"] = {**before, "packages": packages()}
    pairs = pairs_of(options.demo, options.cache, options.models)
    if "pairs" in options.parts:
        for name, paths in pairs.items():
            part = report["pairs"].setdefault(name, {})
            measure_pair(*paths, options.codecs, part, save)
            by_rank(*paths, (0, *RANKS), part.setdefault("by_rank", {}))
            save()
    if "steps" in options.parts:
        measure_steps(options.cache, options.models, report["steps"], save)
    if "chains" in options.parts:
        measure_chains(options.cache, options.models, report["chains"], save)
    if "speeds" in options.parts:
        named = {name: pairs[name] for name in options.speeds_of if name in pairs}
        measure_speeds(named, report["speeds"], save)
    save()


if __name__ == "__main__":
    main()
