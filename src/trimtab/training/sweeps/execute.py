"""`run_sweep`: run the cells that a plan has left to run, and write one tidy table of all.

A cell is `python -m trimtab train CELL/run.json` in a process of its own, so that one that fails
takes no other with it (but for those that need it); what it prints is kept in `CELL/log.txt`.
Children have sessions of their own, so that Ctrl-C reaches this process alone. They are asked to
stop by SIGTERM, since a shell that starts a sweep in the background has SIGINT ignored, and end
with this process, whatever ends it.

The table is read from the folders of the cells, so it is the same for a sweep that was stopped and
resumed, but for times and memory.
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
        "arms": _arm_rows(rows),
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


def _arm_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
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


LOG = "log.txt"
"""What the process of a cell said, in the folder of the cell."""

POLL_SECONDS = 0.05

Told = Callable[[Cell, str], None]
"""Is told what happens to a cell, in a few words."""


@dataclass
class _Running:
    cell: Cell
    process: subprocess.Popen[bytes]
    started: float
    num_steps: int

    def kept_more(self) -> bool:
        """Whether a later step than before has been kept."""
        before, self.num_steps = self.num_steps, _num_steps_kept(self.cell)
        return self.num_steps > before


def num_processors() -> int:
    """Processors that this process may use; fewer if the user has said so to OpenMP."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdigit() and int(said):
        return int(said)
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def run_cells(
    cells: Sequence[Cell],
    *,
    jobs: int,
    told: Told,
    stop: Callable[[], bool],
    here: bool = False,
) -> dict[str, Outcome]:
    """Run cells, some at a time, in their order; each after those that it needs.

    Args:
        cells: None of them finished.
        jobs: Processes at a time. With several, each has its share of the processors.
        told: Told when a cell starts and ends.
        stop: Whether to stop: what runs then finishes its step and keeps it, and nothing starts.
        here: Run them in this process, one at a time: where a process that loads torch first would
            take longer than they do.

    Returns:
        Name of the cell -> what became of it. Cells that were not started are not in it.
    """
    waiting, running = list(cells), list[_Running]()
    outcomes: dict[str, Outcome] = {}
    stopping = False
    environment = dict(os.environ)
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, num_processors() // jobs))

    def end(cell: Cell, outcome: Outcome, started: float) -> None:
        outcomes[cell.name] = outcome
        told(cell, f"{outcome.error or outcome.status} ({monotonic() - started:.0f} s)")

    try:
        while running or (waiting and not stopping):
            if not stopping and stop():
                stopping = True
                for of in running:
                    of.process.terminate()
            for cell in list(waiting) if not stopping else ():
                begun = monotonic()
                pending = {of.name for of in (*waiting, *(one.cell for one in running))}
                needed = [of.name for of in cell.needs if not of.is_finished]
                if bad := [name for name in needed if name not in pending]:
                    waiting.remove(cell)
                    end(cell, Outcome("failed", f"needs {', '.join(bad)}"), begun)
                elif not needed and len(running) < jobs:
                    waiting.remove(cell)
                    told(cell, "started")
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
                if of.kept_more():
                    told(of.cell, f"{of.num_steps:,} steps done and kept")
            for of in [of for of in running if of.process.poll() is not None]:
                running.remove(of)
                with of.process:  # closes the pipe to it
                    pass
                end(of.cell, _outcome(of, stopping), of.started)
            if running:
                sleep(POLL_SECONDS)
    finally:
        for of in running:  # only if this process is to end at once
            with of.process:
                of.process.kill()
    return outcomes


def _start(cell: Cell, environment: Mapping[str, str]) -> _Running:
    path = cell.folder / LOG
    path.unlink(missing_ok=True)  # what a process of a killed sweep still says is not for this one
    with path.open("xb") as log:
        run = str(cell.folder / RUN)
        process = start_trimtab(["train", run], log, environment)
    return _Running(cell, process, monotonic(), _num_steps_kept(cell))


def _num_steps_kept(cell: Cell) -> int:
    """Step of the last whole checkpoint of a run: the Trainer writes its state last."""
    states = (cell.out / CHECKPOINTS).glob("checkpoint-*/trainer_state.json")
    steps = (state.parent.name.rpartition("-")[2] for state in states)
    return max((int(step) for step in steps if step.isdigit()), default=0)


def _outcome(of: _Running, stopping: bool) -> Outcome:
    if of.cell.is_finished:
        return Outcome("finished")
    if stopping:
        return Outcome("interrupted")
    return Outcome("failed", _last_line(of.cell.folder / LOG, of.process.returncode))


def _last_line(log: Path, code: int) -> str:
    """The line in which a command says why it ended; or, if it could not, how it ended."""
    if code < 0:
        memory = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"ended by {signal.Signals(-code).name}{memory}: see {log}"
    content = read_bytes(log, CheckpointError, limit=MAX_DATA_BYTES)
    lines = content.decode("utf-8", errors="replace").splitlines()
    said = [line for line in lines if line.strip()]
    return said[-1].removeprefix("trimtab: ") if said else f"exit code {code}"


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
        write_text(output / CSV, as_csv(table), force=True)
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
