"""One tidy table of a sweep: a row for each cell, a column for each thing known of it.

Everything is read from the folders of the cells, so the table of a sweep that was stopped and went
on is that of one that was not, but for times and memory.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trimtab.outputs import flat
from trimtab.results.records import made_now
from trimtab.results.statistics import CONFIDENCE, over_seeds
from trimtab.training import runtime
from trimtab.training.sweeps.cell import MEASURED, Outcome, measured
from trimtab.training.sweeps.plan import Plan, PlannedCell

FORMAT = "trimtab.sweep"
FORMAT_VERSION = 1
"""History: 1, the first."""

METRICS = ("sparsity", "loss_last", "reward_last", "accuracy")
"""Columns that are averaged over the seeds of an arm."""


def sweep_table(
    plan: Plan, outcomes: Mapping[str, Outcome], answers: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """All that is known of the cells of a sweep.

    Args:
        plan: The sweep.
        outcomes: Name of a cell -> what became of it, for those that were run just now.
        answers: Name of a cell -> what its model answered.

    Returns:
        The content of `table.json`.
    """
    swept = dict.fromkeys(key for of in plan.cells for key in of.cell.settings)
    rows = []
    for of in plan.cells:
        row = _row(of, tuple(swept), plan.sweep.output)
        if of.is_finished:
            row |= measured(of.cell)
        if of.cell.name in outcomes:
            row |= asdict(outcomes[of.cell.name])
        if of.cell.name in answers:
            row |= _answered(answers[of.cell.name])
        rows.append(row)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "sweep_file": str(plan.sweep.path),
        "swept": [_column(key) for key in swept],
        "columns": list(rows[0]),
        "cells": rows,
        "arms": _arms(rows),
        "confidence": CONFIDENCE,
        "plan": plan.to_dict(),
        "provenance": made_now(versions=runtime.versions()),
    }


def as_csv(table: Mapping[str, Any]) -> str:
    """The rows as CSV: what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, table["columns"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table["cells"])
    return text.getvalue()


def _row(planned: PlannedCell, swept: Sequence[str], sweep: Path) -> dict[str, Any]:
    """What is known of a cell before it runs, with places for the rest."""
    cell, settings, work = planned.cell, planned.settings, planned.work
    return {
        "cell": cell.name,
        "arm": cell.arm,
        **{_column(key): _shown(_value(planned, key)) for key in swept},
        "status": "finished" if planned.is_finished else "missing",
        "error": None,
        "algorithm": settings["algorithm"],
        "run_seed": settings["seed"],
        "peak_learning_rate": settings["trainer.learning_rate"],
        "sequences_per_step": work["sequences"],
        "mask": planned.description["mask"]["source"],
        **dict.fromkeys((*MEASURED, *ANSWERED)),
        "folder": cell.folder.relative_to(sweep).as_posix(),
    }


ANSWERED = ("num_questions", "num_right", "accuracy")
"""Columns that are known when a model has been asked."""

COLUMNS = (
    *("cell", "arm", "status", "error", "algorithm", "run_seed", "peak_learning_rate"),
    *("sequences_per_step", "mask", *MEASURED, *ANSWERED, "folder"),
)
"""All columns but those of the keys that are swept, which come after the first two."""


def _answered(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    answers = evaluation["models"][0]["answers"]
    return {
        "num_questions": answers["num_questions"],
        "num_right": answers["num_greedy_correct"],
        "accuracy": answers["greedy_accuracy"],
    }


def _value(planned: PlannedCell, key: str) -> Any:
    """What a cell has for a key that the sweep sets: what the sweep says, or its run file."""
    if key in planned.cell.settings:
        return planned.cell.settings[key]
    return flat(planned.cell.content).get(key)


def _column(key: str) -> str:
    """A key as the sweep file has it: factors by their name."""
    return key.removeprefix("factors.")


def _shown(value: Any) -> Any:
    """A value as a cell of a table holds it: lists as text."""
    return value if isinstance(value, str | int | float | None) else str(value)


def _arms(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each arm with what its seeds have in common."""
    arms = []
    for name in dict.fromkeys(row["arm"] for row in rows):
        of_arm = [row for row in rows if row["arm"] == name]
        finished = [row for row in of_arm if row["status"] == "finished"]
        known = {
            metric: [row[metric] for row in finished if row[metric] is not None]
            for metric in METRICS
        }
        arms.append(
            {
                "arm": name,
                "num_cells": len(of_arm),
                "num_finished": len(finished),
                "criterion": finished[0]["criterion"] if finished else None,
                "saved_dtype": finished[0]["saved_dtype"] if finished else None,
                **{metric: over_seeds(of) if of else None for metric, of in known.items()},
            }
        )
    return arms
