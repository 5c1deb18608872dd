"""Counts of change: integers that add up, from which every ratio is derived at the end.

Counts of tensors are added to counts of layers, kinds and the model; nothing ever averages
averages. A percentage reads "0 %" or "100 %" only when it is exactly that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import floor, inf, isfinite, sqrt
from typing import Any

from trimtab.elements.ulps import label_order
from trimtab.words import one_line, out_of

__all__ = ["ChangeCounts", "added", "percent"]


@dataclass(frozen=True)
class ChangeCounts:
    """What changed among some elements. Add two with `+`; `sum(counts, ChangeCounts())` rolls up.

    Attributes:
        num_elements: Elements compared.
        num_changed: Criterion key -> changed elements.
        num_zero_sign_flips: Elements that went from +0.0 to -0.0 or back: `bits` sees them,
            `value` does not.
        num_nan: Elements that are NaN in base, tuned or both, changed or not.
        num_increased: Elements with tuned > base.
        num_decreased: Elements with tuned < base.
        num_nonfinite_updates: Changed elements whose update is NaN or infinite; they are left out
            of the sums below.
        ulp_histogram: Label of signed distance in ulp -> changed elements (`"-1"`, `"9..16"`).
            Elements with a NaN and sign flips of zero have no distance and are not in it.
        update_sum: Sum of tuned - base, accumulated in fp64.
        update_sum_abs: Sum of |tuned - base|.
        update_sum_squares: Sum of (tuned - base)².
        update_max_abs: Largest |tuned - base|.
    """

    num_elements: int = 0
    num_changed: Mapping[str, int] = field(default_factory=dict)
    num_zero_sign_flips: int = 0
    num_nan: int = 0
    num_increased: int = 0
    num_decreased: int = 0
    num_nonfinite_updates: int = 0
    ulp_histogram: Mapping[str, int] = field(default_factory=dict)
    update_sum: float = 0.0
    update_sum_abs: float = 0.0
    update_sum_squares: float = 0.0
    update_max_abs: float = 0.0

    def told(self, criterion: str = "bits") -> str:
        """How many changed, in words."""
        changed = out_of(self.num_changed.get(criterion, 0), self.num_elements, "element")
        return f"{changed} changed ({criterion})"

    def __repr__(self) -> str:
        return one_line(self, self.told())

    def __add__(self, other: ChangeCounts) -> ChangeCounts:
        """Counts of both sets of elements together."""
        return ChangeCounts(
            num_elements=self.num_elements + other.num_elements,
            num_changed=added(self.num_changed, other.num_changed),
            num_zero_sign_flips=self.num_zero_sign_flips + other.num_zero_sign_flips,
            num_nan=self.num_nan + other.num_nan,
            num_increased=self.num_increased + other.num_increased,
            num_decreased=self.num_decreased + other.num_decreased,
            num_nonfinite_updates=self.num_nonfinite_updates + other.num_nonfinite_updates,
            ulp_histogram=added(self.ulp_histogram, other.ulp_histogram),
            update_sum=self.update_sum + other.update_sum,
            update_sum_abs=self.update_sum_abs + other.update_sum_abs,
            update_sum_squares=self.update_sum_squares + other.update_sum_squares,
            update_max_abs=max(self.update_max_abs, other.update_max_abs),
        )

    def density(self, criterion: str = "bits") -> float | None:
        """Update density: changed / all, or None where there are no elements."""
        if not self.num_elements:
            return None
        return self.num_changed[criterion] / self.num_elements

    def sparsity(self, criterion: str = "bits") -> float | None:
        """Update sparsity: unchanged / all, or None where there are no elements.

        Source: arXiv 2505.11711 sec. 1, with the criterion stated.
        """
        if not self.num_elements:
            return None
        return (self.num_elements - self.num_changed[criterion]) / self.num_elements

    @property
    def update_l2(self) -> float:
        """Euclidean norm of the update."""
        return sqrt(self.update_sum_squares)

    @property
    def update_mean(self) -> float | None:
        """Mean of the update over all elements, unchanged ones included."""
        return self.update_sum / self.num_elements if self.num_elements else None

    @property
    def sign_balance(self) -> float | None:
        """(increased - decreased) / (increased + decreased); 0 means as many up as down."""
        moved = self.num_increased + self.num_decreased
        return (self.num_increased - self.num_decreased) / moved if moved else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the counts, the sums, and the ratios derived from them."""
        return {
            "num_elements": self.num_elements,
            "num_changed": dict(self.num_changed),
            "sparsity": {key: self.sparsity(key) for key in self.num_changed},
            "num_zero_sign_flips": self.num_zero_sign_flips,
            "num_nan": self.num_nan,
            "num_increased": self.num_increased,
            "num_decreased": self.num_decreased,
            "sign_balance": self.sign_balance,
            "num_nonfinite_updates": self.num_nonfinite_updates,
            "ulp_histogram": {
                label: self.ulp_histogram[label] for label in label_order(self.ulp_histogram)
            },
            "update": {
                "l2": _for_json(self.update_l2),
                "mean": _for_json(self.update_mean),
                "max_abs": self.update_max_abs,
                "sum": _for_json(self.update_sum),
                "sum_abs": _for_json(self.update_sum_abs),
                "sum_squares": _for_json(self.update_sum_squares),
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ChangeCounts:
        """The inverse of `to_dict`; derived ratios are computed again, not read."""
        update = data["update"]
        return cls(
            num_elements=data["num_elements"],
            num_changed=dict(data["num_changed"]),
            num_zero_sign_flips=data["num_zero_sign_flips"],
            num_nan=data["num_nan"],
            num_increased=data["num_increased"],
            num_decreased=data["num_decreased"],
            num_nonfinite_updates=data["num_nonfinite_updates"],
            ulp_histogram=dict(data["ulp_histogram"]),
            update_sum=_from_json(update["sum"]),
            update_sum_abs=_from_json(update["sum_abs"]),
            update_sum_squares=_from_json(update["sum_squares"]),
            update_max_abs=update["max_abs"],
        )


def added(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    """The sum of two counts, key by key."""
    total = Counter(left)
    total.update(right)
    return dict(total)


def _for_json(value: float | None) -> float | None:
    """JSON has no infinity; only sums over huge doubles can overflow to it."""
    return value if value is not None and isfinite(value) else None


def _from_json(value: float | None) -> float:
    return inf if value is None else value


def percent(part: float, whole: float, digits: int = 2) -> str:
    """A share as text, where 0 and 100 appear only when exactly true.

    Examples:
        >>> percent(1, 10**9), percent(0, 10**9), percent(10**9 - 1, 10**9)
        ('<0.01 %', '0 %', '>99.99 %')
        >>> percent(1, 3), percent(0, 0)
        ('33.33 %', '–')
    """
    if whole == 0:
        return "–"
    if part in (0, whole):
        return "0 %" if part == 0 else "100 %"
    scale = 10**digits
    hundredths = floor(part * 100 * scale / whole + 0.5)
    if hundredths == 0:
        return f"<{1 / scale:.{digits}f} %"
    if hundredths >= 100 * scale:
        return f">{100 - 1 / scale:.{digits}f} %"
    return f"{hundredths / scale:.{digits}f} %"
