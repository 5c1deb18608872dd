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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.papers.bases import make_base
from trimtab.papers.library import BASE, Claim, Paper, PaperCell, Scale, Trial, cells_of
from trimtab.papers.measures import MEASURES
from trimtab.papers.measuring import Measuring
from trimtab.papers.public import Checkpoints, public_claims
from trimtab.papers.results import PaperResult
from trimtab.processes import Interrupted
from trimtab.results.records import made_now
from trimtab.training.folders import read_json
from trimtab.training.runs.base_model import BaseModel
from trimtab.training.sweeps.execute import run_cells
from trimtab.training.sweeps.plan import checked

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
