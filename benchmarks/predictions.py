"""How well can it be known beforehand which weights will move? Every kind of mask, scored.

TRUE is what a training changed, by its bits; each prediction selects the same number of weights in
each tensor, knowing the base, and if it says so data, but not the training. All are made by their
commands, each in a process of its own, so that its time and its peak of memory are those of the
command; then they are scored as `trimtab mask score` does it. Beside them stands what other
trainings from the same base changed, with the number of weights that they changed.

Run `python -m benchmarks.predictions --help`. A prediction of the same name replaces the one that
the output file holds; others stay, as long as TRUE and the base are the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from benchmarks.compare import PEAK
from benchmarks.provenance import provenance
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.masks.prediction import PredictionScore, score_prediction
from trimtab.masks.selection.quotas import Quotas
from trimtab.masks.selection.scores import ScoreFile
from trimtab.masks.selection.top_k import select


class Maker(NamedTuple):
    """A prediction, and the command that makes it.

    Attributes:
        name: What the table calls it.
        command: Arguments of `trimtab`, with `BASE` and `TRUE` where their paths go; the output is
            added.
        has_scores: Whether it also writes the scores of every weight.
        needs: What it has to know besides the base.
        by_magnitude: Whether the same scores also select the same number of each magnitude as TRUE.
    """

    name: str
    command: tuple[str, ...]
    has_scores: bool = True
    needs: str = ""
    by_magnitude: bool = False


def by_weights(kind: str, *options: str) -> Maker:
    """A kind that knows the base alone."""
    command = "mask", "make", kind, "--base", "BASE", "--like", "TRUE", *options
    return Maker(kind, command)


def by_gradients(name: str, kind: str, *options: str) -> Maker:
    """A kind that asks the base about the training questions of the task."""
    sized = "mask", "make", kind, "--base", "BASE", "--like", "TRUE"
    command = *sized, "--task", "addition", *options
    return Maker(name, command, needs="the questions", by_magnitude=True)


def warm(steps: int) -> Maker:
    """What the first steps of the training itself had moved."""
    command = "mask", "make", "warm", "UPDATES", "--base", "BASE", "--steps", str(steps)
    return Maker(f"warm, {steps} of 20 steps", command, False, "those steps")


MAKERS = [
    Maker("random", ("mask", "random", "TRUE"), has_scores=False),
    Maker(
        "random, magnitude-matched",
        ("mask", "random", "TRUE", "--match", "magnitude", "--base", "BASE"),
        has_scores=False,
        needs="how many of each magnitude",
    ),
    by_weights("low-magnitude"),
    by_weights("absorption"),
    by_weights("safe"),
    by_weights("off-principal"),
    by_weights("principal"),
    by_weights("high-magnitude"),
    Maker(
        "absorption, 20 steps of LR 1e-5",
        ("mask", "make", "absorption", "--base", "BASE", "--lr", "1e-5", "--steps", "20"),
        has_scores=False,
        needs="learning rate and steps",
    ),
    by_gradients("fisher", "fisher", "--samples", "2"),
    by_gradients("sign-consistency, SFT", "sign-consistency", "--loss", "sft"),
    by_gradients("sign-consistency, reward", "sign-consistency", "--loss", "reward"),
    by_gradients("snip, SFT", "snip", "--loss", "sft"),
    warm(1),
    warm(5),
    warm(10),
    Maker(
        "warm, 5 of 20 steps, filled up",
        ("mask", "make", "warm", "UPDATES", "--base", "BASE", "--steps", "5", "--like", "TRUE"),
        needs="those steps",
    ),
]
"""What is predicted with, in the order of the table. The size of absorption by LR, and of what had
moved early, follows from them; all others have the same number in each tensor as TRUE."""

BY_MAGNITUDE = ", matched by magnitude"


def run(
    maker: Maker, base: str, true: Path, folder: Path, updates: Path | None
) -> list[dict[str, Any]]:
    """Make a prediction and score it: rows of the table."""
    mask, scores = folder / "mask.safetensors", folder / "scores.safetensors"
    places = {"BASE": base, "TRUE": str(true), "UPDATES": str(updates)}
    arguments = [places.get(word, word) for word in maker.command]
    arguments += ["-o", str(mask), "--force"]
    if maker.has_scores:
        arguments += ["--scores", str(scores)]
    seconds, peak = _measured(arguments)
    found = score_prediction(mask, true, base=base, scores=scores if maker.has_scores else None)
    typed = {"BASE": "base", "TRUE": "mask.safetensors", "UPDATES": "updates.trimtab"}
    command = " ".join(["trimtab", *(typed.get(word, word) for word in maker.command)])
    rows = [
        {
            "name": maker.name,
            "command": command,
            "needs": maker.needs,
            "seconds": seconds,
            "peak_mb": peak,
            **_figures(found),
        }
    ]
    if maker.by_magnitude:
        rows.append(
            {
                "name": maker.name + BY_MAGNITUDE,
                "command": f"{command} --match magnitude",
                "needs": f"{maker.needs}; how many of each magnitude",
                **_figures(_by_magnitude(scores, base, true)),
            }
        )
    return rows


def _by_magnitude(scores: Path, base: str, true: Path) -> PredictionScore:
    """Score what the same scores select with `--match magnitude`."""
    mask = Mask.load(true)
    with ScoreFile(scores) as one, open_checkpoint(base) as opened:
        quotas = Quotas.like(mask, one.shapes, match="magnitude", base=opened)
        selected = select(one, quotas, seed=0, provenance={"step": "benchmark"})
        return score_prediction(selected, true, base=opened)


def other_run(name: str, base: str, tuned: str, true: Path) -> dict[str, Any]:
    """Score what another training changed: a row of the table."""
    found = score_prediction(extract_mask(base, tuned), true, base=base)
    return {"name": name, "needs": "a whole training", **_figures(found)}


def _figures(score: PredictionScore) -> dict[str, Any]:
    total = score.total.to_dict()
    recalls = {kind: quality.recall for kind, quality in score.by_kind().items()}
    return {"is_ranked": score.ranking is not None, **total, "recall_by_kind": recalls}


def _measured(arguments: Sequence[str]) -> tuple[float, float]:
    """Wall time and peak resident memory, in MB, of a command."""
    start = perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    return perf_counter() - start, int(done.stderr.split()[-1]) * 1024 / 1e6


def collected(before: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """The report with what an earlier one holds of the same mask beside it, in order."""
    kept = {}
    if before is not None and before["true"]["digest"] == now["true"]["digest"]:
        kept = {row["name"]: row for row in before["rows"]}
    rows = kept | {row["name"]: row for row in now["rows"]}
    order = [maker.name + more for maker in MAKERS for more in ("", BY_MAGNITUDE)]
    place = {name: order.index(name) if name in order else len(order) for name in rows}
    return {**now, "rows": sorted(rows.values(), key=lambda row: place[row["name"]])}


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, help="the checkpoint before training")
    parser.add_argument("--tuned", required=True, help="the checkpoint after it")
    parser.add_argument("--what", required=True, help="the training in a few words")
    parser.add_argument("--other", nargs=2, action="append", default=[], metavar=("NAME", "TUNED"))
    parser.add_argument("--updates", type=Path, help="its steps, as UpdateTracker wrote them")
    parser.add_argument("--only", action="append", help="name of a prediction; by default all")
    parser.add_argument("--folder", type=Path, required=True, help="for masks and scores")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    result = provenance("numpy")
    mask: Mask = extract_mask(options.base, options.tuned)
    true = options.folder / "true.safetensors"
    mask.save(true, force=True)
    chosen = MAKERS if options.only is None else [one for one in MAKERS if one.name in options.only]
    makers = [one for one in chosen if options.updates is not None or "UPDATES" not in one.command]
    rows = []
    for maker in makers:
        for row in run(maker, options.base, true, options.folder, options.updates):
            rows.append({**row, "provenance": result})
            print(json.dumps({key: row.get(key) for key in ("name", "recall", "seconds")}))
    for name, tuned in options.other:
        rows.append({**other_run(name, options.base, tuned, true), "provenance": result})
    report = {
        "benchmark": "predictions",
        "true": {
            "what": options.what,
            "digest": mask.digest,
            "num_elements": mask.num_elements(),
            "num_selected": mask.num_selected(),
        },
        "rows": rows,
    }
    before = json.loads(options.output.read_text("utf-8")) if options.output.exists() else None
    options.output.write_text(json.dumps(collected(before, report), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
