"""`trimtab train RUN.toml`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from trimtab.cli.stopping import stop_asked
from trimtab.cli.terminal import say
from trimtab.elements.counts import percent
from trimtab.processes import is_child

__all__ = ["command"]


@click.command("train", epilog="Example: trimtab train examples/grpo.toml")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN.toml")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything, say what the run is, print its settings, and stop.",
)
def command(run: Path, dry_run: bool) -> None:
    """Train a model as a file says, by SFT, RFT, DPO, ORPO, KTO, SimPO, PPO, GRPO, RLOO or PRIME.

    The whole model is trained, or only a mask of it. Interrupt it when you like: the step under way
    is finished and kept, and the same command goes on from there.
    """
    from trimtab.training.progress import progress_bars
    from trimtab.training.runs.execute import MODEL, RESULT, execute, overview
    from trimtab.training.runs.prepare import prepare
    from trimtab.training.runs.settings import Settings
    from trimtab.training.sweeps.cell import read_cell

    prepared = prepare(read_cell(run) if run.suffix == ".json" else Settings.read(run))
    if dry_run:
        say(overview(prepared), err=True)
        say(json.dumps(prepared.describe(), indent=1))
        return
    with progress_bars() as bars, stop_asked("finishing the step and saving it") as stop:
        result = execute(prepared, bars, stop=stop, waits=is_child())
    say(
        f"{result['steps']:,} steps in {result['seconds']['train']:.1f} s: {_changed(result)}.\n"
        f"The model is in {prepared.output / MODEL}, all figures in {prepared.output / RESULT}."
    )
    for note in result["notes"]:
        say(note)


def _changed(result: dict[str, Any]) -> str:
    update = result["update"]
    return (
        f"{percent(update['num_changed'], update['num_elements'])} of {update['num_elements']:,} "
        "elements changed (criterion: bits)"
    )
