"""`trimtab example [FOLDER]`."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

import click

from trimtab.cli.options import Command
from trimtab.cli.terminal import say

TRY = """\
trimtab compare base tuned --lr 1e-5 --steps 20
trimtab mask extract base tuned -o mask.safetensors
trimtab trajectory base run"""


@click.command(
    "example",
    cls=Command,
    short_help="Write tiny checkpoints to try the other commands on.",
    epilog="Example: trimtab example try-it",
)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
def example(folder: Path) -> None:
    """Write tiny checkpoints to try the other commands on, into FOLDER or the current folder.

    They take a second and 600 kB, and are those that the documentation shows: `base` and `tuned`,
    a made-up Llama of two layers before and after 20 random steps; `sub` and `other`, two more like
    `tuned`; and `run`, with eight checkpoints of a longer walk. No torch is needed. Nothing that
    exists is replaced.
    """
    from trimtab.example import EXAMPLE, write_example

    written = write_example(folder)
    if written:
        width = max(map(len, EXAMPLE))
        for name, what in EXAMPLE.items():
            say(f"{name:{width}}  {what}")
        say(f"\nwrote them into {'this folder' if folder == Path() else folder}. Try:")
    else:
        say("the example is here already, as it was written. Try:")
    go = "" if folder == Path() else f"cd {folder}\n"
    say(indent(go + TRY, "  "))
