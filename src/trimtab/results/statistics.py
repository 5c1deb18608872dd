"""95 % intervals of accuracies, differences and means; tests; rank statistics.

Questions are the independent units of an accuracy. Several samples of one question are not
independent, so sampled accuracies are means of one share per question, with a standard error over
questions. Two models are asked the same questions, so their difference is paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import atan, comb, cos, inf, log, pi, sin, sqrt
from statistics import NormalDist, fmean, pvariance, stdev, variance
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Confidence level of every interval."""

PAIR = "-"
"""Separates the two seeds of a value for a pair."""

Values: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.int64]

_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


Interval: TypeAlias = tuple[float, float]
"""Low and high end, both inclusive."""


def wilson(share: float, num: float) -> Interval:
    """The score interval of a share of independent trials.

    Args:
        share: Share of successes.
        num: Trials, above 0; an effective number need not be whole.

    Source:
        Wilson 1927, J. Am. Stat. Assoc. 22(158). The shares p with |share - p| <= z sqrt(p(1-p)/n).
    """
    centre = share + _Z**2 / (2 * num)
    half = _Z * sqrt(share * (1 - share) / num + _Z**2 / (4 * num**2))
    scale = 1 + _Z**2 / num
    # Rounding must not move the ends past 0, 1 or the share itself.
    low, high = (centre - half) / scale, (centre + half) / scale
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean of independent values; None for fewer than two.

    With one share for each question it is the standard error clustered by question.

    Source:
        Miller 2024 (arXiv 2411.00640), on clustered standard errors, with clusters of equal size.
    """
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else None


def clustered_interval(shares: Sequence[float], num_samples: int) -> Interval:
    """Interval of the mean of shares of right samples, one share for each question.

    Wilson's, with the number of independent samples that would have the clustered standard error:
    at most the number of samples, and the number of questions if all samples are right or all are
    wrong, when their variance is unknown.

    Args:
        shares: One for each question; at least one.
        num_samples: Samples of each question.

    Source:
        Franco, Little, Louis and Slud 2019, J. Surv. Stat. Methodol. 7(3), who recommend Wilson's
        with the effective sample size. The two bounds are ours.
    """
    share, error = fmean(shares), standard_error(shares)
    num = float(len(shares))
    if error is not None and 0 < share < 1:
        most = num * num_samples
        num = most if error == 0 else min(most, share * (1 - share) / error**2)
    return wilson(share, num)


def mean_interval(values: Sequence[float], low: float, high: float) -> Interval | None:
    """Interval of a mean by the normal distribution, cut at bounds; None for fewer than two.

    Args:
        values: Independent.
        low: Lower bound of the mean.
        high: Upper bound.
    """
    error = standard_error(values)
    return None if error is None else normal_interval(fmean(values), error, low, high)


def normal_interval(value: float, error: float, low: float = -inf, high: float = inf) -> Interval:
    """Interval of an estimate with a standard error by the normal distribution, cut at bounds."""
    return max(low, value - _Z * error), min(high, value + _Z * error)


def mcnemar(num_gained: int, num_lost: int) -> float:
    """Two-sided p-value of the exact test that gains and losses are equally likely.

    Args:
        num_gained: Questions that only the second model answers correctly.
        num_lost: Questions that only the first one answers correctly.

    Source:
        McNemar 1947, Psychometrika 12(2), with the binomial distribution in place of chi-squared.
    """
    num, fewer = num_gained + num_lost, min(num_gained, num_lost)
    tail = sum(comb(num, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**num)


def paired_interval(num_gained: int, num_lost: int, num: int) -> Interval:
    """Interval of the difference of two accuracies on the same questions, second minus first.

    Args:
        num_gained: Questions that only the second model answers correctly.
        num_lost: Questions that only the first one answers correctly.
        num: All questions.

    Source:
        Bonett and Price 2012, J. Educ. Behav. Stat. 37(4): Wald's, with one more gain and one more
        loss.
    """
    gained, lost = (num_gained + 1) / (num + 2), (num_lost + 1) / (num + 2)
    centre = gained - lost
    half = _Z * sqrt((gained + lost - centre**2) / (num + 2))
    return max(-1.0, centre - half), min(1.0, centre + half)


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean of some values with its t-interval, which assumes a normal distribution.

    Args:
        values: One for each seed, at least one.

    Returns:
        `n`, `mean`, `low` and `high` (null for a single value), `least` and `most`.
    """
    num, mean = len(values), fmean(values)
    half = None
    if num > 1:
        half = student_t(num - 1) * stdev(values) / sqrt(num)
    return {
        "n": num,
        "mean": mean,
        "low": None if half is None else mean - half,
        "high": None if half is None else mean + half,
        "least": min(values),
        "most": max(values),
    }


