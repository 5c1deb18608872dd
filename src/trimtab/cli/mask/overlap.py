"""`trimtab mask overlap`."""

from __future__ import annotations

from pathlib import Path

import click

from trimtab.cli.progress import byte_progress
from trimtab.cli.results import Outputs, result_options
from trimtab.masks.overlap import overlap

__all__ = ["command"]


@click.command(
    "overlap",
    epilog="Example: trimtab mask overlap seed-0.safetensors seed-1.safetensors --base base/",
)
@click.argument(
    "masks", nargs=-1, required=True, metavar="A B [C …]", type=click.Path(path_type=Path)
)
@click.option(
    "--base",
    metavar="BASE",
    help="The checkpoint that the masks were made against; with it, chance is also matched by the "
    "magnitude of its weights.",
)
@click.option(
    "--series",
    is_flag=True,
    help="The masks are in the order of time: set each against the last.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Tensors counted at the same time.")
@result_options
@click.pass_obj
def command(
    typed: str,
    masks: tuple[Path, ...],
    base: str | None,
    series: bool,
    threads: int | None,
    outputs: Outputs,
) -> None:
    """Ask whether masks select the same elements, beside what they would share by chance.

    A, B, … are files of masks of one model. What two of them share is set against three nulls:
    masks drawn at random with as many elements in all, in each tensor, and (with --base) in each
    tensor at each magnitude of the base's weights. Of three masks or more, every pair is set side
    by side, and what so many of them select is counted.

    Without -o, a table is printed.
    """
    with byte_progress("counting") as progress:
        result = overlap(*masks, base=base, series=series, threads=threads, progress=progress)
    outputs.give(result, typed)
