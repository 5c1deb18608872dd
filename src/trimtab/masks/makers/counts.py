"""Masks by how often an element was selected or moved: by several masks, or early in a run.

Elements that several runs (other seeds or data) moved will most likely move in a new one; what a
run
moved early is mostly what it moves later, so a few training steps predict its mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.weights import CHUNK_ELEMENTS
from trimtab.errors import MaskError, MaskMismatchError
from trimtab.masks.header import PackedMask, provenance_from, provenance_of
from trimtab.masks.makers.weight_scores import WeightScores
from trimtab.masks.mask import Mask
from trimtab.masks.matching import common_model, named_alike
from trimtab.masks.packed import PackedTensor, unpacked
from trimtab.masks.selection.scores import Scores
from trimtab.words import first_few


class CountScores:
    """The number of masks that select an element, for the tensors that any mask has.

    Attributes:
        shapes: Name -> shape of each tensor.
        base: The base tensors, where the masks do not disagree.
    """

    def __init__(self, masks: Sequence[PackedMask]) -> None:
        """Count masks of one model.

        Raises:
            MaskError: There are none.
            MaskMismatchError: They are of different models, or were made against different bases.
        """
        if not masks:
            raise MaskError("no masks to count: expected one or more")
        self._masks = named_alike(masks)
        model = common_model(self._masks)
        if model.base_differs:
            raise MaskMismatchError(
                f"masks made against different bases: {first_few(list(model.base_differs))} had "
                "other bytes. Count masks that were made against one base"
            )
        self.shapes = model.shapes
        self.base = model.base

    def chunks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """As in `trimtab.masks.selection.scores.Scores`."""
        num_elements = prod(self.shapes[name])
        packed = [mask.packed(name) for mask in self._masks if name in mask]
        for start in range(0, num_elements, CHUNK_ELEMENTS):
            stop = min(start + CHUNK_ELEMENTS, num_elements)
            counts = np.zeros(stop - start, dtype=np.float32)
            for bits in packed:
                counts += unpacked(bits, start, stop)
            yield counts


def consensus(masks: Sequence[PackedMask], at_least: int) -> Mask:
    """Select the elements that at least a given number of masks select.

    Args:
        masks: Masks of one model, made against one base.
        at_least: 1 for the union, the number of masks for the intersection.

    Raises:
        MaskError: `at_least` is not between 1 and the number of masks.
        MaskMismatchError: The masks are of different models, or were made against different bases.
    """
    scores = CountScores(masks)
    if not 1 <= at_least <= len(masks):
        raise MaskError(f"in at least {at_least} of {len(masks)} masks: expected 1 to {len(masks)}")
    step = {"step": "consensus", "at_least": at_least}
    return _with_at_least(scores, at_least, provenance_from(masks, step))


class TimesScores(WeightScores):
    """The number of points of a run at which an element differed from the base."""

    def __init__(
        self,
        times: Callable[[str], NDArray[np.integer[Any]]],
        base: Checkpoint,
        names: Iterable[str] | None = None,
        *,
        progress: Progress | None = None,
    ) -> None:
        """As for `WeightScores`; `times` returns the numbers of a tensor, flat."""
        super().__init__(base, names, progress=progress)
        self._times = times

    def chunks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """As in `trimtab.masks.selection.scores.Scores`."""
        times = self._times(name)
        for start in range(0, len(times), CHUNK_ELEMENTS):
            yield times[start : start + CHUNK_ELEMENTS].astype(np.float32)


def ever(scores: Scores, provenance: Mapping[str, Any]) -> Mask:
    """Select elements with a score above 0: those that moved at any point.

    Args:
        scores: How often elements had moved.
        provenance: The step that made them.
    """
    return _with_at_least(scores, 1, provenance_of([dict(provenance)]))


def _with_at_least(scores: Scores, count: int, provenance: Mapping[str, Any]) -> Mask:
    tensors = {
        name: PackedTensor.of_parts(shape, (chunk >= count for chunk in scores.chunks(name)))
        for name, shape in scores.shapes.items()
    }
    return Mask(tensors, scores.base, provenance)
