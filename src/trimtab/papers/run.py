"""`run_paper`: train missing cells, measure them, and compare with the claims of the paper.

::

    OUT/small/base/                     the base of all cells
    OUT/small/cells/grpo/seed-0/        a cell of a sweep: `trimtab train run.json` trains it
        comparison.json, evaluation.json, …
    OUT/small/overlaps/                 overlaps of the masks of two cells
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


def _compare(cell: PaperCell, *, rank: bool = False, geometry: bool = False) -> Any:
    # fp32 weights are compared in fp32, which represents every value of the base.
    cast = "fp32" if cell.is_saved_as_fp32 else None
    return compare(
        cell.cell.starts_from(), cell.cell.model, cast=cast, rank=rank, geometry=geometry
    )


def _evaluate(cell: PaperCell) -> Any:
    table = cell.scale.evaluate
    judge = RewardTable(kind="regex", pattern=table.pattern)
    questions = file_questions(cell.questions, reward_of(judge, Path()))
    return evaluate(
        [str(cell.base), str(cell.cell.model)],
        questions=replace(questions, max_completion_length=table.max_tokens),
        num_samples=table.samples,
        seed=cell.seed,
    )


def _identity(cell: PaperCell) -> Any:
    assert cell.cell.of is not None, "a run in a mask"
    return identity(cell.base, cell.cell.of.model, cell.cell.model, cell.cell.mask_file)


SOURCES: Mapping[str, Callable[[PaperCell], Any]] = {
    "comparison": _compare,
    "rank": lambda cell: _compare(cell, rank=True),
    "geometry": lambda cell: _compare(cell, geometry=True),
    "evaluation": _evaluate,
    "identity": _identity,
    "trajectory": lambda cell: read_tracked(cell.cell.out / "updates.trimtab"),
}
"""Name of a result file -> function that computes the result."""


@dataclass(frozen=True)
class Measuring:
    """Reads figures from result files, and computes missing ones."""

    _read: dict[Path, Any] = field(default_factory=dict, repr=False)

    def values(self, trial: Trial, cells: Mapping[str, Sequence[PaperCell]]) -> dict[str, Any]:
        """The figures of a trial.

        Args:
            trial: The trial.
            cells: Arm -> its trained cells, one per seed.

        Returns:
            `values` and, if another arm is subtracted, `other_values`: seed -> figure; for an
            overlap, pair of seeds -> figure.

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
            str(cell.seed): _figure(trial, self._source(cell, MEASURES[trial.measure].source), cell)
            for cell in cells
        }

    def _overlaps(self, trial: Trial, cells: Mapping[str, Sequence[PaperCell]]) -> dict[str, float]:
        """Overlaps of all pairs of seeds of one arm; or of the same seeds of two arms."""
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

    def _source(self, cell: PaperCell, source: str) -> Any:
        """The content of a result file of a trained cell, computed if it is missing."""
        if source == "result":
            return self._json(cell.cell.result)
        return self._json(cell.cell.folder / f"{source}.json", lambda: SOURCES[source](cell))

    def _overlap(self, one: PaperCell, two: PaperCell) -> Any:
        names = (cell.name.replace("/seed-", "-") for cell in (one, two))
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


def _figure(trial: Trial, data: Any, cell: PaperCell) -> float:
    measure = MEASURES[trial.measure]
    try:
        return measure.read(data, **trial.settings)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise TrimtabError(
            f"{cell.name}: no {trial.measure} can be read from its {measure.source} ({error!r})"
        ) from None


PUBLIC = "public"
"""Folder of the comparisons of published checkpoints, in the folder of all runs."""

QUICK = 1.0
"""Runs below this number of minutes share one process, since loading torch takes longer."""


@dataclass(frozen=True)
class PaperPlan:
    """What `run_paper` would do.

    Attributes:
        paper: The paper.
        scale: The scale of its runs.
        seeds: All seeds of its cells.
        cells: All cells that it needs.
        checkpoints: Published checkpoints; others are not measured.
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
        """Cells that are not trained yet."""
        return [cell for cell in self.cells if not cell.cell.is_finished]

    @property
    def minutes(self) -> float:
        """Approximate duration of the missing cells on one CPU core."""
        return sum(cell.minutes for cell in self.missing)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "paper": self.paper.id,
            "scale": self.scale.name,
            "seeds": list(self.seeds),
            "cells": {cell.name: cell.cell.is_finished for cell in self.cells},
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
    """Plan a run of a paper.

    Args:
        paper: The paper.
        scale: Name of one of its scales.
        out: Folder of all runs, which papers share.
        seeds: Seeds instead of those of the paper and the scale.
        checkpoints: Published checkpoints.

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
    notify: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> PaperResult:
    """Train the missing cells, measure all cells, and derive the verdicts.

    Cells that fail are reported and left out; the others are still measured.

    Args:
        plan: From `plan_paper`.
        jobs: Number of cells that train in parallel.
        trains: Whether to train; otherwise missing cells are reported as not yet run.
        notify: Called with progress messages.
        stop: Returns whether to stop.

    Raises:
        OutputExistsError: The folder of a cell has another run.
        TrimtabError: The base cannot be made.
        Interrupted: `stop` returned True.
    """
    measuring = Measuring()
    failed: dict[str, str] = {}
    if trains and plan.missing:
        make_base(plan.scale.base, plan.out / plan.scale.name / BASE)
    bases: dict[Path, BaseModel] = {}
    for cell in plan.cells:
        if cell.cell.out.exists():
            checked(cell.cell, bases)
    if trains:
        outcomes = run_cells(
            [missing.cell for missing in plan.missing],
            jobs=jobs,
            notify=lambda cell, message: notify(f"{cell.name}: {message}"),
            stop=stop,
            here=plan.scale.minutes < QUICK and jobs == 1,
        )
        failed = {name: o.error for name, o in outcomes.items() if o.error is not None}
    # Another process may finish more cells meanwhile; measure those that are finished now.
    done = {cell.name: cell.cell.is_finished for cell in plan.cells}
    claims = []
    for claim in plan.paper.claims:
        if stop():
            missing = f"{len(plan.missing)} of {len(plan.cells)} runs"
            raise Interrupted(f"the same command resumes: {missing} are missing")
        notify(f"measuring {claim.id}")
        trials = [t for t in plan.paper.trials_at(plan.scale.name) if t.claim == claim.id]
        claims.append(
            _recorded(
                claim, [_measured(trial, plan.cells, done, measuring, failed) for trial in trials]
            )
        )
    claims += public_claims(plan.paper.public, plan.checkpoints, plan.out / PUBLIC, notify)
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
    """Versions, devices, and total steps and seconds of the finished cells."""
    results = [read_json(entry.cell.result) for entry in cells if entry.cell.is_finished]
    return {
        "versions": results[0]["versions"] if results else {},
        "devices": list(
            {json.dumps(entry["device"]): entry["device"] for entry in results}.values()
        ),
        "num_steps": sum(entry["steps"] for entry in results),
        "seconds_train": sum(entry["seconds"]["train"] for entry in results),
    }


def _recorded(claim: Claim, trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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
    missing = [cell.name for some in by_arm.values() for cell in some if not done[cell.name]]
    trained = {arm: [cell for cell in some if done[cell.name]] for arm, some in by_arm.items()}
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
