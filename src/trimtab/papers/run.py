"""`run_paper`: train what is missing, measure it, and set it against what the paper says.

::

    OUT/small/base/                     the base of all cells
    OUT/small/cells/grpo/seed-0/        a cell of a sweep: `trimtab train run.json` trains it
        comparison.json, evaluation.json, …
    OUT/small/overlaps/                 of masks of two cells
    OUT/public/                         comparisons of published checkpoints
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trimtab import compare, identity, overlap, read_tracked
from trimtab.errors import TrimtabError
from trimtab.papers.bases import make_base
from trimtab.papers.library import BASE, Claim, Paper, PaperCell, Scale, Trial, cells_of
from trimtab.papers.measures import MEASURES
from trimtab.papers.public import Checkpoints, public_claims
from trimtab.papers.results import PaperResult
from trimtab.processes import Interrupted
from trimtab.results.records import made_now
from trimtab.results.statistics import PAIR
from trimtab.training import evaluate, file_questions
from trimtab.training.evaluation.questions import reward_of
from trimtab.training.folders import read_json
from trimtab.training.runs.base_model import BaseModel
from trimtab.training.runs.settings import RewardTable
from trimtab.training.sweeps.execute import run_cells
from trimtab.training.sweeps.plan import checked

OVERLAPS = "overlaps"


def _compare(of: PaperCell, *, rank: bool = False, geometry: bool = False) -> Any:
    # fp32 weights are compared as such: fp32 has every value of the base.
    cast = "fp32" if of.is_saved_as_fp32 else None
    return compare(of.cell.starts_from(), of.cell.model, cast=cast, rank=rank, geometry=geometry)


def _evaluate(of: PaperCell) -> Any:
    asked = of.scale.evaluate
    judge = RewardTable(kind="regex", pattern=asked.pattern)
    questions = file_questions(of.questions, reward_of(judge, Path()))
    return evaluate(
        [str(of.base), str(of.cell.model)],
        questions=replace(questions, max_completion_length=asked.max_tokens),
        num_samples=asked.samples,
        seed=of.seed,
    )


def _identity(of: PaperCell) -> Any:
    assert of.cell.of is not None, "a run in a mask"
    return identity(of.base, of.cell.of.model, of.cell.model, of.cell.mask_file)


SOURCES: Mapping[str, Callable[[PaperCell], Any]] = {
    "comparison": _compare,
    "rank": lambda of: _compare(of, rank=True),
    "geometry": lambda of: _compare(of, geometry=True),
    "evaluation": _evaluate,
    "identity": _identity,
    "trajectory": lambda of: read_tracked(of.cell.out / "updates.trimtab"),
}
"""Name of a file -> what makes the result that is written to it."""


@dataclass(frozen=True)
class Measuring:
    """Makes what is missing and reads figures."""

    _read: dict[Path, Any] = field(default_factory=dict, repr=False)

    def values(self, trial: Trial, cells: Mapping[str, Sequence[PaperCell]]) -> dict[str, Any]:
        """The figures of a trial.

        Args:
            trial: The trial.
            cells: Arm -> its cells that are trained, one for each seed.

        Returns:
            `values` and, if it has another arm to subtract, `other_values`: seed -> figure; for an
            overlap, both seeds.

        Raises:
            TrimtabError: Something cannot be measured.
        """
        if trial.other is not None:
            return {"values": self._overlaps(trial, cells)}
        values = {"values": self._figures(trial, cells[trial.arm])}
        if trial.than is not None:
            values["other_values"] = self._figures(trial, cells[trial.than])
        return values

    def _figures(self, trial: Trial, cells: Sequence[PaperCell]) -> dict[str, float]:
        return {
            str(of.seed): _figure(trial, self._source(of, MEASURES[trial.measure].source), of)
            for of in cells
        }

    def _overlaps(self, trial: Trial, cells: Mapping[str, Sequence[PaperCell]]) -> dict[str, float]:
        """Of masks of one arm, every two seeds; of those of two arms, the same seed of both."""
        assert trial.other is not None
        first, second = cells[trial.arm], cells[trial.other]
        pairs = [
            (one, two)
            for one in first
            for two in second
            if (one.seed < two.seed if trial.arm == trial.other else one.seed == two.seed)
        ]
        return {
            str(one.seed) if one.seed == two.seed else f"{one.seed}{PAIR}{two.seed}": _figure(
                trial, self._overlap(one, two), one
            )
            for one, two in pairs
        }

    def _source(self, of: PaperCell, source: str) -> Any:
        """The content of a file of a trained cell, made if it is not there."""
        if source == "result":
            return self._json(of.cell.result)
        return self._json(of.cell.folder / f"{source}.json", lambda: SOURCES[source](of))

    def _overlap(self, one: PaperCell, two: PaperCell) -> Any:
        names = (of.name.replace("/seed-", "-") for of in (one, two))
        path = one.root / OVERLAPS / f"{'--'.join(names)}.json"
        return self._json(
            path, lambda: overlap(one.cell.changed(), two.cell.changed(), base=one.base)
        )

    def _json(self, path: Path, make: Callable[[], Any] | None = None) -> Any:
        if path not in self._read:
            if make is not None and not path.exists():
                make().save(path, force=True)
            self._read[path] = read_json(path)
        return self._read[path]


def _figure(trial: Trial, data: Any, of: PaperCell) -> float:
    measure = MEASURES[trial.measure]
    try:
        return measure.read(data, **trial.settings)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise TrimtabError(
            f"{of.name}: no {trial.measure} can be read from its {measure.source} ({error!r})"
        ) from None


PUBLIC = "public"
"""Folder of the comparisons of published checkpoints, in that of all runs."""

QUICK = 1.0
"""Minutes of a run that is not worth a process of its own, which first loads torch."""


@dataclass(frozen=True)
class PaperPlan:
    """What a run of a paper would do.

    Attributes:
        paper: The paper.
        scale: The scale of its runs.
        seeds: Under which any arm is run.
        cells: All that it needs.
        checkpoints: Where published checkpoints are; those that are not in it are not measured.
        out: Folder of all runs.
    """

    paper: Paper
    scale: Scale
    seeds: Sequence[int]
    cells: Sequence[PaperCell]
    checkpoints: Checkpoints
    out: Path

    @property
    def missing(self) -> list[PaperCell]:
        """Cells that are yet to be trained."""
        return [of for of in self.cells if not of.cell.is_finished]

    @property
    def minutes(self) -> float:
        """What that takes, roughly, on one CPU core."""
        return sum(of.minutes for of in self.missing)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "paper": self.paper.id,
            "scale": self.scale.name,
            "seeds": list(self.seeds),
            "cells": {of.name: of.cell.is_finished for of in self.cells},
            "num_missing": len(self.missing),
            "minutes": self.minutes,
            "num_claims": len(self.paper.claims) + len(self.paper.public),
            "public": sorted(self.checkpoints),
        }


def plan_paper(
    paper: Paper,
    scale: str,
    out: Path,
    *,
    seeds: Sequence[int] | None = None,
    checkpoints: Checkpoints | None = None,
) -> PaperPlan:
    """Say what a run of a paper would do.

    Args:
        paper: The paper.
        scale: One of its scales.
        out: Folder of all runs, which papers share.
        seeds: In place of those that the paper and the scale ask for.
        checkpoints: Where published checkpoints are.

    Raises:
        SettingsError: The files of the paper or the scale cannot be used.
    """
    runs = paper.scale(scale)
    wanted = paper.seeds[scale] if seeds is None else seeds
    arms = paper.arms_at(scale)
    cells = cells_of(runs, arms, wanted, out / scale, with_more_seeds=seeds is None)
    run_under = list(dict.fromkeys(cell.seed for cell in cells))
    return PaperPlan(paper, runs, run_under, cells, checkpoints or {}, out)


def run_paper(
    plan: PaperPlan,
    *,
    jobs: int = 1,
    trains: bool = True,
    told: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> PaperResult:
    """Train the cells that are missing, measure all, and say what follows.

    Cells that fail are left out, and reported; the others are measured all the same.

    Args:
        plan: From `plan_paper`.
        jobs: Cells that train at a time.
        trains: Whether to train at all; without, what is missing is said to be not yet run.
        told: Told what happens, in a few words.
        stop: Whether to stop.

    Raises:
        OutputExistsError: A cell is there and belongs to another run.
        TrimtabError: The base cannot be made.
        Interrupted: It was asked to stop.
    """
    measuring = Measuring()
    failed: dict[str, str] = {}
    if trains and plan.missing:
        make_base(plan.scale.base, plan.out / plan.scale.name / BASE)
    bases: dict[Path, BaseModel] = {}
    for of in plan.cells:
        if of.cell.out.exists():
            checked(of.cell, bases)
    if trains:
        outcomes = run_cells(
            [of.cell for of in plan.missing],
            jobs=jobs,
            told=lambda cell, what: told(f"{cell.name}: {what}"),
            stop=stop,
            here=plan.scale.minutes < QUICK and jobs == 1,
        )
        failed = {name: of.error for name, of in outcomes.items() if of.error is not None}
    # Another run may finish more of them meanwhile: what is measured is what is finished now.
    done = {of.name: of.cell.is_finished for of in plan.cells}
    claims = []
    for claim in plan.paper.claims:
        if stop():
            missing = f"{len(plan.missing)} of {len(plan.cells)} runs"
            raise Interrupted(f"the same command goes on: {missing} are missing")
        told(f"measuring {claim.id}")
        trials = [of for of in plan.paper.trials_at(plan.scale.name) if of.claim == claim.id]
        claims.append(
            _told(claim, [_measured(of, plan.cells, done, measuring, failed) for of in trials])
        )
    claims += public_claims(plan.paper.public, plan.checkpoints, plan.out / PUBLIC, told)
    return PaperResult(
        paper={
            "id": plan.paper.id,
            "title": plan.paper.title,
            "arxiv": plan.paper.arxiv,
            "status": plan.paper.status,
        },
        scale={
            "name": plan.scale.name,
            "base": plan.scale.base,
            "seeds": list(plan.seeds),
            "cells": done,
            "failed": failed,
        },
        claims=tuple(claims),
        provenance=made_now(**_made_by(plan.cells)),
    )


def _made_by(cells: Sequence[PaperCell]) -> dict[str, Any]:
    """On what the finished cells were trained, and how long that took in all."""
    results = [read_json(of.cell.result) for of in cells if of.cell.is_finished]
    return {
        "versions": results[0]["versions"] if results else {},
        "devices": list({json.dumps(of["device"]): of["device"] for of in results}.values()),
        "num_steps": sum(of["steps"] for of in results),
        "seconds_train": sum(of["seconds"]["train"] for of in results),
    }


def _told(claim: Claim, trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    why = claim.untestable
    if why is None and not trials:
        why = "no trial of it at this scale"
    return {
        "id": claim.id,
        "source": claim.source,
        "place": claim.place,
        "claim": claim.claim,
        "expected": dict(claim.expected),
        "unit": claim.unit,
        "note": claim.note,
        "why": why,
        "trials": list(trials),
    }


def _measured(
    trial: Trial,
    cells: Sequence[PaperCell],
    done: Mapping[str, bool],
    measuring: Measuring,
    failed: dict[str, str],
) -> dict[str, Any]:
    by_arm = {arm: [cell for cell in cells if cell.arm.name == arm] for arm in trial.arms}
    missing = [cell.name for of in by_arm.values() for cell in of if not done[cell.name]]
    trained = {arm: [cell for cell in of if done[cell.name]] for arm, of in by_arm.items()}
    try:
        values = measuring.values(trial, trained)
    except TrimtabError as error:
        failed[f"{trial.claim}: {trial.measure} of {trial.arm}"] = str(error)
        values = {"values": {}}
    return {
        "about": trial.describe(),
        "measure": trial.measure,
        "settings": dict(trial.settings),
        "arms": list(trial.arms),
        "unit": MEASURES[trial.measure].unit_of(trial.settings, is_difference=bool(trial.than)),
        "bound": dict(trial.bound),
        "premise": trial.premise,
        "missing": missing,
        **values,
    }
