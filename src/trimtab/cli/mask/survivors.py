"""`trimtab mask survivors`."""

from __future__ import annotations

from pathlib import Path

import click

from trimtab.cli.mask.options import write_mask, writes_a_mask
from trimtab.cli.progress import byte_progress
from trimtab.outputs import ensure_free

__all__ = ["command"]


@click.command("survivors", epilog="Example: trimtab mask survivors pruned/ -o alive.safetensors")
@click.argument("checkpoint")
@writes_a_mask
def command(typed: str, checkpoint: str, output: Path, force: bool) -> None:
    """Select the elements of a CHECKPOINT that are not 0, whatever made the others so.

    CHECKPOINT is a folder, a .safetensors or .bin file, or a hub id with an optional @revision.
    Both zeros count, +0 and -0.
    """
    from trimtab.masks.pruning import survivors

    ensure_free(output, force=force)
    with byte_progress("reading") as progress:
        mask = survivors(checkpoint, progress=progress)
    write_mask(mask, output, typed, force=force)
