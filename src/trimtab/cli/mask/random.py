"""`trimtab mask random`."""

from __future__ import annotations

from pathlib import Path

import click

from trimtab.cli.mask.options import mask_argument, write_mask, writes_a_mask
from trimtab.cli.progress import byte_progress
from trimtab.masks import Mask
from trimtab.masks.selection.quotas import random_matched
from trimtab.outputs import ensure_free

__all__ = ["command"]


@click.command(
    "random",
    epilog="Example: trimtab mask random m.safetensors --seed 1 -o r.safetensors",
)
@mask_argument
@click.option(
    "--match",
    type=click.Choice(["tensor", "magnitude"]),
    default="tensor",
    show_default=True,
    help="As many in each tensor, or in each tensor × exponent of the base weight.",
)
@click.option("--base", help="The base that MASK was made against, for --match magnitude.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the places.")
@writes_a_mask
def command(
    typed: str, mask: Path, match: str, base: str | None, seed: int, output: Path, force: bool
) -> None:
    """Select as many elements in each tensor as MASK does, at random places.

    Small weights are the ones that training can move at all in bf16, so most of what two masks
    share is that both favour them. --match magnitude makes a control that favours them as much.
    """
    if (base is not None) != (match == "magnitude"):
        raise click.UsageError("--match magnitude and --base BASE go together")
    ensure_free(output, force=force)
    loaded = Mask.load(mask)
    if base is None:
        control = loaded.random_like(seed)
    else:
        with byte_progress("drawing") as progress:
            control = random_matched(loaded, base, seed, progress=progress)
    write_mask(control, output, typed, force=force)
