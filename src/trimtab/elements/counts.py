"""Counts of change: integers that add up, from which every ratio is derived at the end.

Counts of tensors are added to counts of layers, kinds and the model; averages are never averaged. A
percentage is shown as "0 %" or "100 %" only if it is exact.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from math import floor, sqrt
from operator import add
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar

from trimtab.elements.criteria import is_criterion
from trimtab.elements.ulps import label_order
from trimtab.words import one_line, out_of

Overflowing: TypeAlias = Annotated[float, "null is infinite"]
"""JSON has no infinity; only sums over huge doubles can overflow to it."""

Counts = TypeVar("Counts")

ULP_LABEL = re.compile(r"-?[0-9]{1,20}(\.\.-?[0-9]{1,20})?")


@dataclass(frozen=True)
class ChangeCounts:
    """What changed among some elements. Add two with `+`, or many with `ChangeCounts.sum`.

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

    PLAIN: ClassVar = (
        *("num_elements", "num_changed", "sparsity=sparsities", "num_zero_sign_flips", "num_nan"),
        *("num_increased", "num_decreased", "sign_balance", "num_nonfinite_updates"),
        *("ulp_histogram", "update.l2=update_l2", "update.mean=update_mean"),
        *("update.max_abs=update_max_abs", "update.sum=update_sum"),
        *("update.sum_abs=update_sum_abs", "update.sum_squares=update_sum_squares"),
    )

    num_elements: int = 0
    num_changed: Mapping[str, int] = field(default_factory=dict)
    num_zero_sign_flips: int = 0
    num_nan: int = 0
    num_increased: int = 0
    num_decreased: int = 0
    num_nonfinite_updates: int = 0
    ulp_histogram: Mapping[str, int] = field(default_factory=dict)
    update_sum: Overflowing = 0.0
    update_sum_abs: Overflowing = 0.0
    update_sum_squares: Overflowing = 0.0
    update_max_abs: float = 0.0

    def summary(self, criterion: str = "bits") -> str:
        """`1 of 10 elements changed (bits)`."""
        changed = out_of(self.num_changed.get(criterion, 0), self.num_elements, "element")
        return f"{changed} changed ({criterion})"

    def __repr__(self) -> str:
        return one_line(self, self.summary())

    def __add__(self, other: ChangeCounts) -> ChangeCounts:
        """Counts of both sets of elements together."""
        return ChangeCounts.sum((self, other))

    @staticmethod
    def sum(counts: Iterable[ChangeCounts]) -> ChangeCounts:
        """Counts of several sets of elements together."""
        return summed((ChangeCounts(), *counts), largest=("update_max_abs",))

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
        """(increased - decreased) / (increased + decreased); 0 means equal numbers."""
        moved = self.num_increased + self.num_decreased
        return (self.num_increased - self.num_decreased) / moved if moved else None

    def sparsities(self) -> dict[str, float | None]:
        """Update sparsity under every criterion."""
        return {key: self.sparsity(key) for key in self.num_changed}

    def plain_ulp_histogram(self) -> dict[str, int]:
        """`ulp_histogram` in ascending order of distance."""
        return {label: self.ulp_histogram[label] for label in label_order(self.ulp_histogram)}

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        for name in ("num_zero_sign_flips", "num_nan", "num_nonfinite_updates"):
            if not 0 <= getattr(self, name) <= self.num_elements:
                yield f"{name} is {getattr(self, name)} of {self.num_elements} elements"
        for key, num in self.num_changed.items():
            if not 0 <= num <= self.num_elements:
                yield f"num_changed.{key} is {num} of {self.num_elements} elements"
            if not is_criterion(key):
                yield f"num_changed has the key {key[:40]!a}, which is no criterion"
        up, down = self.num_increased, self.num_decreased
        if up < 0 or down < 0 or up + down > self.num_elements:
            yield f"{up} elements increased and {down} decreased, of {self.num_elements}"
        histogram = self.ulp_histogram
        if sum(histogram.values()) > self.num_elements or min(histogram.values(), default=0) < 0:
            yield f"ulp_histogram counts {sum(histogram.values())} of {self.num_elements} elements"
        if odd := [label for label in histogram if not ULP_LABEL.fullmatch(label)]:
            yield f"ulp_histogram has the key {odd[0][:40]!a}, which is no distance"
        if min(self.update_sum_abs, self.update_sum_squares, self.update_max_abs) < 0:
            yield "a sum or a largest of magnitudes is negative"


def summed(counts: Sequence[Counts], *, largest: Collection[str] = ()) -> Counts:
    """Add dataclasses of counts: numbers in their order, and mappings key by key.

    Args:
        counts: The same counts of different elements; at least one.
        largest: Fields of which the maximum is taken instead.
    """

    def combined(name: str) -> Any:
        values = [getattr(one, name) for one in counts]
        if name in largest:
            return max(values)
        if isinstance(values[0], Mapping):
            return added(*values)
        return reduce(add, values)  # `sum` of floats rounds otherwise in later versions of Python

    kind = type(counts[0])
    return kind(**{field.name: combined(field.name) for field in fields(kind)})  # type: ignore[arg-type]


def added(*counts: Mapping[str, int]) -> dict[str, int]:
    """Add counts, key by key."""
    total: dict[str, int] = {}
    for one in counts:
        for key, num in one.items():
            total[key] = total.get(key, 0) + num
    return total


def percent(part: float, whole: float, digits: int = 2) -> str:
    """A share as text; 0 and 100 appear only if they are exact.

    Examples:
        >>> percent(1, 10**9), percent(0, 10**9), percent(10**9 - 1, 10**9)
        ('<0.01 %', '0 %', '>99.99 %')
        >>> percent(1, 3), percent(3, 2), percent(0, 0)
        ('33.33 %', '150.00 %', '–')
    """
    if whole == 0:
        return "–"
    if part in (0, whole):
        return "0 %" if part == 0 else "100 %"
    scale = 10**digits
    hundredths = floor(part * 100 * scale / whole + 0.5)
    if hundredths == 0:
        return f"<{1 / scale:.{digits}f} %"
    if hundredths >= 100 * scale and part < whole:
        return f">{100 - 1 / scale:.{digits}f} %"
    return f"{hundredths / scale:.{digits}f} %"
