"""`trimtab mask make sign-consistency`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from trimtab.cli.mask.make.probing import Probing, probes_batches

if TYPE_CHECKING:
    from trimtab.training.probes.losses import Losses

__all__ = ["command"]


@click.command(
    "sign-consistency",
    epilog="Example: trimtab mask make sign-consistency --base base/ --task addition --loss sft "
    "--density 0.1 -o p.safetensors",
)
@probes_batches
def command(probing: Probing, losses: Losses) -> None:
    """Select the elements that the gradients of many batches push the same way.

    The score is |sum of the signs of the gradient| / N over N batches.
    """
    from trimtab.training.probes.measures import SIGN_CONSISTENCY

    probing.run(SIGN_CONSISTENCY, losses)
