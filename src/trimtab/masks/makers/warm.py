"""Elements that the first steps of a run moved, the most often moved first.

What a run has moved early is what it goes on to move, mostly; so a few steps of training predict
the mask of all of them, at their cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints import Checkpoint
from trimtab.checkpoints.stream import Progress
from trimtab.masks.makers.weight_scores import WeightScores
from trimtab.masks.mask import Mask
from trimtab.masks.packed import PackedTensor
from trimtab.masks.provenance import provenance_of
from trimtab.masks.selection.scores import Scores
from trimtab.masks.selection.weights import CHUNK_ELEMENTS

__all__ = ["TimesScores", "ever"]


class TimesScores(WeightScores):
    """At how many points of a run an element differed from the base."""

    def __init__(
        self,
        times: Callable[[str], NDArray[np.integer[Any]]],
        base: Checkpoint,
        names: Iterable[str] | None = None,
        *,
        progress: Progress | None = None,
    ) -> None:
        """As for `WeightScores`; `times` gives the numbers of a tensor, flat."""
        super().__init__(base, names, progress=progress)
        self._times = times

    def chunks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """As in `trimtab.masks.selection.scores.Scores`."""
        times = self._times(name)
        for start in range(0, len(times), CHUNK_ELEMENTS):
            yield times[start : start + CHUNK_ELEMENTS].astype(np.float32)


def ever(scores: Scores, provenance: Mapping[str, Any]) -> Mask:
    """Select what has a score above 0: what moved at any point.

    Args:
        scores: How often elements had moved.
        provenance: The step that made them.
    """
    tensors = {
        name: PackedTensor.of_parts(shape, (chunk > 0 for chunk in scores.chunks(name)))
        for name, shape in scores.shapes.items()
    }
    return Mask(tensors, scores.base, provenance_of([dict(provenance)]))
