"""`run_sweep`: run what a plan has left to run, and write its table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trimtab.errors import OutputExistsError, TrimtabError
from trimtab.outputs import lock, new_file
from trimtab.processes import Interrupted
from trimtab.training.folders import write_json
from trimtab.training.sweeps.cells import Outcome
from trimtab.training.sweeps.plan import Plan
from trimtab.training.sweeps.processes import Told, run_cells
from trimtab.training.sweeps.table import as_csv, sweep_table

__all__ = ["CSV", "JSON", "run_sweep"]

CSV = "table.csv"
JSON = "table.json"
LOCK = ".lock"


def run_sweep(
    plan: Plan,
    *,
    jobs: int = 1,
    told: Told,
    stop: Callable[[], bool] = lambda: False,
    command: str | None = None,
) -> dict[str, Any]:
    """Run every cell that is not finished; then ask the models, and write the table.

    A sweep that was stopped goes on with the same call. Cells that failed are tried again.

    Args:
        plan: From `plan`.
        jobs: Cells that run at a time.
        told: Told what happens to a cell.
        stop: Whether to stop.
        command: What was typed, for the provenance.

    Returns:
        The content of `table.json`.

    Raises:
        OutputExistsError: Another process runs it.
        Interrupted: It was asked to stop; the table has what there is.
    """
    output = plan.sweep.output
    output.mkdir(parents=True, exist_ok=True)
    with lock(output / LOCK) as mine:
        if not mine:
            raise OutputExistsError(f"another process runs the sweep in {output}: wait for its end")
        missing = [of.cell for of in plan.cells if not of.is_finished]
        outcomes = run_cells(missing, jobs=jobs, told=told, stop=stop)
        answers = _answers(plan, outcomes, told, stop)
        table = sweep_table(plan, outcomes, answers)
        table["provenance"]["command"] = command
        write_json(output / JSON, table)
        with new_file(output / CSV, force=True) as file:
            file.write(as_csv(table).encode())
    if stop():
        num = sum(of.is_finished for of in plan.cells)
        raise Interrupted(
            f"the same command goes on: {num} of {len(plan.cells)} cells are finished, and the "
            "others keep their last checkpoint"
        )
    return table


def _answers(
    plan: Plan, outcomes: dict[str, Outcome], told: Told, stop: Callable[[], bool]
) -> dict[str, dict[str, Any]]:
    """Name of each finished cell -> what its model answers; of none, if nothing is asked.

    What goes wrong is put into the outcomes: the others are asked all the same.
    """
    answers: dict[str, dict[str, Any]] = {}
    for of in plan.cells:
        if plan.examiner is None or stop():
            break
        if of.is_finished:
            if not plan.examiner.has_asked(of.cell):
                told(of.cell, "asking")
            try:
                answers[of.cell.name] = plan.examiner.ask(of.cell)
            except TrimtabError as error:
                outcomes[of.cell.name] = Outcome("finished", f"cannot be asked: {error}")
    return answers
