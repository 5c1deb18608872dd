"""`trimtab mask random`."""

from __future__ import annotations

from pathlib import Path

import click

from trimtab.cli.mask.options import mask_argument, write_mask, writes_a_mask
from trimtab.masks import Mask
from trimtab.outputs import ensure_free

__all__ = ["command"]


@click.command(
    "random",
    epilog="Example: trimtab mask random m.safetensors --seed 1 -o r.safetensors",
)
@mask_argument
@click.option("--seed", type=int, default=0, show_default=True, help="Of the places.")
@writes_a_mask
def command(typed: str, mask: Path, seed: int, output: Path, force: bool) -> None:
    """Select as many elements in each tensor as MASK does, at random places."""
    ensure_free(output, force=force)
    write_mask(Mask.load(mask).random_like(seed), output, typed, force=force)
