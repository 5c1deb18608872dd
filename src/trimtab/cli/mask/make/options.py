"""What the kinds of `trimtab mask make` share: how many elements, by which base, and the output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from trimtab.checkpoints import Checkpoint, opened
from trimtab.cli.mask.options import write_mask, writes_a_mask
from trimtab.cli.progress import byte_progress
from trimtab.cli.terminal import say
from trimtab.masks import Mask
from trimtab.masks.header import provenances_by_digest
from trimtab.masks.matching import named_as_in, named_like
from trimtab.masks.packed import PackedMask
from trimtab.masks.selection import select
from trimtab.masks.selection.quotas import MATCHES, Match, Quotas
from trimtab.masks.selection.scores import ScoreFile, Scores, write_scores
from trimtab.outputs import ensure_free

__all__ = ["Making", "base_option", "makes_a_mask", "said_of"]

base_option = click.option(
    "--base", required=True, help="The checkpoint before training: a folder, a file or a hub id."
)


@dataclass(frozen=True)
class Making:
    """How many elements a command selects, and where the mask goes.

    Attributes:
        typed: The command as it was typed.
        density: Share of the elements to select; None to go by `like`.
        like: A mask to select as many as; None to go by `density`.
        match: In what as many are selected.
        seed: Decides which of equal scores are selected.
        scores: Also write the scores to this file.
        output: Write the mask to this file.
        force: Replace files that exist.
    """

    typed: str
    density: float | None
    like: Mask | None
    match: Match
    seed: int
    scores: Path | None
    output: Path
    force: bool

    @property
    def is_sized(self) -> bool:
        """Whether the number of elements was given, rather than following from the kind."""
        return self.density is not None or self.like is not None

    def names(self, base: Checkpoint) -> Iterable[str] | None:
        """The tensors of base to score: those of the mask to be like, or None for all."""
        if self.like is None:
            return None
        like = named_as_in(self.like, base)
        return [name for name in base.tensors if name in like]

    def quotas(self, shapes: Mapping[str, tuple[int, ...]], base: Checkpoint | None) -> Quotas:
        """How many elements to select of tensors of these shapes."""
        with byte_progress("counting") as progress:
            if self.like is not None:
                return Quotas.like(
                    self.like, shapes, match=self.match, base=base, progress=progress
                )
            if self.density is None:
                raise click.UsageError("give --density D or --like MASK: how many to select")
            return Quotas.of_density(
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
            base: The open checkpoint that they are of, for `--match magnitude`.
            step: What made them, for the provenance: `{"step": "low-magnitude", …}`.
            masks: Those that the scores were made from, whose provenance is kept.
        """
        quotas = self.quotas(scores.shapes, base)
        if self.like is not None:
            digests = {name: of.digest for name, of in scores.base.items()}
            named_like(self.like, scores.shapes).check(scores.shapes, digests)
        if self.scores is None:
            self._select(scores, quotas, step, masks)
            return
        write_scores(self.scores, scores, provenance=step, force=self.force)
        say(f"wrote {self.scores}", err=True)
        with ScoreFile(self.scores) as written:
            self._select(written, quotas, step, masks)

    def by_weights(
        self, base: str, make: Callable[..., Scores], step: Mapping[str, Any], **settings: Any
    ) -> None:
        """Select by scores that follow from the weights of a base.

        Args:
            base: The checkpoint, as typed.
            make: Makes the scores of the open checkpoint; its arguments are those of
                `trimtab.masks.makers.weight_scores.WeightScores`, and `settings`.
            step: What there is to say of the kind, for the provenance.
            settings: Keyword arguments of `make`, told in the provenance too.
        """
        with opened(base) as (checkpoint,):
            with byte_progress("reading") as progress:
                names = self.names(checkpoint)
                scores = make(checkpoint, names, **settings, progress=progress)
            self.by_scores(scores, checkpoint, {**step, **settings, **said_of(checkpoint)})

    def write(self, mask: Mask) -> None:
        """Write the mask."""
        write_mask(mask, self.output, self.typed, force=self.force)

    def _select(
        self, scores: Scores, quotas: Quotas, step: Mapping[str, Any], masks: Sequence[PackedMask]
    ) -> None:
        with byte_progress("selecting") as progress:
            mask = select(scores, quotas, seed=self.seed, provenance=step, progress=progress)
        self.write(mask.with_provenance(made_from=provenances_by_digest(masks)) if masks else mask)


def makes_a_mask(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `Making` to a command, which is given it as its argument `making`."""

    @wraps(function)
    def with_making(
        typed: str,
        *args: Any,
        density: float | None,
        like: Path | None,
        match: Match,
        seed: int,
        scores: Path | None,
        output: Path,
        force: bool,
        **more: Any,
    ) -> None:
        if density is not None and like is not None:
            raise click.UsageError("--density and --like both say how many to select: give one")
        for path in (output, scores):
            if path is not None:
                ensure_free(path, force=force)
        reference = None if like is None else Mask.load(like)
        making = Making(typed, density, reference, match, seed, scores, output, force)
        function(*args, making=making, **more)

    path = click.Path(path_type=Path)
    wrapped: Callable[..., None] = writes_a_mask(with_making)
    for option in (
        click.option("--scores", type=path, help="Also write the score of every element here."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of the ties."),
        click.option(
            "--match",
            type=click.Choice(MATCHES),
            default="tensor",
            show_default=True,
            help="As many in all, in each tensor, or in each tensor × exponent of the base weight.",
        ),
        click.option("--like", type=path, help="Select as many as this mask does."),
        click.option("--density", type=float, help="Select this share of the elements, 0 to 1."),
    ):
        wrapped = option(wrapped)
    return wrapped


def said_of(base: Checkpoint) -> dict[str, Any]:
    """What a step of provenance says of its base; the hashes are in the mask."""
    return {"base": {"id": base.id, "revision": base.revision}}
