"""Hypergeometric counts in one urn or several strata: moments, tails and p-values.

Two sets of `a` and `b` out of `n` elements, drawn uniformly and independently, share a
hypergeometric number of elements. If the counts are fixed in several strata (tensors, exponent
bins), the shared number is a sum of independent hypergeometric numbers, one per stratum. Its mean,
variance and third central moment are exact.

`tail` is exact if the sum has few possible values; otherwise it is the tail of the normal
distribution with that mean and variance. Probabilities are logarithms, since those of masks are
often below the smallest floating-point number.

`probabilities` is for many units at once. It approximates the sum by a gamma distribution with the
same three moments (Pearson's type III), transformed to a normal one by the cube root of Wilson and
Hilferty (The distribution of chi-square, PNAS 17, 1931), with a continuity correction of half an
element. It is within a few percent of the exact probability near the mean, and conservative in the
tail (at 1e-7 up to 15 times too large if a unit expects one or two elements). The normal
distribution without skewness would find too many units with few selected elements significant.
"""

from __future__ import annotations

from math import erfc, expm1, inf, log, log1p, log10, pi, sqrt
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.words import one_line

MOST_VALUES = 1 << 14
"""Number of possible values, over all strata, up to which tails are exact."""

LARGEST_TILT, MOST_STEPS = 700.0, 100
"""Bounds of the search for a tilt; beyond the first, all probability is at the last value."""

NEGLIGIBLE = 1e-30
"""Probabilities that are omitted from a sum near 1."""

Floats = NDArray[np.float64]


class Strata(NamedTuple):
    """Sizes of two sets in disjoint strata.

    Attributes:
        num_elements: int64 `[strata]`.
        first: int64 `[strata]`: elements of the first set.
        second: int64 `[strata]`: elements of the second set.
    """

    num_elements: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]

    def __repr__(self) -> str:
        return one_line(self)

    @property
    def least(self) -> int:
        """Fewest elements that the two can share."""
        return int(np.maximum(self.first + self.second - self.num_elements, 0).sum())

    @property
    def most(self) -> int:
        """Most elements that the two can share."""
        return int(np.minimum(self.first, self.second).sum())

    @property
    def expected(self) -> float:
        """Mean number of shared elements: the sum of ab / n."""
        n, a, b = self._floats()
        return float(np.sum(a * b / n))

    @property
    def variance(self) -> float:
        """Its variance: the sum of ab(n - a)(n - b) / (n²(n - 1))."""
        n, a, b = self._floats()
        # A single element is either shared or not: its variance is 0.
        return float(np.sum(a * (b / n) * ((n - a) / n) * ((n - b) / np.maximum(n - 1, 1))))

    def _floats(self) -> tuple[Floats, Floats, Floats]:
        """The counts as fp64, whose products do not overflow; without strata of no elements."""
        some = self.num_elements > 0
        n, a, b = (counts[some].astype(np.float64) for counts in self)
        return n, a, b


class Tail(NamedTuple):
    """The probability of a number of shared elements.

    Attributes:
        log10_p: log10 of the two-sided probability: twice the smaller of P(X >= x) and P(X <= x),
            and at most 1.
        method: `exact`: the sum of all probabilities, up to rounding in fp64. `normal`: the tail of
            a normal distribution with the exact mean and variance.
    """

    log10_p: float
    method: Literal["exact", "normal"]


def tail(strata: Strata, shared: int) -> Tail:
    """Two-sided probability of a number of shared elements at least as extreme as this one.

    Args:
        strata: Sizes of the two sets.
        shared: Elements that they share, from `strata.least` to `strata.most`.
    """
    offset = np.maximum(strata.first + strata.second - strata.num_elements, 0)
    highest = np.minimum(strata.first, strata.second) - offset
    free = highest > 0  # the others have only one possible value
    n, a, b = (counts[free] for counts in strata)
    beyond_least = shared - strata.least
    offset, highest = offset[free], _reachable(strata, shared, highest, offset)[free]
    if highest.sum() <= MOST_VALUES:
        log_p = _exact(Strata(n, a, b), offset, highest, beyond_least)
        return Tail(min(0.0, log_p / log(10)), "exact")
    z = (shared - strata.expected) / sqrt(strata.variance)
    return Tail(_log10_erfc(abs(z) / sqrt(2)), "normal")


