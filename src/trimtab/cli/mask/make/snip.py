"""`trimtab mask make snip`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from trimtab.cli.mask.make.probing import Probing, probes_batches

if TYPE_CHECKING:
    from trimtab.training.probes.losses import Losses

__all__ = ["command"]


@click.command(
    "snip",
    epilog="Example: trimtab mask make snip --base base/ --task addition --loss sft --density 0.1 "
    "-o p.safetensors",
)
@probes_batches
def command(probing: Probing, losses: Losses) -> None:
    """Select the elements whose removal would change the loss most, to first order.

    The score is |weight × mean gradient| over the batches, as in SNIP (Lee et al. 2019).
    """
    from trimtab.training.probes.measures import SNIP

    probing.run(SNIP, losses)
