"""`trimtab mask make KIND`: masks predicted without training, and controls.

The kinds that need gradients are in `trimtab.cli.mask_probe`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import trimtab
from trimtab.cli import options
from trimtab.cli.terminal import say
from trimtab.outputs import ensure_free
from trimtab.progress import byte_progress

if TYPE_CHECKING:
    from trimtab.checkpoints.checkpoint import Checkpoint
    from trimtab.masks.header import PackedMask
    from trimtab.masks.mask import Mask
    from trimtab.masks.selection.quotas import Match, Quotas
    from trimtab.masks.selection.scores import Scores

PRINCIPAL_SHARE = 0.1
"""That of `trimtab.elements.spectrum`, which is not imported for `--help`."""

base_option = click.option(
    "--base", required=True, help="Checkpoint before training: a folder, a file or a hub id."
)


@click.group(
    "make",
    cls=options.Group,
    short_help="Predict what training will change, without training.",
    epilog="Example: trimtab mask make low-magnitude --base base/ --density 0.1 -o p.safetensors",
)
def make() -> None:
    """Predict which elements training will change, without training, or make a control.

    Each kind gives every element of the base a score and selects exactly the number of elements
    asked for, those with the highest scores; ties are broken at random, by seed. `trimtab mask
    score` measures how well a mask predicts another.
    """


@dataclass(frozen=True)
class Selection:
    """How many elements a command selects, and where it writes the mask.

    Attributes:
        density: Share of the elements to select; None if `like` is given.
        like: A mask whose number of elements to match; None if `density` is given.
        match: What the numbers are matched in.
        seed: Seed for breaking ties.
        scores: Also write the scores to this file.
        target: Where the mask is written.
    """

    density: float | None
    like: Mask | None
    match: Match
    seed: int
    scores: Path | None
    target: options.MaskTarget

    @property
    def is_sized(self) -> bool:
        """Whether the number of elements is given; otherwise it follows from the kind."""
        return self.density is not None or self.like is not None

    def names(self, base: Checkpoint) -> Iterable[str] | None:
        """The tensors of base to score: those of `like`, or None for all."""
        from trimtab.masks.matching import named_as_in

        if self.like is None:
            return None
        like = named_as_in(self.like, base)
        return [name for name in base.tensors if name in like]

    def quotas(self, shapes: Mapping[str, tuple[int, ...]], base: Checkpoint | None) -> Quotas:
        """How many elements to select of tensors of these shapes."""
        with byte_progress("counting") as progress:
            if self.like is not None:
                return trimtab.Quotas.like(
                    self.like, shapes, match=self.match, base=base, progress=progress
                )
            if self.density is None:
                raise click.UsageError("give --density D or --like MASK: how many to select")
            return trimtab.Quotas.of_density(
                self.density, shapes, match=self.match, base=base, progress=progress
            )

    def by_scores(
        self,
        scores: Scores,
        base: Checkpoint | None,
        step: Mapping[str, Any],
        *,
        masks: Sequence[PackedMask] = (),
    ) -> None:
        """Select by scores and write the mask, and the scores if asked to.

        Args:
            scores: Of the tensors to select from.
            base: The open checkpoint of these tensors, for `--match magnitude`.
            step: The provenance: `{"step": "low-magnitude", …}`.
            masks: Masks that the scores were computed from, whose provenance is kept.
        """
        from trimtab.masks.matching import named_like

        quotas = self.quotas(scores.shapes, base)
        if self.like is not None:
            digests = {name: tensor.digest for name, tensor in scores.base.items()}
            named_like(self.like, scores.shapes).check(scores.shapes, digests)
        if self.scores is None:
            self._select(scores, quotas, step, masks)
            return
        self._write_scores(scores, step)
        with trimtab.ScoreFile(self.scores) as file:
            self._select(file, quotas, step, masks)

    def by_weights(self, base: str, kind: str, **given: Any) -> None:
        """Select by scores of the weights of a base.

        Args:
            base: The checkpoint, as given on the command line.
            kind: A key of `trimtab.masks.makers.kinds.KINDS`.
            given: Settings of the kind, and part of the provenance.
        """
        from trimtab.masks.makers.kinds import KINDS

        settings = {**KINDS[kind].settings, **given}
        with trimtab.open_checkpoint(base) as checkpoint:
            with byte_progress("reading") as progress:
                names = self.names(checkpoint)
                computed = KINDS[kind].scores(checkpoint, names, **settings, progress=progress)
            self.by_scores(computed, checkpoint, {"step": kind, **settings, **_id_of(checkpoint)})

    def write(self, mask: Mask, scores: Callable[[], Scores], step: Mapping[str, Any]) -> None:
        """Write a mask whose size follows from its kind, and its scores if asked to."""
        if self.scores is not None:
            self._write_scores(scores(), step)
        self.target.write(mask)

    def _write_scores(self, scores: Scores, step: Mapping[str, Any]) -> None:
        assert self.scores is not None
        trimtab.write_scores(self.scores, scores, provenance=step, force=self.target.force)
        say(f"wrote {self.scores}", err=True)

    def _select(
        self, scores: Scores, quotas: Quotas, step: Mapping[str, Any], masks: Sequence[PackedMask]
    ) -> None:
        from trimtab.masks.header import provenances_by_digest

        with byte_progress("selecting") as progress:
            mask = trimtab.select(
                scores, quotas, seed=self.seed, provenance=step, progress=progress
            )
        if masks:
            mask = mask.with_provenance(made_from=provenances_by_digest(masks))
        self.target.write(mask)


def makes_a_mask(function: Callable[..., None]) -> options.Function:
    """Add the options of `Selection` to a command, as its argument `selection`."""

    @wraps(function)
    def with_selection(
        *,
        density: float | None,
        like: Path | None,
        match: Match,
        seed: int,
        scores: Path | None,
        target: options.MaskTarget,
        **settings: Any,
    ) -> None:
        if density is not None and like is not None:
            raise click.UsageError("--density and --like both say how many to select: give one")
        if scores is not None:
            ensure_free(scores, force=target.force)
        reference = None if like is None else trimtab.Mask.load(like)
        function(selection=Selection(density, reference, match, seed, scores, target), **settings)

    return options.adding(
        click.option("--density", type=float, help="Share of the elements to select, 0 to 1."),
        click.option("--like", type=options.PATH, help="Mask whose number of elements to match."),
        click.option(
            "--match",
            type=click.Choice(["total", "tensor", "magnitude"]),
            default="tensor",
            help="Match the numbers in total, per tensor, or per tensor × exponent of the base "
            "weight.",
        ),
        options.seed_option("Seed for breaking ties."),
        click.option(
            "--scores", type=options.PATH, help="File to write the score of every element to."
        ),
    )(options.writes_a_mask(with_selection))


@make.command(
    "random",
    short_help="Control: any elements.",
    epilog="Example: trimtab mask make random --base base/ --density 0.1 -o r.safetensors",
)
@base_option
@makes_a_mask
def random(base: str, selection: Selection) -> None:
    """Select any elements of BASE: all have the same score, and ties are broken at random.

    With --like, the same as `trimtab mask random`.
    """
    selection.by_weights(base, "random")


@make.command(
    "complement",
    short_help="Control: the elements that a mask does not select.",
    epilog="Example: trimtab mask complement m.safetensors -o c.safetensors",
)
@click.argument("mask", type=options.PATH)
@options.writes_a_mask
def complement(mask: Path, target: options.MaskTarget) -> None:
    """Select the elements that MASK does not, of the same tensors."""
    with trimtab.open_mask(mask) as opened:
        target.write_derived(trimtab.complement(opened))


@make.command(
    "low-magnitude",
    short_help="The smallest weights.",
    epilog="Example: trimtab mask make low-magnitude --base base/ --density 0.1 -o p.safetensors",
)
@base_option
@makes_a_mask
def low_magnitude(base: str, selection: Selection) -> None:
    """Select the smallest weights of BASE.

    In bf16 a small step can change only small weights, so this is the baseline of all predictions.
    """
    selection.by_weights(base, "low-magnitude")


@make.command(
    "high-magnitude",
    short_help="The largest weights.",
    epilog="Example: trimtab mask make high-magnitude --base base/ --density 0.1 -o p.safetensors",
)
@base_option
@makes_a_mask
def high_magnitude(base: str, selection: Selection) -> None:
    """Select the largest weights of BASE."""
    selection.by_weights(base, "high-magnitude")


_rank_option = click.option(
    "--rank",
    type=float,
    default=PRINCIPAL_SHARE,
    help="Number of principal directions, as a share of the smaller side of a matrix.",
)


@make.command(
    "principal",
    short_help="Elements that carry the principal directions of their matrix.",
    epilog="Example: trimtab mask make principal --base base/ --density 0.5 -o p.safetensors",
)
@base_option
@_rank_option
@makes_a_mask
def principal(base: str, rank: float, selection: Selection) -> None:
    """Select the elements that carry the principal directions of their matrix.

    An element's score is its magnitude in the best approximation of that rank. Whole matrices are
    decomposed, once with --match tensor or magnitude or with --scores, else four times.
    """
    selection.by_weights(base, "principal", share=rank)


@make.command(
    "off-principal",
    short_help="Elements that do not.",
    epilog="Example: trimtab mask make off-principal --base base/ --density 0.5 -o p.safetensors",
)
@base_option
@_rank_option
@makes_a_mask
def off_principal(base: str, rank: float, selection: Selection) -> None:
    """Select the elements that do not carry the principal directions of their matrix.

    The complement of `principal`: of density 0.3, it is what `principal` of density 0.7 leaves.
    """
    selection.by_weights(base, "off-principal", share=rank)


@make.command(
    "safe",
    short_help="Small weights and elements off the principal directions.",
    epilog="Example: trimtab mask make safe --base base/ --density 0.74 -o p.safetensors",
)
@base_option
@_rank_option
@makes_a_mask
def safe(base: str, rank: float, selection: Selection) -> None:
    """Select small weights and elements off the principal directions.

    The union of `low-magnitude` and `off-principal`, both of the one density in each tensor that
    makes the union as large as asked for.
    """
    selection.by_weights(base, "safe", share=rank)


@make.command(
    "absorption",
    short_help="Elements that steps of size LR can change in the stored dtype.",
    epilog="Example: trimtab mask make absorption --base base/ --lr 1e-6 -o p.safetensors",
)
@base_option
@click.option("--lr", type=float, help="Learning rate: the size of a step.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=1,
    help="Adam steps in one direction that add up in a high-precision master copy; 1 without one.",
)
@makes_a_mask
def absorption(base: str, lr: float | None, steps: int, selection: Selection) -> None:
    """Select the elements that steps of size --lr can change in the stored dtype of BASE.

    A bf16 weight of 0.1 does not change under any move below 0.0002: rounding absorbs it. The
    number of elements follows from --lr. With --density or --like instead, that number of elements
    is selected, in the order of the smallest move that changes them.
    """
    from trimtab.masks.makers.absorption import absorption_distance

    if (lr is None) != selection.is_sized:
        raise click.UsageError("give either --lr, or --density or --like")
    if lr is None:
        selection.by_weights(base, "absorption")
        return
    distance = absorption_distance(lr, steps)
    with trimtab.open_checkpoint(base) as checkpoint:
        step = {"step": "absorption", "lr": lr, "steps": steps, **_id_of(checkpoint)}
        with byte_progress("reading") as progress:
            mask = trimtab.absorption_mask(checkpoint, distance, provenance=step, progress=progress)
        selection.write(mask, lambda: trimtab.absorption_scores(checkpoint), {"step": "absorption"})


@make.command(
    "consensus",
    short_help="Elements that several masks agree on.",
    epilog="Example: trimtab mask make consensus --at-least 2 a.safetensors b.safetensors "
    "c.safetensors -o p.safetensors",
)
@click.argument("masks", nargs=-1, required=True, type=options.PATH)
@click.option("--at-least", type=int, help="Number of MASKS that select an element, at least.")
@click.option("--base", help="Base of MASKS, for --match magnitude.")
@makes_a_mask
def consensus(
    masks: tuple[Path, ...], at_least: int | None, base: str | None, selection: Selection
) -> None:
    """Select the elements that several MASKS agree on, such as those of runs with other seeds.

    Their number follows from --at-least. With --density or --like instead, that number of elements
    is selected, in the order of how many masks select them.
    """
    from trimtab.masks.makers.counts import CountScores

    if (at_least is None) != selection.is_sized:
        raise click.UsageError("give either --at-least, or --density or --like")
    with ExitStack() as stack:
        opened = [stack.enter_context(trimtab.open_mask(path)) for path in masks]
        scores = CountScores(opened)
        step = {"step": "consensus", "of": [mask.digest for mask in opened]}
        if at_least is None:
            checkpoint = (
                None if base is None else stack.enter_context(trimtab.open_checkpoint(base))
            )
            selection.by_scores(scores, checkpoint, step, masks=opened)
        else:
            selection.write(trimtab.consensus(opened, at_least), lambda: scores, step)


@make.command(
    "warm",
    short_help="Elements that the first steps of a run moved.",
    epilog="Example: trimtab mask make warm --base base/ updates.trimtab --steps 5 -o "
    "p.safetensors",
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@base_option
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Number of first steps of a tracked run to use.  [default: all]",
)
@makes_a_mask
def warm(sources: tuple[str, ...], base: str, steps: int | None, selection: Selection) -> None:
    """Select the elements that the first steps of a run moved.

    SOURCE is a file that trimtab.training.UpdateTracker wrote, or one or more checkpoints of the
    run. All elements that differed from BASE at any point are selected. With --density or --like
    instead, that number of elements is selected, in the order of how often they differed.
    """
    from trimtab.masks.makers.counts import CountScores, TimesScores, ever
    from trimtab.measure.tracked import TrackedPoints
    from trimtab.measure.tracked_file import is_tracked

    is_file = len(sources) == 1 and is_tracked(sources[0])
    if steps is not None and not is_file:
        raise click.UsageError("--steps is for a file of tracked updates: give early checkpoints")
    with trimtab.open_checkpoint(base) as checkpoint:
        step = {"step": "warm", "criterion": "bits", **_id_of(checkpoint)}
        scores: Scores
        if is_file:
            points = TrackedPoints(sources[0], checkpoint, steps)
            with byte_progress("reading") as progress:
                scores = TimesScores(points.times_changed, checkpoint, progress=progress)
            points.check({name: tensor.digest for name, tensor in scores.base.items()})
            step |= {"tracked": sources[0], "after_steps": points.steps[-1]}
        else:
            with byte_progress("extracting") as progress:
                masks = [
                    trimtab.extract_mask(checkpoint, tuned, progress=progress) for tuned in sources
                ]
            scores = CountScores(masks)
            step["checkpoints"] = [mask.provenance["steps"][0]["tuned"] for mask in masks]
        if selection.is_sized:
            selection.by_scores(scores, checkpoint, step)
        else:
            selection.write(ever(scores, step), lambda: scores, step)


def _id_of(base: Checkpoint) -> dict[str, Any]:
    """The base in a step of the provenance; its hashes are in the mask."""
    return {"base": {"id": base.id, "revision": base.revision}}
