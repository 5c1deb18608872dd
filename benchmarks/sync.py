"""Sizes of the deltas of single steps of RL, and the bandwidth below which they beat dense weights.

    python -m benchmarks.sync --demo demo --cache steps-out --output result.json

It measures, on the runs of `benchmarks.sync_runs`,

- `sizes`: of the delta of every step, as a file; of some steps also in the formats of others,
  beside entropies, and by the rank of our predictor;
- `stages`: times of each stage from trainer to follower, which give the bandwidth;
- `overhead`: what publishing costs the trainer, by runs with and without it.

What is trained stays in the cache, and what the output file has is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import trimtab
from benchmarks import sync_runs
from benchmarks.delta_codecs import changes
from benchmarks.deltas import (
    OF_STEPS,
    OURS,
    by_rank,
    measure_pair,
    opened,
    packages,
)
from benchmarks.provenance import provenance
from benchmarks.sync_stages import measure_overhead, measure_stages
from trimtab.deltas.file import DeltaFile
from trimtab.masks.mask import Mask

PARTS = ("sizes", "stages", "overhead")

CODECS = (*(name for name in OF_STEPS if name != OURS), "u32 index and value")
"""Formats of others."""

CHOSEN = (1, 2, 4, 8, 16, 32, 50)
"""Steps whose deltas are measured in every format."""

RANKS = (0, 1, 16)
"""Largest ranks of the predictor that are compared."""

ITERATIONS = 8
"""Of the power method."""

TIMED = ("bf16-1e-6", "bf16-1e-5")
"""Runs whose stages are timed."""

FIRST = 9
"""Steps of them that are taken."""

Report = dict[str, Any]
Save = Callable[[], None]


def anatomy(delta: Path) -> dict[str, int]:
    """What the bytes of a delta file are: frames, and all that comes with every delta.

    The deltas of a run have no predictors: `trimtab.Publisher` makes the same ones.
    """
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


def over_mask(before: Path, after: Path, mask: Mask) -> int:
    """Size of the delta of a step that is coded over the elements of its mask."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.delta")
        trimtab.make_delta(before, after, path, mask=mask, max_rank=0, threads=1)
        return path.stat().st_size


def sign_agreement(base: Path, tuned: Path) -> dict[str, float]:
    """How well one direction of each matrix says which way its elements moved.

    A rank-1 matrix is fitted to the signs of a random half of the changes by power iteration.

    Returns:
        Share of the signs that it has right, in the half that it was fitted to (`fitted`) and in
        the other one (`held_out`).
    """
    right, number = np.zeros(2), np.zeros(2)
    rng = np.random.default_rng(0)
    with opened(base, tuned) as (old, new):
        for change in changes(old, new):
            before, after = (change.dtype.decode(bits) for bits in change[2:])
            where = np.nonzero(after != before)
            if len(where) != 2 or where[0].size < 2:
                continue
            rows, columns = where
            signs = np.sign(after[where].astype(np.float64) - before[where])
            is_held = rng.random(signs.size) < 0.5
            known = np.where(is_held, 0.0, signs)
            across = rng.choice([-1.0, 1.0], before.shape[1])
            for _ in range(ITERATIONS):
                down = np.bincount(rows, known * across[columns], before.shape[0])
                down = down / (np.linalg.norm(down) or 1.0)
                across = np.bincount(columns, known * down[rows], before.shape[1])
                across = across / (np.linalg.norm(across) or 1.0)
            agrees = np.sign(down[rows] * across[columns]) * signs
            for side, chosen in enumerate((~is_held, is_held)):
                right[side] += float((0.5 + 0.5 * agrees[chosen]).sum())
                number[side] += int(chosen.sum())
    shares = right / np.maximum(number, 1)
    return dict(zip(("fitted", "held_out"), map(float, shares), strict=True))


def measure_sizes(
    base: Path,
    folder: Path,
    chosen: Sequence[int],
    codecs: Sequence[str],
    run: Report,
    save: Save,
    mask: Mask | None = None,
) -> None:
    """Complete the sizes of the steps of one run.

    Args:
        base: The checkpoint that it began with.
        folder: Its deltas.
        chosen: Steps to measure in every format.
        codecs: Those formats.
        run: What was measured before; gets the rest.
        save: Called after each step.
        mask: What was trained, if that was not everything.
    """
    deltas = sorted(folder.glob("*.delta"))
    steps = run.setdefault("steps", {})
    for number, delta in enumerate(deltas, 1):
        steps.setdefault(str(number), {})["delta"] = anatomy(delta)
    for step in (step for step in chosen if step <= len(deltas)):
        part = steps[str(step)]
        if "signs" in part and set(codecs) <= part["sizes"].keys():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            pair = pair_of(base, deltas, step, Path(scratch))
            measure_pair(*pair, codecs, part, save)
            if mask is not None:
                part["over_mask"] = over_mask(*pair, mask)
            by_rank(*pair, RANKS, part.setdefault("by_rank", {}))
            part["signs"] = sign_agreement(*pair)
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
    parser.add_argument("--rounds", type=int, default=5, help="steps of the paired runs")
    parser.add_argument(
        "--no-training", action="store_true", help="measure the steps that the cache has"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="the JSON, completed if it is there"
    )
    options = parser.parse_args()
    report: Report = {"provenance": {}, "runs": {}, "stages": {}, "overhead": {}}
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
            mask = sync_runs.mask_of(run, bases[run.base])
            measure_sizes(bases[run.base], folder, options.steps, options.codecs, part, save, mask)
        if name not in TIMED:
            continue
        deltas = sorted(folder.glob("*.delta"))[:FIRST]
        if "stages" in options.parts and name not in report["stages"]:
            info = provenance("torch", "numba")
            found = measure_stages(bases[run.base], deltas)
            report["stages"][name] = {"provenance": info, **found}
            save()
        if "overhead" in options.parts and name not in report["overhead"]:
            info = provenance("torch", "transformers", "trl")
            found = measure_overhead(bases[run.base], run.learning_rate, options.rounds)
            report["overhead"][name] = {"provenance": info, **found}
    save()


if __name__ == "__main__":
    main()
