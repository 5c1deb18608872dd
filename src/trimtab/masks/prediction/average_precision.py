"""Average precision of a ranking, from counts of a few thousand score levels.

Going down a ranking, the precision is taken at every element of TRUE and averaged over them. Scores
that tie have no order: they are taken together, with the precision below the last of them:

    AP = Σ (recall_n - recall_{n-1}) precision_n    over the distinct scores n, the highest first

A model's scores are not sorted but counted by their first 16 bits (sign, exponent and the first
seven digits, as in bf16), so that scores closer than 0.8 % can count as tied. Scores of bf16
weights, and whatever else bf16 holds, lose nothing by it.

Source: the definition is that of scikit-learn's `average_precision_score`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab.masks.selection.highest import ordered_keys

__all__ = ["LevelCounts", "average_precision"]

LEVEL_BITS = 16


def average_precision(num_elements: NDArray[np.int64], num_true: NDArray[np.int64]) -> float | None:
    """Average precision from counts.

    Args:
        num_elements: Elements of each level, the lowest score first.
        num_true: How many of them are true.

    Returns:
        None if nothing is true.
    """
    total = int(num_true.sum())
    if not total:
        return None
    found = np.flatnonzero(num_true)[::-1]
    seen, hits = (np.cumsum(of[::-1])[::-1][found] for of in (num_elements, num_true))
    return float(np.sum(num_true[found] / total * (hits / seen)))


class LevelCounts:
    """Counts elements by score, those that are true apart.

    Attributes:
        is_exact: Whether no score had digits beyond those that are told apart.
    """

    def __init__(self) -> None:
        """Start with none."""
        self.is_exact = True
        self._counts = np.zeros((2, 1 << LEVEL_BITS), dtype=np.int64)

    def add(self, name: str, scores: NDArray[np.float32], is_true: NDArray[np.bool_]) -> None:
        """Count some elements.

        Args:
            name: Of their tensor, for the message.
            scores: Of each.
            is_true: Whether each is true.

        Raises:
            MaskError: A score is NaN.
        """
        levels = ordered_keys(name, scores) >> np.uint32(32 - LEVEL_BITS)
        if self.is_exact:
            rest = np.uint32((1 << 32 - LEVEL_BITS) - 1)
            self.is_exact = not (scores.view(np.uint32) & rest).any()
        self._counts[0] += np.bincount(levels, minlength=1 << LEVEL_BITS)
        self._counts[1] += np.bincount(levels[is_true], minlength=1 << LEVEL_BITS)

    def add_unranked(self, num_elements: int, num_true: int) -> None:
        """Count elements that have no score, below all that have one."""
        self._counts[:, 0] += num_elements, num_true

    def add_all(self, other: LevelCounts) -> None:
        """Take in what another has counted."""
        self._counts += other._counts
        self.is_exact &= other.is_exact

    @property
    def average_precision(self) -> float | None:
        """Of what was counted; None if nothing was true."""
        return average_precision(*self._counts)
