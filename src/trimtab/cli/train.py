"""`trimtab train RUN.toml` and `trimtab sweep SWEEP.toml`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trimtab.cli import options
from trimtab.cli.terminal import say, stop_asked
from trimtab.errors import TrimtabError
from trimtab.processes import is_child

if TYPE_CHECKING:
    from trimtab.training.sweeps.cell import Cell


@click.command(
    "train",
    cls=options.Command,
    short_help="Train a model, or only a mask of it, from a run file.",
    epilog="Example: trimtab train examples/grpo.toml --set trainer.learning_rate=1e-5",
)
@click.argument("run", type=options.PATH, metavar="RUN.toml")
@options.set_option("Set a key of the run file, with its table; may be repeated.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything, print an overview and the settings, and stop.",
)
def train(run: Path, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Train a model from a file, by SFT, RFT, DPO, ORPO, KTO, SimPO, PPO, GRPO, RLOO or PRIME.

    The whole model is trained, or only a mask of it. It can be interrupted at any time: the current
    step is finished and saved, and the same command resumes from there.
    """
    from trimtab.elements.counts import percent
    from trimtab.progress import progress_bars
    from trimtab.training.runs.execute import MODEL, RESULT, execute, overview
    from trimtab.training.runs.overrides import read_settings
    from trimtab.training.runs.prepare import prepare

    prepared = prepare(read_settings(run, overrides))
    if dry_run:
        say(overview(prepared), err=True)
        say(json.dumps(prepared.describe(), indent=1))
        return
    with progress_bars() as bars, stop_asked("finishing the step and saving it") as stop:
        result = execute(prepared, bars, stop=stop, waits=is_child())
    update = result["update"]
    changed = percent(update["num_changed"], update["num_elements"])
    say(
        f"{result['steps']:,} steps in {result['seconds']['train']:.1f} s: {changed} of "
        f"{update['num_elements']:,} elements changed (criterion: bits).\n"
        f"The model is in {prepared.output / MODEL}, all figures in {prepared.output / RESULT}."
    )
    for note in result["notes"]:
        say(note)


@click.command(
    "sweep",
    cls=options.Command,
    short_help="Run a grid of training runs, and collect them in one table.",
    epilog="Example: trimtab sweep examples/sweep.toml --jobs 2",
)
@click.argument("sweep", type=options.PATH, metavar="SWEEP.toml")
@click.option("--dry-run", is_flag=True, help="Check every cell, print the plan, and stop.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    help="Number of cells that run at a time; they share the processors.",
)
@options.json_option
def sweep(sweep: Path, dry_run: bool, jobs: int, as_json: bool) -> None:
    """Run a grid of training runs from a file, and collect their results in one table.

    Every cell is checked before any of them trains, and the settings in which the arms differ are
    printed: those asked for, those that follow from them, and those that nobody asked for.

    It can be interrupted at any time: the same command resumes and keeps the finished cells.
    """
    from trimtab.report.sweep import plan_document, sweep_document
    from trimtab.report.terminal import render_text
    from trimtab.training.sweeps.execute import run_sweep
    from trimtab.training.sweeps.plan import plan
    from trimtab.training.sweeps.settings import SweepSettings

    planned = plan(SweepSettings.read(sweep))
    data = planned.to_dict()
    text = render_text(plan_document(data))
    if dry_run:
        say(json.dumps(data, indent=1) if as_json else text)
        return
    say(f"{text}\n", err=True)
    names = [planned_cell.cell.name for planned_cell in planned.cells]

    def report(cell: Cell, event: str) -> None:
        number = names.index(cell.name) + 1
        say(f"[{number}/{len(names)}] {cell.label}: {event}", err=True)

    with stop_asked("finishing the steps under way and saving them") as stop:
        table = run_sweep(
            planned, jobs=jobs, notify=report, stop=stop, command=options.command_line()
        )
    if as_json:
        say(json.dumps(table, indent=1))
    else:
        say(render_text(sweep_document(table), styled=sys.stdout.isatty()))
        say(f"\nAll figures are in {planned.sweep.output}: table.csv, table.json.")
    failed = [row for row in table["cells"] if row["status"] != "finished" or row["error"]]
    if failed:
        first = failed[0]
        raise TrimtabError(
            f"{len(failed)} of {len(names)} cells failed, the first of them {first['label']}: "
            f"{first['error']}"
        )
