"""Means over seeds and differences of them, with their intervals.

Seeds are the independent units: an interval says where the mean of many more of them would lie,
if they are normally distributed. It is the test of a difference, too: one that leaves out 0 is what
a t-test at 5 % calls significant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, variance

from trimtab.training.sweeps.seeds import CONFIDENCE, over_seeds, student_t

__all__ = ["CONFIDENCE", "Estimate", "difference", "mean"]


@dataclass(frozen=True)
class Estimate:
    """A mean, and how sure it is.

    Attributes:
        n: Values that it is the mean of; of a difference, of the smaller set.
        value: The mean.
        low: Lower end of its interval; None for a single value, of which nothing is known.
        high: Upper end.
        method: `t`, `paired t` or `Welch`.
    """

    n: int
    value: float
    low: float | None
    high: float | None
    method: str


def mean(values: Mapping[str, float]) -> Estimate:
    """The mean over seeds.

    Args:
        values: Seed -> value; at least one.
    """
    told = over_seeds(list(values.values()))
    return Estimate(told["n"], told["mean"], told["low"], told["high"], "t")


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
