"""`trimtab identity BASE FULL SUB --mask m.safetensors`."""

from __future__ import annotations

from pathlib import Path

import click

from trimtab.cli.progress import byte_progress
from trimtab.cli.results import Outputs, result_options
from trimtab.masks.identity import identity

__all__ = ["command"]


@click.command("identity", epilog="Example: trimtab identity base/ full/ sub/ --mask m.safetensors")
@click.argument("base")
@click.argument("full")
@click.argument("sub")
@click.option(
    "--mask",
    type=click.Path(path_type=Path),
    required=True,
    help="The mask that SUB was trained in.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Tensors read at the same time.")
@result_options
@click.pass_obj
def command(
    typed: str,
    base: str,
    full: str,
    sub: str,
    mask: Path,
    threads: int | None,
    outputs: Outputs,
) -> None:
    """Ask whether training only a mask gave the model that training every weight gave.

    BASE is where both trainings started, FULL the model after training every weight, SUB after
    training those of the mask; each a folder, a .safetensors or .bin file, or a hub id with an
    optional @revision. SUB is set against FULL inside the mask and outside it apart, and so is
    BASE: what doing nothing would score. All are streamed.

    Without -o, a table is printed.
    """
    with byte_progress("comparing") as progress:
        result = identity(base, full, sub, mask, threads=threads, progress=progress)
    outputs.give(result, typed)
