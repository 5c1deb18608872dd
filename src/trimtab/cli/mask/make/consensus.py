"""`trimtab mask make consensus`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from trimtab.checkpoints import open_checkpoint
from trimtab.cli.mask.make.options import Making, makes_a_mask
from trimtab.masks.makers.counts import CountScores, consensus
from trimtab.masks.on_disk import open_mask
from trimtab.masks.selection.scores import write_scores

__all__ = ["command"]


@click.command(
    "consensus",
    epilog="Example: trimtab mask make consensus --at-least 2 a.safetensors b.safetensors "
    "c.safetensors -o p.safetensors",
)
@click.argument("masks", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--at-least", type=int, help="Select what at least so many of MASKS select.")
@click.option("--base", help="The base of MASKS, for --match magnitude.")
@makes_a_mask
def command(
    masks: tuple[Path, ...], at_least: int | None, base: str | None, making: Making
) -> None:
    """Select the elements that several MASKS agree on, such as those of runs with other seeds.

    How many that are follows from --at-least. With --density or --like instead, as many are
    selected, those first that most masks select.
    """
    if (at_least is None) != making.is_sized:
        raise click.UsageError("give either --at-least, or --density or --like")
    with ExitStack() as stack:
        opened_masks = [stack.enter_context(open_mask(path)) for path in masks]
        scores = CountScores(opened_masks)
        step = {"step": "consensus", "of": [mask.digest for mask in opened_masks]}
        if at_least is None:
            checkpoint = None if base is None else stack.enter_context(open_checkpoint(base))
            making.by_scores(scores, checkpoint, step, masks=opened_masks)
            return
        mask = consensus(opened_masks, at_least)
        if making.scores is not None:
            write_scores(making.scores, scores, provenance=step, force=making.force)
    making.write(mask)
