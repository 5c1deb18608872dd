"""Sizes of the deltas of single steps of RL, and the bandwidth below which they beat dense weights.

    python -m benchmarks.sync --demo demo --cache steps-out --output result.json

It measures, on the runs of `benchmarks.sync_runs`,

- `sizes`: of the delta of every step, as a file; of some steps also in the formats of others,
  beside entropies, and by the rank of our predictor;
- `speeds`: of coding and decoding one of these steps, which give the bandwidth.

What is trained stays in the cache, and what the output file has is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trimtab
from benchmarks import sync_runs
from benchmarks.deltas import OF_STEPS, by_rank, measure_pair, measure_speeds, packages
from benchmarks.provenance import provenance
from trimtab.deltas.file import DeltaFile

PARTS = ("sizes", "speeds")

CODECS = (*OF_STEPS, "u32 index and value")

CHOSEN = (1, 2, 4, 8, 16, 32, 50)
"""Steps whose deltas are measured in every format."""

RANKS = (0, 1, 16)
"""Largest ranks of the predictor that are compared."""

TIMED: Mapping[str, int] = {"bf16-1e-6": 8, "bf16-1e-5": 8}
"""Run -> step whose coding is timed."""

Report = dict[str, Any]
Save = Callable[[], None]


def anatomy(delta: Path) -> dict[str, int]:
    """What the bytes of a delta file are: frames, and all that comes with every delta."""
    with DeltaFile(delta) as file, delta.open("rb") as stream:
        manifest = file.manifest
        header = 8 + int.from_bytes(stream.read(8), "little")
        return {
            "num_changed": manifest.num_changed,
            "num_tensors_changed": sum(entry.num_changed > 0 for entry in manifest.tensors),
            "all": file.num_bytes,
            "frames": sum(entry.num_stored for entry in manifest.tensors),
            "header": header,
            "manifest": file.num_bytes - header - manifest.num_stored,
            "files": sum(entry.num_stored for entry in manifest.files),
        }


def pair_of(base: Path, deltas: Sequence[Path], step: int, folder: Path) -> tuple[Path, Path]:
    """The checkpoints before and after a step, made in a folder unless they are there."""
    before, after = folder / f"step-{step - 1}", folder / f"step-{step}"
    if step == 1:
        before = base
    elif not before.exists():
        trimtab.apply_delta(base, deltas[: step - 1], before, threads=1)
    if not after.exists():
        trimtab.apply_delta(before, deltas[step - 1], after, threads=1)
    return before, after


def measure_sizes(
    base: Path, folder: Path, chosen: Sequence[int], codecs: Sequence[str], run: Report, save: Save
) -> None:
    """Complete the sizes of the steps of one run."""
    deltas = sorted(folder.glob("*.delta"))
    steps = run.setdefault("steps", {})
    for number, delta in enumerate(deltas, 1):
        steps.setdefault(str(number), {})["without predictors"] = anatomy(delta)
    for step in (step for step in chosen if step <= len(deltas)):
        part = steps[str(step)]
        if "by_rank" in part and set(codecs) <= part["sizes"].keys():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            pair = pair_of(base, deltas, step, Path(scratch))
            measure_pair(*pair, codecs, part, save)
            by_rank(*pair, RANKS, part.setdefault("by_rank", {}))
        save()


def main() -> None:
    """Measure what is asked for, into the output file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--demo", type=Path, required=True, help="folder of `trimtab demo`")
    parser.add_argument(
        "--models", type=Path, default=Path("deltas-out"), help="for the native one"
    )
    parser.add_argument("--cache", type=Path, default=Path("steps-out"), help="for the runs")
    parser.add_argument("--runs", nargs="+", choices=sync_runs.RUNS, default=list(sync_runs.RUNS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", nargs="+", type=int, default=list(CHOSEN), metavar="NUMBER")
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS), metavar="NAME")
    parser.add_argument(
        "--no-training", action="store_true", help="measure the steps that the cache has"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="the JSON, completed if it is there"
    )
    options = parser.parse_args()
    report: Report = {"provenance": {}, "runs": {}, "speeds": {}}
    if options.output.exists():
        report |= json.loads(options.output.read_text())
    before = provenance("numpy", "numba", "zstandard", "torch", "transformers", "trl")

    def save() -> None:
        options.output.write_text(json.dumps(report, indent=1) + "\n")

    bases = sync_runs.bases_of(options.demo, options.models)
    if not options.no_training:
        sync_runs.make(options.cache, bases, options.runs)
    report["provenance"] = {**before, "packages": packages()}
    for name in options.runs:
        folder, run = options.cache / name, sync_runs.RUNS[name]
        if "sizes" in options.parts and folder.exists():
            part = report["runs"].setdefault(name, {"settings": asdict(run)})
            measure_sizes(bases[run.base], folder, options.steps, options.codecs, part, save)
        deltas = sorted(folder.glob("*.delta"))
        if "speeds" in options.parts and name in TIMED and len(deltas) >= TIMED[name]:
            with tempfile.TemporaryDirectory() as scratch:
                pair = pair_of(bases[run.base], deltas, TIMED[name], Path(scratch))
                measure_speeds({name: pair}, report["speeds"], save)
    save()


if __name__ == "__main__":
    main()
