"""`trimtab mask make random`."""

from __future__ import annotations

import click

from trimtab.cli.mask.make.options import Making, base_option, makes_a_mask
from trimtab.masks.makers.weight_scores import no_preference

__all__ = ["command"]


@click.command(
    "random",
    epilog="Example: trimtab mask make random --base base/ --density 0.1 -o r.safetensors",
)
@base_option
@makes_a_mask
def command(base: str, making: Making) -> None:
    """Select any elements of BASE: all have the same score, and ties are broken at random.

    With --like, the same as `trimtab mask random`.
    """
    making.by_weights(base, no_preference, {"step": "random"})
