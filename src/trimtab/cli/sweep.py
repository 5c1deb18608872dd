"""`trimtab sweep SWEEP.toml`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trimtab.cli.stopping import stop_asked
from trimtab.cli.terminal import say
from trimtab.errors import TrimtabError
from trimtab.report.sweep_plan import render_plan
from trimtab.report.sweep_table import render_sweep_table

if TYPE_CHECKING:
    from trimtab.training.sweeps.cell import Cell

__all__ = ["command"]


@click.command("sweep", epilog="Example: trimtab sweep examples/sweep.toml --jobs 2")
@click.argument("sweep", type=click.Path(path_type=Path), metavar="SWEEP.toml")
@click.option("--dry-run", is_flag=True, help="Check every cell, print the plan, and stop.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Cells that run at a time; they share the processors.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.pass_obj
def command(typed: str, sweep: Path, dry_run: bool, jobs: int, as_json: bool) -> None:
    """Run a grid of runs as a file says, and put what came of them into one table.

    Every cell is checked before any of them trains, and what the arms differ in is printed: what
    was asked for, what follows from it, and what nobody asked for.

    Interrupt it when you like: the same command goes on, and keeps the cells that are finished.
    """
    from trimtab.training.sweeps.execute import run_sweep
    from trimtab.training.sweeps.plan import plan
    from trimtab.training.sweeps.settings import SweepSettings

    planned = plan(SweepSettings.read(sweep))
    told = planned.to_dict()
    if dry_run:
        say(json.dumps(told, indent=1) if as_json else render_plan(told))
        return
    say(f"{render_plan(told)}\n", err=True)
    names = [of.cell.name for of in planned.cells]

    def tell(cell: Cell, what: str) -> None:
        number = names.index(cell.name) + 1
        say(f"[{number}/{len(names)}] {cell.name}: {what}", err=True)

    notice = "finishing the steps under way and saving them"
    with stop_asked(notice) as stop:
        table = run_sweep(planned, jobs=jobs, told=tell, stop=stop, command=typed)
    if as_json:
        say(json.dumps(table, indent=1))
    else:
        say(render_sweep_table(table, styled=sys.stdout.isatty()))
        say(f"\nAll figures are in {planned.sweep.output}: table.csv, table.json.")
    failed = [row for row in table["cells"] if row["status"] != "finished" or row["error"]]
    if failed:
        first = failed[0]
        raise TrimtabError(
            f"{len(failed)} of {len(names)} cells failed, the first of them {first['cell']}: "
            f"{first['error']}"
        )
