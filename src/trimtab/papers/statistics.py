"""Means over seeds and differences of them, with their intervals.

Seeds are the independent units: an interval says where the mean of many more of them would lie,
if they are normally distributed. It is the test of a difference, too: one that leaves out 0 is what
a t-test at 5 % calls significant. Pairs of seeds, as overlaps are of, are not independent: ten
pairs of five seeds know what five seeds know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, pvariance, variance

from trimtab.results.statistics import CONFIDENCE, over_seeds, student_t

__all__ = ["CONFIDENCE", "PAIR", "Estimate", "difference", "mean"]

PAIR = "-"
"""Between the two seeds that a value is of."""


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


def mean(values: Mapping[str, float]) -> Estimate:
    """The mean over seeds.

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


def difference(values: Mapping[str, float], other: Mapping[str, float]) -> Estimate:
    """The mean of some values less that of others, over the seeds that both have.

    Runs of one seed share their data's order and their random numbers, so they are pairs. Only
    where no seed is in both it is Welch's interval, with its degrees of freedom rounded down.

    Args:
        values: Seed -> value.
        other: The same of what is subtracted.

    Source:
        Welch 1947, with the degrees of freedom of Satterthwaite 1946.
    """
    if values.keys() & other.keys():
        pairs = mean({seed: values[seed] - other[seed] for seed in values if seed in other})
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
