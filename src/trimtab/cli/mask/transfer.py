"""`trimtab mask transfer`."""

from __future__ import annotations

from pathlib import Path

import click

from trimtab.cli.mask.options import mask_argument, save_derived, writes_a_mask
from trimtab.cli.progress import byte_progress
from trimtab.cli.terminal import say
from trimtab.masks.on_disk import open_mask
from trimtab.masks.transfer import MAPS, transferred
from trimtab.outputs import ensure_free

__all__ = ["command"]


@click.command(
    "transfer",
    epilog="Example: trimtab mask transfer m.safetensors --to other/ -o t.safetensors",
)
@mask_argument
@click.option("--to", required=True, metavar="OTHER", help="The checkpoint to carry it to.")
@click.option(
    "--map",
    "maps",
    type=click.Choice(MAPS),
    multiple=True,
    help="Carry it to another depth, or to another width; can be given twice.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of units=density.")
@writes_a_mask
def command(
    typed: str,
    mask: Path,
    to: str,
    maps: tuple[str, ...],
    seed: int,
    output: Path,
    force: bool,
) -> None:
    """Carry MASK to another checkpoint: a folder, a .safetensors or .bin file, or a hub id.

    Tensors of the same names and shapes keep their bits, and a vocabulary of another size the rows
    that both have. Another depth needs --map layers=interpolate: each layer gets the bits of the
    one at the same relative depth. Another width needs --map units=density: each row gets as large
    a share as the one at the same relative place, at random places. Anything else is refused.
    """
    from trimtab.report.mask_steps import carried_text

    ensure_free(output, force=force)
    with open_mask(mask) as opened:
        with byte_progress("hashing") as progress:
            made = transferred(opened, to, maps=maps, seed=seed, progress=progress)
        if told := carried_text(made.outline.provenance["steps"][-1]):
            say(told, err=True)
        save_derived(made, output, typed, force=force)
