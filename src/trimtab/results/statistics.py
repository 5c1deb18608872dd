"""How sure a figure is: intervals of 95 % of accuracies, differences and means; tests; ranks.

Questions are the independent units of an accuracy. Several samples of one question are not
independent, so what is averaged over samples is a mean of one share for each question, with a
standard error over questions. Two models are asked the same questions, so a difference is one of
pairs: that is sharper than two intervals beside each other. Seeds of one arm have a mean with a
t-interval.
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
"""Of every interval."""

PAIR = "-"
"""Between the two seeds that a value is of."""

Values: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.int64]

_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


Interval: TypeAlias = tuple[float, float]
"""Low and high end, both inclusive."""


def wilson(share: float, num: float) -> Interval:
    """The score interval of a share of independent trials.

    Args:
        share: Of successes.
        num: Trials, above 0; not whole where it is an effective number.

    Source:
        Wilson 1927, J. Am. Stat. Assoc. 22(158). The shares p with |share - p| <= z sqrt(p(1-p)/n).
    """
    centre = share + _Z**2 / (2 * num)
    half = _Z * sqrt(share * (1 - share) / num + _Z**2 / (4 * num**2))
    scale = 1 + _Z**2 / num
    # Rounding must not lead the ends past 0, 1 or the share itself.
    low, high = (centre - half) / scale, (centre + half) / scale
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean of independent values; None for fewer than two.

    With one share for each question it is the standard error clustered by question.

    Source:
        Miller 2024 (arXiv 2411.00640), on clustered standard errors; each cluster is as large here.
    """
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else None


def clustered_interval(shares: Sequence[float], num_samples: int) -> Interval:
    """Interval of the mean of shares of right samples, one share for each question.

    Wilson's, with the number of independent samples that would have the clustered standard error.
    That is at most the number of samples; and the number of questions where all samples are right
    or all are wrong, which tells nothing of how they vary.

    Args:
        shares: Of each question; at least one.
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
        low: The least that the mean can be.
        high: The most.
    """
    error = standard_error(values)
    return None if error is None else normal_interval(fmean(values), error, low, high)


def normal_interval(value: float, error: float, low: float = -inf, high: float = inf) -> Interval:
    """Interval of an estimate with a standard error by the normal distribution, cut at bounds."""
    return max(low, value - _Z * error), min(high, value + _Z * error)


def mcnemar(num_gained: int, num_lost: int) -> float:
    """Two-sided p-value of the exact test that gains and losses are equally likely.

    Args:
        num_gained: Questions that only the second model answers.
        num_lost: Questions that only the first one answers.

    Source:
        McNemar 1947, Psychometrika 12(2), with the binomial distribution in place of chi-squared.
    """
    num, fewer = num_gained + num_lost, min(num_gained, num_lost)
    tail = sum(comb(num, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**num)


def paired_interval(num_gained: int, num_lost: int, num: int) -> Interval:
    """Interval of the difference of two accuracies on the same questions, second minus first.

    Args:
        num_gained: Questions that only the second model answers.
        num_lost: Questions that only the first one answers.
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
    """Mean of some values with its t-interval, which supposes them normally distributed.

    Args:
        values: One for each seed, at least one.

    Returns:
        `n`, `mean`, `low` and `high` (null for one value, of which nothing is known), `least` and
        `most`.
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
    """How many standard errors of a mean its interval reaches to either side.

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
    """A mean, and how sure it is.

    Attributes:
        n: Seeds that it is the mean of; of a difference, those of the smaller set.
        value: The mean.
        low: Lower end of its interval; None for a single value, of which nothing is known.
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

    Seeds are the independent units: the interval says where the mean of many more of them would
    lie, if they are normally distributed. Pairs of seeds, as overlaps are of, are not independent:
    ten pairs of five seeds know what five seeds know.

    Args:
        values: Seed -> value; at least one. Or two seeds, as `0-1`, of every two -> value.
    """
    if all(PAIR in seeds for seeds in values):
        return _mean_of_pairs(values)
    told = over_seeds(list(values.values()))
    return Estimate(told["n"], told["mean"], told["low"], told["high"], "t")


def _mean_of_pairs(values: Mapping[str, float]) -> Estimate:
    """The mean over pairs of seeds, by the jackknife over seeds.

    Each seed is left out once with all its pairs; how much that moves the mean is how much a seed
    decides. Two seeds are one pair, of which nothing is known.

    Source:
        Arvesen 1969, "Jackknifing U-statistics", with n - 1 degrees of freedom.
    """
    pairs = [(seeds.split(PAIR), value) for seeds, value in values.items()]
    seeds = sorted({seed for pair, _ in pairs for seed in pair})
    value, n = fmean(values.values()), len(seeds)
    if n < 3:
        return Estimate(n, value, None, None, "jackknife")
    without = [fmean(of for pair, of in pairs if seed not in pair) for seed in seeds]
    half = student_t(n - 1) * sqrt((n - 1) * pvariance(without))
    return Estimate(n, value, value - half, value + half, "jackknife")


def difference_over_seeds(values: Mapping[str, float], other: Mapping[str, float]) -> Estimate:
    """The mean of some values less that of others, over the seeds that both have.

    The interval is the test, too: one that leaves out 0 is what a t-test at 5 % calls significant.
    Runs of one seed share their data's order and their random numbers, so they are pairs. Only
    where no seed is in both it is Welch's interval, with its degrees of freedom rounded down.

    Args:
        values: Seed -> value.
        other: The same of what is subtracted.

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
    parts = [variance(of.values()) / len(of) for of in (values, other)]
    if not sum(parts):
        return Estimate(n, gap, gap, gap, "Welch")
    weighted = (part**2 / (len(of) - 1) for part, of in zip(parts, (values, other), strict=True))
    degrees = int(sum(parts) ** 2 / sum(weighted))
    half = student_t(degrees) * sqrt(sum(parts))
    return Estimate(n, gap, gap - half, gap + half, "Welch")


def discoveries(p: Values) -> Values:
    """The q of each probability, by Benjamini and Hochberg (JRSS B 57, 1995); NaN stays NaN.

    Calling all units with q <= 0.05 significant leaves 5 % of them false on average, at most.
    """
    q: Values = np.full(len(p), np.nan)
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


def spearman(first: Values, second: Values) -> float | None:
    """Rank correlation; ties get the mean of their ranks. None where all of one are alike."""
    ranks = [_ranks(values) for values in (first, second)]
    centred = [values - values.mean() for values in ranks]
    norm = sqrt(float(np.dot(centred[0], centred[0]) * np.dot(centred[1], centred[1])))
    return float(np.dot(*centred)) / norm if norm else None


def _ranks(values: Values) -> Values:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: Values = (last - (counts - 1) / 2).astype(np.float64)
    return middle[place.ravel()]