def _reachable(
    strata: Strata, shared: int, highest: NDArray[np.int64], offset: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The highest values of each stratum that can matter.

    A hypergeometric number is a sum of independent Bernoulli variables, so its tail is lighter than
    that of a Poisson variable with the same mean: 12 standard deviations and 60 above the mean,
    less than 1e-25 remains.
    """
    n = np.maximum(strata.num_elements, 1).astype(np.float64)
    expected = strata.first * (strata.second / n) - offset
    mean = np.maximum(expected, shared - strata.least)
    return np.minimum(highest, np.ceil(mean + 12 * np.sqrt(mean) + 60).astype(np.int64))


def _exact(
    strata: Strata, offset: NDArray[np.int64], highest: NDArray[np.int64], shared: int
) -> float:
    """Natural logarithm of the two-sided probability, all strata counted from their least value.

    In the tail, probabilities of single values underflow in fp64. So each distribution is first
    tilted (its probability of x times exp(tilt · x)) until the mean of the sum is near `shared`,
    and the tilt is undone in the logarithms of the result.
    """
    logs = [_log_pmf(*stratum) for stratum in zip(*strata, offset, highest, strict=True)]
    tilt = _tilt(logs, shared)
    total, first, log_scale = np.ones(1), 0, 0.0
    for log_pmf in logs:
        weights = log_pmf + tilt * np.arange(len(log_pmf))
        top = float(weights.max())
        tilted = np.exp(weights - top)
        log_scale += top + log(tilted.sum())
        skipped, tilted = _without_ends(tilted / tilted.sum())
        first += skipped
        total = np.convolve(total, tilted)
        skipped, total = _without_ends(total)
        first += skipped
    values = np.arange(first, first + len(total))
    with np.errstate(divide="ignore"):
        log_pmf = np.log(total) + log_scale - tilt * values
    upper = tilt > 0 or (tilt == 0 and 2 * total[values >= shared].sum() < 1)
    near = _log_sum(log_pmf[values >= shared] if upper else log_pmf[values <= shared])
    far = log(min(1.0, -expm1(min(near, 0.0)) + np.exp(_log_sum(log_pmf[values == shared]))))
    return log(2) + min(near, far)


def _log_pmf(n: int, a: int, b: int, offset: int, highest: int) -> Floats:
    """Logarithms of the probabilities of the values `offset` to `offset + highest`.

    Each is the one before times (a - x)(b - x) / ((x + 1)(n - a - b + x + 1)).
    """
    x = np.arange(offset, offset + highest, dtype=np.float64)
    ratios = np.log((a - x) / (x + 1)) + np.log((b - x) / (float(n - a - b) + x + 1))
    logs: Floats = np.concatenate([[0.0], np.cumsum(ratios)])
    return logs - _log_sum(logs)


def _tilt(logs: list[Floats], shared: int) -> float:
    """A tilt that moves the mean of the sum to within a standard deviation of a value.

    It need not be exact, since it is undone: Newton's method between two bounds.
    """
    if not logs:
        return 0.0
    flat = np.concatenate(logs)
    starts = np.cumsum([0, *map(len, logs[:-1])])
    lengths = [len(log_pmf) for log_pmf in logs]
    values = np.arange(len(flat)) - np.repeat(starts, lengths).astype(np.float64)
    tilt, low, high = 0.0, -LARGEST_TILT, LARGEST_TILT
    for _ in range(MOST_STEPS):
        weights = flat + tilt * values
        weights = np.exp(weights - np.repeat(np.maximum.reduceat(weights, starts), lengths))
        sums = np.add.reduceat(weights, starts)
        means = np.add.reduceat(weights * values, starts) / sums
        squares = np.add.reduceat(weights * values**2, starts) / sums
        missing = shared - float(means.sum())
        variance = float((squares - means**2).clip(min=0).sum())
        if abs(missing) <= max(1.0, sqrt(variance)):
            break
        low, high = (tilt, high) if missing > 0 else (low, tilt)
        tilt += missing / variance if variance else 0.0
        if not low < tilt < high:
            tilt = (low + high) / 2
    return tilt


def _without_ends(pmf: Floats) -> tuple[int, Floats]:
    """Trim negligible probabilities at both ends; also returns their number at the lower end."""
    kept = np.flatnonzero(pmf > NEGLIGIBLE)
    return int(kept[0]), pmf[kept[0] : kept[-1] + 1]


def _log_sum(logs: Floats) -> float:
    """Logarithm of the sum of numbers whose logarithms are given."""
    top = float(logs.max(initial=-inf))
    return top if top == -inf else top + log(float(np.exp(logs - top).sum()))


def _log10_erfc(x: float) -> float:
    """log10 of the complementary error function, also where it underflows in fp64."""
    if x < 20:
        return log10(erfc(x))
    # Its asymptotic expansion, of which the next term is below 1e-9 here.
    square = x * x
    series = log1p(-1 / (2 * square) + 3 / (4 * square**2) - 15 / (8 * square**3))
    return (-square - log(x) - log(pi) / 2 + series) / log(10)


Values = NDArray[np.float64]
Counts = NDArray[np.int64]


class Moments(NamedTuple):
    """Moments of the count of each unit; each `[units]`, or `[sets, units]` for several sets.

    Attributes:
        mean: Expected selected elements.
        variance: Their variance.
        third: Their third central moment.
    """

    mean: Values
    variance: Values
    third: Values

    def plus(self, other: Moments) -> Moments:
        """Moments of the sums of two independent counts."""
        return Moments(*(one + another for one, another in zip(self, other, strict=True)))

    def of_set(self, index: int) -> Moments:
        """Moments of one of several sets."""
        return Moments(*(values[index] for values in self))


def no_moments(num_units: int) -> Moments:
    """Moments of units without elements."""
    return Moments(*(np.zeros(num_units) for _ in range(3)))


def hypergeometric(of_unit: NDArray[np.integer], sizes: Counts, selected: Counts) -> Moments:
    """Moments of the number of selected elements of each unit.

    Args:
        of_unit: Elements of each unit in each stratum, `[units, strata]`.
        sizes: Elements of each stratum.
        selected: Selected elements of each stratum.
    """
    total = no_moments(len(of_unit))
    for column, size, drawn in zip(of_unit.T, sizes.tolist(), selected.tolist(), strict=True):
        if size == 0:
            continue
        own = column.astype(np.float64)
        share, left = drawn / size, 1 - drawn / size
        mean = own * share
        # A single element is either drawn or not: its variance is 0.
        variance = mean * left * (size - own) / max(size - 1, 1)
        third = variance * (left - share) * (size - 2 * own) / max(size - 2, 1)
        total = total.plus(Moments(mean, variance, third if size > 2 else np.zeros_like(mean)))
    return total


def z_scores(counts: Counts, chance: Moments) -> Values:
    """Excess of each count over its mean in standard deviations; NaN if it cannot vary."""
    z: Values = np.full(len(counts), np.nan)
    free = chance.variance > 0
    z[free] = (counts[free] - chance.mean[free]) / np.sqrt(chance.variance[free])
    return z


def probabilities(counts: Counts, chance: Moments) -> Values:
    """Two-sided p-value of each count: twice the smaller of P(X >= x) and P(X <= x).

    See the module for the approximation; NaN if a count cannot vary.
    """
    p: Values = np.full(len(counts), np.nan)
    free = chance.variance > 0
    apart = counts[free] - chance.mean[free]
    deviation = np.sqrt(chance.variance[free])
    skewness = chance.third[free] / deviation**3
    upper = _upper_tail((apart - 0.5) / deviation, skewness)
    lower = _upper_tail(-(apart + 0.5) / deviation, -skewness)
    p[free] = np.minimum(1.0, 2 * np.minimum(upper, lower))
    return p


def _upper_tail(z: Values, skewness: Values) -> Values:
    """P(Z >= z) of a gamma distribution with mean 0, variance 1 and this skewness."""
    skewed = np.abs(skewness) > 1e-8
    g = np.where(skewed, skewness, 1.0)
    # Beyond the end of the distribution the cube root is negative, and the tail almost 0.
    normal = np.where(skewed, 6 / g * (np.cbrt(1 + g * z / 2) - 1) + g / 6, z)
    return np.array([0.5 * erfc(value / sqrt(2)) for value in normal.tolist()], dtype=np.float64)
