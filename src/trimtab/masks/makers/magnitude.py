"""Small or large weights first, or all alike: score -|w|, |w| or 0.

In bf16 a step moves a weight only if it is at least about |w| / 512, so which weights are small
says most of which will change, whatever is learned. That makes low magnitude the control of every
predictor, and a mask of its own.

Source: arXiv 2511.08567 (low-magnitude mask, sec. 4 and Table 4); 2602.03839 (absorption).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints import Checkpoint
from trimtab.checkpoints.stream import Progress
from trimtab.elements.dtypes import Bits, DType
from trimtab.masks.makers.weight_scores import ElementScores

__all__ = ["high_magnitude", "low_magnitude", "no_preference"]


def low_magnitude(
    base: Checkpoint, names: Iterable[str] | None = None, *, progress: Progress | None = None
) -> ElementScores:
    """-|w|: the smallest weights first. Arguments as for `WeightScores`."""
    return ElementScores(
        lambda bits, dtype: -_magnitude(bits, dtype), base, names, progress=progress
    )


def high_magnitude(
    base: Checkpoint, names: Iterable[str] | None = None, *, progress: Progress | None = None
) -> ElementScores:
    """|w|: the largest weights first. Arguments as for `WeightScores`."""
    return ElementScores(_magnitude, base, names, progress=progress)


def no_preference(
    base: Checkpoint, names: Iterable[str] | None = None, *, progress: Progress | None = None
) -> ElementScores:
    """0: a selection is random, however small the weights. Arguments as for `WeightScores`."""
    return ElementScores(lambda bits, dtype: np.zeros(bits.shape), base, names, progress=progress)


def _magnitude(bits: Bits, dtype: DType) -> NDArray[np.float64]:
    return np.abs(dtype.decode(bits))
