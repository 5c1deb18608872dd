"""`run_sweep`: run the unfinished cells of a plan, and write one table of all cells.

A cell is `python -m trimtab train CELL/run.json` in its own process, so that a failure only affects
cells that need it; its output is in `CELL/log.txt`. Children have their own sessions, so that
Ctrl-C only reaches this process; they are stopped by SIGTERM, because a sweep in the background
ignores SIGINT, and end when this process ends for any reason.
"""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from trimtab.errors import CheckpointError, OutputExistsError, TrimtabError
from trimtab.inputs import MAX_DATA_BYTES, read_bytes
from trimtab.outputs import flat, lock, write_text
from trimtab.processes import Interrupted, start_trimtab
from trimtab.progress import progress_bars
from trimtab.results.records import made_now
from trimtab.results.statistics import CONFIDENCE, over_seeds
from trimtab.training import runtime
from trimtab.training.folders import write_json
from trimtab.training.runs.execute import execute
from trimtab.training.runs.prepare import prepare
from trimtab.training.runs.trainer_arguments import CHECKPOINTS
from trimtab.training.sweeps.cell import MEASURED, RUN, Cell, Outcome, measured
from trimtab.training.sweeps.plan import Plan, PlannedCell

FORMAT = "trimtab.sweep"
FORMAT_VERSION = 1
"""History: 1, the first."""

METRICS = ("sparsity", "loss_last", "reward_last", "accuracy")
"""Columns that are averaged over the seeds of an arm."""


