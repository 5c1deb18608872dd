"""`trimtab mask make fisher`."""

from __future__ import annotations

import click

from trimtab.cli.mask.make.probing import Probing, probes

__all__ = ["command"]


@click.command(
    "fisher",
    epilog="Example: trimtab mask make fisher --base base/ --task addition --density 0.1 -o "
    "p.safetensors",
)
@probes
@click.option(
    "--num-prompts",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Prompts to look at, at most.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Completions that the base gives to each.",
)
def command(probing: Probing, num_prompts: int, samples: int) -> None:
    """Select the elements with the largest diagonal Fisher information of the base.

    That is the mean square of the gradient of the log-probability of what BASE itself answers to
    some prompts: where it is small, expected gradients are small, whatever is rewarded.
    """
    from trimtab.training.probes.losses import OwnSamples
    from trimtab.training.probes.measures import FISHER

    probing.run(FISHER, OwnSamples(num_prompts, samples))
