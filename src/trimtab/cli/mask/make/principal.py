"""`trimtab mask make principal | off-principal | safe`."""

from __future__ import annotations

from collections.abc import Callable

import click

from trimtab.cli.mask.make.options import Making, base_option, makes_a_mask
from trimtab.elements.spectrum import PRINCIPAL_SHARE
from trimtab.masks.makers.principal import PrincipalScores, safe_scores

__all__ = ["commands"]


def _rank_option(function: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--rank",
        type=float,
        default=PRINCIPAL_SHARE,
        show_default=True,
        help="How many directions are principal, as a share of the smaller side of a matrix.",
    )(function)


@click.command(
    "principal",
    epilog="Example: trimtab mask make principal --base base/ --density 0.5 -o p.safetensors",
)
@base_option
@_rank_option
@makes_a_mask
def principal(base: str, rank: float, making: Making) -> None:
    """Select the elements that carry the principal directions of their matrix.

    An element's score is its magnitude in the best approximation of that rank. Whole matrices are
    decomposed, once with --match tensor or magnitude or with --scores, else four times.
    """
    making.by_weights(base, PrincipalScores, {"step": "principal"}, share=rank)


@click.command(
    "off-principal",
    epilog="Example: trimtab mask make off-principal --base base/ --density 0.5 -o p.safetensors",
)
@base_option
@_rank_option
@makes_a_mask
def off_principal(base: str, rank: float, making: Making) -> None:
    """Select the elements that do not carry the principal directions of their matrix.

    The complement of `principal`: of density 0.3, it is what `principal` of density 0.7 leaves.
    """
    making.by_weights(base, PrincipalScores, {"step": "off-principal"}, share=rank, off=True)


@click.command(
    "safe",
    epilog="Example: trimtab mask make safe --base base/ --density 0.74 -o p.safetensors",
)
@base_option
@_rank_option
@makes_a_mask
def safe(base: str, rank: float, making: Making) -> None:
    """Select small weights and elements off the principal directions.

    The union of `low-magnitude` and `off-principal`, both of the one density in each tensor that
    makes the union as large as asked for.
    """
    making.by_weights(base, safe_scores, {"step": "safe"}, share=rank)


commands = {"principal": principal, "off-principal": off_principal, "safe": safe}
