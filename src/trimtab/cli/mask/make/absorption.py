"""`trimtab mask make absorption`."""

from __future__ import annotations

import click

from trimtab.checkpoints import opened
from trimtab.cli.mask.make.options import Making, base_option, makes_a_mask, said_of
from trimtab.cli.progress import byte_progress
from trimtab.masks.makers.absorption import absorption_distance, easily_moved, within_reach
from trimtab.masks.selection.scores import write_scores

__all__ = ["command"]


@click.command(
    "absorption",
    epilog="Example: trimtab mask make absorption --base base/ --lr 1e-6 -o p.safetensors",
)
@base_option
@click.option("--lr", type=float, help="Learning rate: select what a step of this size can change.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Steps of Adam that add up in a master of high precision, all one way; 1 without one.",
)
@makes_a_mask
def command(base: str, lr: float | None, steps: int, making: Making) -> None:
    """Select the elements that steps of size --lr can change at all in the stored dtype of BASE.

    A bf16 weight of 0.1 stays what it is under every move below 0.0002: rounding absorbs it. How
    many elements that leaves follows from --lr. With --density or --like instead, as many are
    selected, those first that the smallest move changes.
    """
    if (lr is None) != making.is_sized:
        raise click.UsageError("give either --lr, or --density or --like")
    step = {"step": "absorption"}
    if lr is None:
        making.by_weights(base, easily_moved, step)
        return
    distance = absorption_distance(lr, steps)
    with opened(base) as (checkpoint,):
        with byte_progress("reading") as progress:
            mask = within_reach(
                checkpoint,
                distance,
                provenance={**step, "lr": lr, "steps": steps, **said_of(checkpoint)},
                progress=progress,
            )
        if making.scores is not None:
            scores = easily_moved(checkpoint)
            write_scores(making.scores, scores, provenance=step, force=making.force)
    making.write(mask)
