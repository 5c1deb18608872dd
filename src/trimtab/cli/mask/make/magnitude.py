"""`trimtab mask make low-magnitude | high-magnitude`."""

from __future__ import annotations

import click

from trimtab.cli.mask.make.options import Making, base_option, makes_a_mask
from trimtab.masks.makers.weight_scores import high_magnitude, low_magnitude

__all__ = ["commands"]


@click.command(
    "low-magnitude",
    epilog="Example: trimtab mask make low-magnitude --base base/ --density 0.1 -o p.safetensors",
)
@base_option
@makes_a_mask
def low(base: str, making: Making) -> None:
    """Select the smallest weights of BASE.

    They are the ones that a small step can change at all in bf16, so this is what every other
    prediction has to be better than.
    """
    making.by_weights(base, low_magnitude, {"step": "low-magnitude"})


@click.command(
    "high-magnitude",
    epilog="Example: trimtab mask make high-magnitude --base base/ --density 0.1 -o p.safetensors",
)
@base_option
@makes_a_mask
def high(base: str, making: Making) -> None:
    """Select the largest weights of BASE."""
    making.by_weights(base, high_magnitude, {"step": "high-magnitude"})


commands = {"low-magnitude": low, "high-magnitude": high}
