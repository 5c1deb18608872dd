"""How many elements of a unit chance would select, and how far from that a count is.

A mask that keeps its count in each stratum (a tensor, or an exponent bin of a tensor) and is random
otherwise selects a hypergeometric number of a unit's elements of that stratum. What a unit has in
all is a sum of independent such numbers, whose mean, variance and third central moment are exact.

A probability asks for the whole distribution of that sum. A gamma distribution with the same three
moments (Pearson's type III) stands for it, brought to a normal one by the cube root of Wilson and
Hilferty (The distribution of chi-square, PNAS 17, 1931), with half an element as the correction for
counts being whole. It is within a few percent of the exact probability near the middle, and too
careful far out (at 1e-7 up to 15 times too large where a unit expects an element or two). The
normal distribution alone, without skewness, finds too many units significant where each has few
elements selected.
"""

from __future__ import annotations

from math import erfc, log, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Moments",
    "discoveries",
    "entropy",
    "gini",
    "hypergeometric",
    "no_moments",
    "probabilities",
    "spearman",
    "z_scores",
]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


class Moments(NamedTuple):
    """Of the count of each unit; each `[units]`.

    Attributes:
        mean: Expected selected elements.
        variance: Their variance.
        third: Their third central moment.
    """

    mean: Floats
    variance: Floats
    third: Floats

    def plus(self, other: Moments) -> Moments:
        """Of the sums of two independent counts."""
        return Moments(*(one + another for one, another in zip(self, other, strict=True)))


def no_moments(num_units: int) -> Moments:
    """Of units of no elements."""
    return Moments(*(np.zeros(num_units) for _ in range(3)))


def hypergeometric(of_unit: NDArray[np.integer], sizes: Counts, selected: Counts) -> Moments:
    """Moments of what units have of strata from which so many elements are drawn.

    Args:
        of_unit: Elements of each unit in each stratum, `[units, strata]`.
        sizes: Elements of each stratum.
        selected: How many of them are drawn.
    """
    total = no_moments(len(of_unit))
    for column, size, drawn in zip(of_unit.T, sizes.tolist(), selected.tolist(), strict=True):
        if size == 0:
            continue
        own = column.astype(np.float64)
        share, left = drawn / size, 1 - drawn / size
        mean = own * share
        # An only element is either drawn or not: nothing about it is random.
        variance = mean * left * (size - own) / max(size - 1, 1)
        third = variance * (left - share) * (size - 2 * own) / max(size - 2, 1)
        total = total.plus(Moments(mean, variance, third if size > 2 else np.zeros_like(mean)))
    return total


def z_scores(counts: Counts, chance: Moments) -> Floats:
    """Standard deviations by which each count is above its expectation; NaN where none can vary."""
    z: Floats = np.full(len(counts), np.nan)
    free = chance.variance > 0
    z[free] = (counts[free] - chance.mean[free]) / np.sqrt(chance.variance[free])
    return z


def probabilities(counts: Counts, chance: Moments) -> Floats:
    """Two-sided probability of a count as far out: twice the smaller of P(X >= x) and P(X <= x).

    See the module for the approximation; NaN where a count cannot vary.
    """
    p: Floats = np.full(len(counts), np.nan)
    free = chance.variance > 0
    apart = counts[free] - chance.mean[free]
    deviation = np.sqrt(chance.variance[free])
    skewness = chance.third[free] / deviation**3
    upper = _upper_tail((apart - 0.5) / deviation, skewness)
    lower = _upper_tail(-(apart + 0.5) / deviation, -skewness)
    p[free] = np.minimum(1.0, 2 * np.minimum(upper, lower))
    return p


def _upper_tail(z: Floats, skewness: Floats) -> Floats:
    """P(Z >= z) of a gamma distribution brought to mean 0 and variance 1, of that skewness."""
    skewed = np.abs(skewness) > 1e-8
    g = np.where(skewed, skewness, 1.0)
    # Beyond the end of the distribution the cube root is negative, and the tail next to nothing.
    normal = np.where(skewed, 6 / g * (np.cbrt(1 + g * z / 2) - 1) + g / 6, z)
    return np.array([0.5 * erfc(value / sqrt(2)) for value in normal.tolist()], dtype=np.float64)


def discoveries(p: Floats) -> Floats:
    """The q of each probability, by Benjamini and Hochberg (JRSS B 57, 1995); NaN stays NaN.

    Calling all units with q <= 0.05 significant leaves 5 % of them false on average, at most.
    """
    q: Floats = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    ratios = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(1.0, np.minimum.accumulate(ratios[::-1])[::-1])
    return q


def gini(counts: Counts) -> float | None:
    """Gini coefficient: 0 where all units have the same count, near 1 where one has all."""
    total, num = int(counts.sum()), len(counts)
    if not total:
        return None
    ranks = np.arange(1, num + 1, dtype=np.float64)
    weighted = float(np.dot(2 * ranks - num - 1, np.sort(counts).astype(np.float64)))
    return weighted / (num * total)


def entropy(counts: Counts) -> float | None:
    """Entropy of the shares that units have of all counts, in units of its maximum: 1 is even."""
    total, num = int(counts.sum()), len(counts)
    if not total or num < 2:
        return None
    shares = counts[counts > 0] / total
    return float(-np.dot(shares, np.log(shares)) / log(num))


def spearman(first: Floats, second: Floats) -> float | None:
    """Rank correlation; ties get the mean of their ranks. None where all of one are alike."""
    ranks = [_ranks(values) for values in (first, second)]
    centred = [values - values.mean() for values in ranks]
    norm = sqrt(float(np.dot(centred[0], centred[0]) * np.dot(centred[1], centred[1])))
    return float(np.dot(*centred)) / norm if norm else None


def _ranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: Floats = (last - (counts - 1) / 2).astype(np.float64)
    return middle[place.ravel()]
