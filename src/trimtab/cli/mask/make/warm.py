"""`trimtab mask make warm`."""

from __future__ import annotations

from contextlib import ExitStack

import click

from trimtab.checkpoints import Checkpoint, opened
from trimtab.cli.mask.make.options import Making, base_option, makes_a_mask, said_of
from trimtab.cli.progress import byte_progress
from trimtab.compare.tracked_file import is_tracked
from trimtab.compare.tracked_points import TrackedPoints
from trimtab.masks import extract_mask
from trimtab.masks.makers.counts import CountScores, TimesScores, ever
from trimtab.masks.selection.scores import Scores, write_scores

__all__ = ["command"]


@click.command(
    "warm",
    epilog="Example: trimtab mask make warm --base base/ updates.trimtab --steps 5 -o "
    "p.safetensors",
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@base_option
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Of a tracked run: the first so many.  [default: all]",
)
@makes_a_mask
def command(sources: tuple[str, ...], base: str, steps: int | None, making: Making) -> None:
    """Select the elements that the first steps of a run moved.

    SOURCE is a file that trimtab.UpdateTracker wrote, or one or more checkpoints of the run. How
    many elements that is follows from them: all that differed from BASE at any point. With
    --density or --like instead, as many are selected, those first that differed most often.
    """
    is_file = len(sources) == 1 and is_tracked(sources[0])
    if steps is not None and not is_file:
        raise click.UsageError("--steps is for a file of tracked updates: give early checkpoints")
    with opened(base) as (checkpoint,), ExitStack() as stack:
        step = {"step": "warm", "criterion": "bits", **said_of(checkpoint)}
        scores: Scores
        if is_file:
            points = TrackedPoints(sources[0], checkpoint, steps)
            scores = _tracked(points, checkpoint)
            step |= {"tracked": sources[0], "after_steps": points.steps[-1]}
        else:
            progress = stack.enter_context(byte_progress("extracting"))
            masks = [extract_mask(checkpoint, of, progress=progress) for of in sources]
            scores = CountScores(masks)
            step["checkpoints"] = [mask.provenance["steps"][0]["tuned"] for mask in masks]
        if making.is_sized:
            making.by_scores(scores, checkpoint, step)
            return
        if making.scores is not None:
            write_scores(making.scores, scores, provenance=step, force=making.force)
        making.write(ever(scores, step))


def _tracked(points: TrackedPoints, base: Checkpoint) -> TimesScores:
    """How often elements differed, once the base is known to be that of the run."""
    with byte_progress("reading") as progress:
        scores = TimesScores(points.times_changed, base, progress=progress)
    points.check({name: of.digest for name, of in scores.base.items()})
    return scores
