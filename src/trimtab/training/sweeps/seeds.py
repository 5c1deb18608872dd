"""What seeds of one arm have in common: their mean, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from math import atan, cos, pi, sin, sqrt
from statistics import fmean, stdev
from typing import Any

from trimtab.training.evaluation.intervals import CONFIDENCE

__all__ = ["over_seeds", "student_t"]


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
