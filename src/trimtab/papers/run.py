"""`run_paper`: train what is missing, measure it, and set it against what the paper says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.papers.cells import Cell, cells_of
from trimtab.papers.library import Claim, Paper, Trial
from trimtab.papers.measures import MEASURES
from trimtab.papers.measuring import Command, Measuring
from trimtab.papers.public import Checkpoints, public_claims
from trimtab.papers.results import PaperResult
from trimtab.papers.scale import Scale
from trimtab.papers.training import prepare, train_cells
from trimtab.results.records import made_now

__all__ = ["PaperPlan", "plan_paper", "run_paper"]


PUBLIC = "public"
"""Folder of the comparisons of published checkpoints, in that of all runs."""


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
    cells: Sequence[Cell]
    checkpoints: Checkpoints
    out: Path

    @property
    def missing(self) -> list[Cell]:
        """Cells that are yet to be trained."""
        return [cell for cell in self.cells if not cell.is_done]

    @property
    def minutes(self) -> float:
        """What that takes, roughly, on one CPU core."""
        return sum(cell.minutes for cell in self.missing)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "paper": self.paper.id,
            "scale": self.scale.name,
            "seeds": list(self.seeds),
            "cells": {cell.name: cell.is_done for cell in self.cells},
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
    command: Command,
    *,
    jobs: int = 1,
    trains: bool = True,
    told: Callable[[str], None] = lambda _: None,
) -> PaperResult:
    """Train the cells that are missing, measure all, and say what follows.

    Cells that fail are left out, and told; the others are measured all the same.

    Args:
        plan: From `plan_paper`.
        command: Runs `trimtab`.
        jobs: Cells that train at a time.
        trains: Whether to train at all; without, what is missing is said to be not yet run.
        told: Told what happens, in a few words.

    Raises:
        OutputExistsError: A cell is there and is of another run, or of other data.
        TrimtabError: The base cannot be made.
    """
    measuring = Measuring(command)
    failed: dict[str, str] = {}
    for cell in plan.cells:
        cell.check()
    if trains and plan.missing:
        prepare(plan.cells)
        failed = train_cells(plan.cells, measuring, jobs=jobs, told=told)
    # Another run may finish more of them meanwhile: what is measured is what is finished now.
    done = {cell.name: cell.is_done for cell in plan.cells}
    claims = []
    for claim in plan.paper.claims:
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


def _made_by(cells: Sequence[Cell]) -> dict[str, Any]:
    """On what the finished cells were trained, and how long that took in all."""
    results = [json.loads(of.result.read_text("utf-8")) for of in cells if of.is_done]
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
    cells: Sequence[Cell],
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
