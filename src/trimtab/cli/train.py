"""`trimtab train RUN.toml`."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from trimtab.elements.counts import percent

__all__ = ["command"]


@click.command("train", epilog="Example: trimtab train examples/grpo.toml")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN.toml")
@click.option("--dry-run", is_flag=True, help="Check everything, print the settings, and stop.")
def command(run: Path, dry_run: bool) -> None:
    """Train a model as a file says: SFT, DPO or GRPO, the whole model or only a mask of it.

    Interrupt it when you like: the step under way is finished and kept, and the same command goes
    on from there.
    """
    from trimtab.training.progress import progress_bars
    from trimtab.training.runs.execute import MODEL, RESULT, execute
    from trimtab.training.runs.prepare import prepare
    from trimtab.training.runs.run_file import RunFile

    prepared = prepare(RunFile.read(run))
    if dry_run:
        click.echo(json.dumps(prepared.describe(), indent=1))
        return
    with progress_bars() as bars, _stop_asked() as stop:
        result = execute(prepared, bars, stop=stop)
    click.echo(
        f"{result['steps']:,} steps in {result['seconds']['train']:.1f} s: {_changed(result)}.\n"
        f"The model is in {prepared.output / MODEL}, all figures in {prepared.output / RESULT}."
    )


def _changed(result: dict[str, Any]) -> str:
    update = result["update"]
    return (
        f"{percent(update['num_changed'], update['num_elements'])} of {update['num_elements']:,} "
        "elements changed (criterion: bits)"
    )


@contextmanager
def _stop_asked() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; a second one ends the program at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)
        click.echo("trimtab: finishing the step and saving it; Ctrl-C again to stop now", err=True)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
