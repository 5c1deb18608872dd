"""The kinds of mask that follow from the weights of a base alone, by name, and how one is made.

The weights may be stored, or those of a model in memory (`trimtab.training.model_masks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.stream import Progress
from trimtab.elements.spectrum import PRINCIPAL_SHARE
from trimtab.errors import MaskError
from trimtab.masks.header import BaseTensor, provenance_of
from trimtab.masks.makers.absorption import absorption_scores
from trimtab.masks.makers.principal import PrincipalScores, safe_scores
from trimtab.masks.makers.weight_scores import (
    WeightScores,
    high_magnitude_scores,
    low_magnitude_scores,
    no_preference,
)
from trimtab.masks.mask import Mask
from trimtab.masks.random import random_tensor
from trimtab.masks.selection.quotas import Quotas
from trimtab.masks.selection.scores import Scores
from trimtab.masks.selection.top_k import select
from trimtab.words import one_line


@dataclass(frozen=True)
class WeightKind:
    """A kind of mask that follows from weights.

    Attributes:
        scores: Computes the scores; takes the arguments of `WeightScores`, and `settings`.
        settings: Default keyword arguments of `scores`, which the provenance records.
    """

    scores: Callable[..., WeightScores | Scores]
    settings: Mapping[str, Any] = field(default_factory=dict)

    __repr__ = one_line


RANDOM = "random"

KINDS: Mapping[str, WeightKind] = {
    RANDOM: WeightKind(no_preference),
    "low-magnitude": WeightKind(low_magnitude_scores),
    "high-magnitude": WeightKind(high_magnitude_scores),
    "principal": WeightKind(PrincipalScores, {"share": PRINCIPAL_SHARE}),
    "off-principal": WeightKind(PrincipalScores, {"share": PRINCIPAL_SHARE, "off": True}),
    "safe": WeightKind(safe_scores, {"share": PRINCIPAL_SHARE}),
    "absorption": WeightKind(absorption_scores),
}
"""Name of each kind, as `trimtab mask make` has it."""


def make_mask(
    base: Checkpoint,
    kind: str,
    *,
    density: float,
    seed: int = 0,
    names: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> Mask:
    """Select the same share of every tensor by the weights alone.

    Elements compete within their tensor, so every tensor has the density, to within one element:
    embeddings, head, norms and biases like the matrices of the layers. It is what
    `trimtab mask make KIND --density D` selects.

    Args:
        base: An open checkpoint.
        kind: A key of `KINDS`.
        density: Share of the elements of each tensor, above 0 and at most 1.
        seed: Breaks ties between equal scores, and decides a random mask.
        names: Names of its tensors; by default all that are stored as floats.
        progress: Called while the base is read first, from any thread.

    Raises:
        MaskError: There is no such kind; the density is not such a number; or a weight is NaN.
        CheckpointError: Weights are quantised.
    """
    if (chosen := KINDS.get(kind)) is None:
        raise MaskError(f"there is no kind of mask {kind!r}: {kinds_hint(kind)}")
    if not 0 < density <= 1:
        raise MaskError(f"density {density}: expected a number above 0, at most 1")
    origin = {"base": {"id": base.id, "revision": base.revision}}
    scores = chosen.scores(base, names, **chosen.settings, progress=progress)
    if kind == RANDOM:
        return random_mask(scores.shapes, scores.base, density=density, seed=seed, origin=origin)
    quotas = Quotas.of_density(density, scores.shapes)
    step = {"step": kind, **chosen.settings, **origin}
    return select(scores, quotas, seed=seed, provenance=step)


def random_mask(
    shapes: Mapping[str, tuple[int, ...]],
    base: Mapping[str, BaseTensor],
    *,
    density: float,
    seed: int,
    origin: Mapping[str, Any],
) -> Mask:
    """Select the same share of every tensor at random: `make_mask` without reading the weights.

    Args:
        shapes: Name -> shape of each tensor.
        base: The tensors that the mask is made against; may be incomplete.
        density: Share of the elements of each tensor.
        seed: With a tensor's name it decides the tensor's elements.
        origin: The base, in the step of the provenance: `{"base": {"id": …}}`.
    """
    quotas = Quotas.of_density(density, shapes)
    tensors = {
        group.name: random_tensor(
            tuple(shapes[group.name]), int(group.nums[0]), seed=seed, name=group.name
        )
        for group in quotas.groups
    }
    known = {name: base[name] for name in tensors if name in base}
    step = {"step": RANDOM, **origin, **quotas.origin, "seed": seed}
    return Mask(tensors, known, provenance_of([step]))


def kinds_hint(kind: str) -> str:
    """What was expected in place of a name that is no kind: `did you mean …?`, or the kinds."""
    near = get_close_matches(kind.partition(":")[0], KINDS, n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(KINDS)}"