def student_t(degrees: int) -> float:
    """Half width of the interval of a mean, in standard errors.

    Args:
        degrees: Degrees of freedom, at least 1.

    Source:
        The two-sided probability A(t | degrees) as a finite sum: Abramowitz and Stegun 1964,
        26.7.3 and 26.7.4. It grows with t, so it is inverted by bisection.
    """
    low, high = 0.0, 20.0  # the largest, of one degree, is 12.7
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < CONFIDENCE else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """Probability that |T| <= t."""
    angle = atan(t / sqrt(degrees))
    squared = cos(angle) ** 2
    odd = degrees % 2
    term = total = cos(angle) if odd and degrees > 1 else float(not odd)
    for k in range(2 + odd, degrees - 1, 2):
        term *= squared * (k - 1) / k
        total += term
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        n: Number of seeds; for a difference, that of the smaller set.
        value: The mean.
        low: Lower end of its interval; None for a single value.
        high: Upper end.
        method: `t`, `paired t`, `Welch` or `jackknife`.
    """

    n: int
    value: float
    low: float | None
    high: float | None
    method: str


def mean_over_seeds(values: Mapping[str, float]) -> Estimate:
    """The mean over seeds.

    Seeds are the independent units: the interval is that of the mean of a normal distribution.
    Pairs of seeds (for overlaps) are not independent, so they get a jackknife over seeds.

    Args:
        values: Seed -> value; at least one. Or pair of seeds (`0-1`) -> value, for every pair.
    """
    if all(PAIR in seeds for seeds in values):
        return _mean_of_pairs(values)
    mean = over_seeds(list(values.values()))
    return Estimate(mean["n"], mean["mean"], mean["low"], mean["high"], "t")


def _mean_of_pairs(values: Mapping[str, float]) -> Estimate:
    """The mean over pairs of seeds, with the interval of a jackknife over seeds.

    Each seed is left out once with all its pairs. Two seeds are one pair, without an interval.

    Source:
        Arvesen 1969, "Jackknifing U-statistics", with n - 1 degrees of freedom.
    """
    pairs = [(seeds.split(PAIR), value) for seeds, value in values.items()]
    seeds = sorted({seed for pair, _ in pairs for seed in pair})
    value, n = fmean(values.values()), len(seeds)
    if n < 3:
        return Estimate(n, value, None, None, "jackknife")
    without = [fmean(value for pair, value in pairs if seed not in pair) for seed in seeds]
    half = student_t(n - 1) * sqrt((n - 1) * pvariance(without))
    return Estimate(n, value, value - half, value + half, "jackknife")


def difference_over_seeds(values: Mapping[str, float], other: Mapping[str, float]) -> Estimate:
    """The mean of some values minus that of others, paired by seed.

    An interval without 0 is significant in a t-test at 5 %. Runs of one seed share their data order
    and their random numbers, so they are pairs. If no seed is in both, it is Welch's interval, with
    its degrees of freedom rounded down.

    Args:
        values: Seed -> value.
        other: Seed -> value to subtract.

    Source:
        Welch 1947, with the degrees of freedom of Satterthwaite 1946.
    """
    if values.keys() & other.keys():
        pairs = mean_over_seeds(
            {seed: values[seed] - other[seed] for seed in values if seed in other}
        )
        return Estimate(pairs.n, pairs.value, pairs.low, pairs.high, "paired t")
    gap = fmean(values.values()) - fmean(other.values())
    n = min(len(values), len(other))
    if n < 2:
        return Estimate(n, gap, None, None, "Welch")
    sides = (values, other)
    parts = [variance(side.values()) / len(side) for side in sides]
    if not sum(parts):
        return Estimate(n, gap, gap, gap, "Welch")
    weighted = (part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    degrees = int(sum(parts) ** 2 / sum(weighted))
    half = student_t(degrees) * sqrt(sum(parts))
    return Estimate(n, gap, gap - half, gap + half, "Welch")


def discoveries(p: Values) -> Values:
    """The q-value of each p-value, by Benjamini and Hochberg (JRSS B 57, 1995); NaN stays NaN.

    Of the units with q <= 0.05, on average at most 5 % are false discoveries.
    """
    q: Values = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    ratios = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(1.0, np.minimum.accumulate(ratios[::-1])[::-1])
    return q


def gini(counts: Counts) -> float | None:
    """Gini coefficient: 0 if all units have the same count, near 1 if one has all."""
    total, num = int(counts.sum()), len(counts)
    if not total:
        return None
    ranks = np.arange(1, num + 1, dtype=np.float64)
    weighted = float(np.dot(2 * ranks - num - 1, np.sort(counts).astype(np.float64)))
    return weighted / (num * total)


def entropy(counts: Counts) -> float | None:
    """Entropy of the units' shares of all counts, divided by its maximum: 1 is even."""
    total, num = int(counts.sum()), len(counts)
    if not total or num < 2:
        return None
    shares = counts[counts > 0] / total
    return float(-np.dot(shares, np.log(shares)) / log(num))


def spearman(first: Values, second: Values) -> float | None:
    """Rank correlation; ties get the mean of their ranks. None if one side is constant."""
    ranks = [_ranks(values) for values in (first, second)]
    centred = [values - values.mean() for values in ranks]
    norm = sqrt(float(np.dot(centred[0], centred[0]) * np.dot(centred[1], centred[1])))
    return float(np.dot(*centred)) / norm if norm else None


def _ranks(values: Values) -> Values:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: Values = (last - (counts - 1) / 2).astype(np.float64)
    return middle[inverse.ravel()]