def sweep_table(
    plan: Plan, outcomes: Mapping[str, Outcome], answers: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Collect the results of all cells of a sweep, from their folders.

    Args:
        plan: The sweep.
        outcomes: Name of a cell -> how it ended, for the cells that were run by this call.
        answers: Name of a cell -> answers of its model.

    Returns:
        The content of `table.json`.
    """
    keys = dict.fromkeys(key for planned in plan.cells for key in planned.cell.settings)
    rows, masks = [], plan.mask_names()
    for planned in plan.cells:
        row = _row(planned, tuple(keys), plan.sweep.output)
        row["mask_name"] = masks[planned.cell.name]
        if planned.is_finished:
            row |= measured(planned.cell)
        if planned.cell.name in outcomes:
            row |= asdict(outcomes[planned.cell.name])
        if planned.cell.name in answers:
            row |= _answered(answers[planned.cell.name])
        rows.append(row)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "sweep_file": str(plan.sweep.path),
        "swept": [_column(key) for key in keys],
        "columns": list(rows[0]),
        "cells": rows,
        "arms": _arm_rows(rows, {one.cell.arm: one.cell.arm_label for one in plan.cells}),
        "confidence": CONFIDENCE,
        "plan": plan.to_dict(),
        "provenance": made_now(versions=runtime.versions()),
    }


def as_csv(table: Mapping[str, Any]) -> str:
    """The rows as CSV; unknown values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, table["columns"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table["cells"])
    return text.getvalue()


def _row(planned: PlannedCell, keys: Sequence[str], sweep: Path) -> dict[str, Any]:
    """The row of a cell before it runs; other columns are None."""
    cell, settings, work = planned.cell, planned.settings, planned.work
    return {
        "cell": cell.name,
        "arm": cell.arm,
        **{_column(key): _shown(_value(planned, key)) for key in keys},
        "label": cell.label,
        "status": "finished" if planned.is_finished else "missing",
        "error": None,
        "algorithm": settings["algorithm"],
        "run_seed": settings["seed"],
        "peak_learning_rate": settings["trainer.learning_rate"],
        "sequences_per_step": work["sequences"],
        "mask": planned.description["mask"]["source"],
        "mask_name": None,
        **dict.fromkeys((*MEASURED, *ANSWERED)),
        "folder": cell.folder.relative_to(sweep).as_posix(),
    }


ANSWERED = ("num_questions", "num_right", "accuracy")
"""Columns that are known once a model has been evaluated."""

COLUMNS = (
    *("cell", "arm", "label", "status", "error", "algorithm", "run_seed", "peak_learning_rate"),
    *("sequences_per_step", "mask", "mask_name", *MEASURED, *ANSWERED, "folder"),
)
"""All columns except those of the swept keys, which follow the first two."""


def _answered(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    answers = evaluation["models"][0]["answers"]
    return {
        "num_questions": answers["num_questions"],
        "num_right": answers["num_greedy_correct"],
        "accuracy": answers["greedy_accuracy"],
    }


def _value(planned: PlannedCell, key: str) -> Any:
    """The value of a cell for a key, from the sweep or else from its run file."""
    if key in planned.cell.settings:
        return planned.cell.settings[key]
    return flat(planned.cell.content).get(key)


def _column(key: str) -> str:
    """The column of a key; factors without their prefix."""
    return key.removeprefix("factors.")


def _shown(value: Any) -> Any:
    """A value for the table; lists become text."""
    return value if isinstance(value, str | int | float | None) else str(value)


def _arm_rows(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each arm with the means over its seeds; `labels` has its name for readers."""
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
                "label": labels[name],
                "num_cells": len(of_arm),
                "num_finished": len(finished),
                "criterion": finished[0]["criterion"] if finished else None,
                "saved_dtype": finished[0]["saved_dtype"] if finished else None,
                **{
                    metric: over_seeds(values) if values else None
                    for metric, values in known.items()
                },
            }
        )
    return arms


LOG = "log.txt"
"""Output of the process of a cell, in the folder of the cell."""

POLL_SECONDS = 0.05

Notify = Callable[[Cell, str], None]
"""Called with a cell and a short message when its state changes."""


@dataclass
class _Running:
    cell: Cell
    process: subprocess.Popen[bytes]
    started: float
    num_steps: int

    def has_saved_more(self) -> bool:
        """Whether there is a later checkpoint than at the last call."""
        before, self.num_steps = self.num_steps, _num_saved_steps(self.cell)
        return self.num_steps > before


def num_processors() -> int:
    """Number of usable processors, or OMP_NUM_THREADS if it is set."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if limit.isdigit() and int(limit):
        return int(limit)
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def run_cells(
    cells: Sequence[Cell],
    *,
    jobs: int,
    notify: Notify,
    stop: Callable[[], bool],
    here: bool = False,
) -> dict[str, Outcome]:
    """Run cells in order, several at a time; each after those that it needs.

    Args:
        cells: Unfinished cells.
        jobs: Number of parallel processes, which share the processors equally.
        notify: Called when a cell starts and ends.
        stop: Returns whether to stop: running cells then finish and save their step.
        here: Run the cells in this process, one at a time; for runs that are shorter than loading
            torch.

    Returns:
        Name of the cell -> how it ended; without cells that were not started.
    """
    waiting, running = list(cells), list[_Running]()
    outcomes: dict[str, Outcome] = {}
    stopping = False
    environment = dict(os.environ)
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, num_processors() // jobs))

    def end(cell: Cell, outcome: Outcome, started: float) -> None:
        outcomes[cell.name] = outcome
        notify(cell, f"{outcome.error or outcome.status} ({monotonic() - started:.0f} s)")

    try:
        while running or (waiting and not stopping):
            if not stopping and stop():
                stopping = True
                for of in running:
                    of.process.terminate()
            for cell in list(waiting) if not stopping else ():
                begun = monotonic()
                pending = {of.name for of in (*waiting, *(one.cell for one in running))}
                needed = [of for of in cell.needs if not of.is_finished]
                if bad := [of.label for of in needed if of.name not in pending]:
                    waiting.remove(cell)
                    end(cell, Outcome("failed", f"needs {', '.join(bad)}"), begun)
                elif not needed and len(running) < jobs:
                    waiting.remove(cell)
                    notify(cell, "started")
                    try:
                        cell.write()
                        if not here:
                            running.append(_start(cell, environment))
                            continue
                        with progress_bars() as bars:
                            execute(prepare(cell.file()), bars, stop=stop)
                        end(cell, Outcome("finished"), begun)
                    except Interrupted:
                        stopping = True
                        end(cell, Outcome("interrupted"), begun)
                        break
                    except TrimtabError as error:
                        end(cell, Outcome("failed", str(error)), begun)
            for of in running:
                if of.has_saved_more():
                    notify(of.cell, f"{of.num_steps:,} steps done and saved")
            for of in [of for of in running if of.process.poll() is not None]:
                running.remove(of)
                with of.process:  # closes the pipe to it
                    pass
                end(of.cell, _outcome(of, stopping), of.started)
            if running:
                sleep(POLL_SECONDS)
    finally:
        for of in running:  # only if this process is about to end
            with of.process:
                of.process.kill()
    return outcomes


def _start(cell: Cell, environment: Mapping[str, str]) -> _Running:
    path = cell.folder / LOG
    path.unlink(missing_ok=True)  # a process of a killed sweep may still write to the old file
    with path.open("xb") as log:
        run = str(cell.folder / RUN)
        process = start_trimtab(["train", run], log, environment)
    return _Running(cell, process, monotonic(), _num_saved_steps(cell))


def _num_saved_steps(cell: Cell) -> int:
    """Step of the last complete checkpoint of a run: the Trainer writes its state last."""
    states = (cell.out / CHECKPOINTS).glob("checkpoint-*/trainer_state.json")
    steps = (state.parent.name.rpartition("-")[2] for state in states)
    return max((int(step) for step in steps if step.isdigit()), default=0)


def _outcome(run: _Running, stopping: bool) -> Outcome:
    if run.cell.is_finished:
        return Outcome("finished")
    if stopping:
        return Outcome("interrupted")
    return Outcome("failed", _last_line(run.cell.folder / LOG, run.process.returncode))


def _last_line(log: Path, code: int) -> str:
    """The last line of the log, which says why the command ended; or else its exit status."""
    if code < 0:
        memory = ", perhaps out of memory" if -code == signal.SIGKILL else ""
        return f"ended by {signal.Signals(-code).name}{memory}: see {log}"
    content = read_bytes(log, CheckpointError, limit=MAX_DATA_BYTES)
    lines = content.decode("utf-8", errors="replace").splitlines()
    printed = [line for line in lines if line.strip()]
    return printed[-1].removeprefix("trimtab: ") if printed else f"exit code {code}"


CSV = "table.csv"
JSON = "table.json"
LOCK = ".lock"


def run_sweep(
    plan: Plan,
    *,
    jobs: int = 1,
    notify: Notify,
    stop: Callable[[], bool] = lambda: False,
    command: str | None = None,
) -> dict[str, Any]:
    """Run every unfinished cell, evaluate the models, and write the table.

    The same call resumes an interrupted sweep, and retries cells that failed.

    Args:
        plan: From `plan`.
        jobs: Number of cells that run in parallel.
        notify: Called when the state of a cell changes.
        stop: Returns whether to stop.
        command: The command line, for the provenance.

    Returns:
        The content of `table.json`.

    Raises:
        OutputExistsError: Another process runs it.
        Interrupted: `stop` returned True; the table has the finished cells.
    """
    output = plan.sweep.output
    output.mkdir(parents=True, exist_ok=True)
    with lock(output / LOCK) as is_locked:
        if not is_locked:
            raise OutputExistsError(
                f"another process runs the sweep in {output}: wait for it to end"
            )
        missing = [planned.cell for planned in plan.cells if not planned.is_finished]
        outcomes = run_cells(missing, jobs=jobs, notify=notify, stop=stop)
        answers = _answers(plan, outcomes, notify, stop)
        table = sweep_table(plan, outcomes, answers)
        table["provenance"]["command"] = command
        write_json(output / JSON, table)
        write_text(output / CSV, as_csv(table), force=True)
    if stop():
        num = sum(planned.is_finished for planned in plan.cells)
        raise Interrupted(
            f"the same command resumes: {num} of {len(plan.cells)} cells are finished, and the "
            "others keep their last checkpoint"
        )
    return table


def _answers(
    plan: Plan, outcomes: dict[str, Outcome], notify: Notify, stop: Callable[[], bool]
) -> dict[str, dict[str, Any]]:
    """Evaluate the finished cells, by name; failures are recorded in `outcomes`."""
    answers: dict[str, dict[str, Any]] = {}
    for planned in plan.cells:
        if plan.examiner is None or stop():
            break
        if planned.is_finished:
            if not plan.examiner.has_asked(planned.cell):
                notify(planned.cell, "evaluating")
            try:
                answers[planned.cell.name] = plan.examiner.ask(planned.cell)
            except TrimtabError as error:
                outcomes[planned.cell.name] = Outcome("finished", f"cannot be evaluated: {error}")
    return answers
