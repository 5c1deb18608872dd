"""How far two tunings of one base agree, inside a mask and outside it: counts that add up.

FULL is the base after training every element, SUB after training those of a mask. If a mask holds
all that FULL changed, the two agree outside it by construction, so a figure over all elements
flatters and the regions are kept apart. BASE is compared with FULL too: the score of doing nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.counts import Overflowing, summed
from trimtab.elements.criteria import Criterion, is_criterion
from trimtab.elements.dtypes import Bits, DType
from trimtab.elements.scan import Scanner, Tally
from trimtab.words import one_line

Region: TypeAlias = Literal["inside", "outside", "all"]
REGIONS: tuple[Region, ...] = ("inside", "outside", "all")


@dataclass(frozen=True)
class Agreement:
    """How SUB agrees with FULL on some elements. Add two with `+`.

    Attributes:
        num_elements: Elements compared.
        num_sub_equal: Criterion key -> elements in which SUB is unchanged from FULL.
        num_base_equal: Criterion key -> elements in which BASE is unchanged from FULL.
        num_sub_moved: Elements whose bits differ between BASE and SUB.
        num_nonfinite: Elements in which one of the three differences is NaN or infinite; they are
            left out of all that follows.
        difference_sum_squares: Sum of (SUB - FULL)², accumulated in fp64 as are the other sums.
        full_update_sum_squares: Sum of (FULL - BASE)².
        sub_update_sum_squares: Sum of (SUB - BASE)².
        update_dot: Sum of (SUB - BASE) · (FULL - BASE).
        difference_max_abs: Largest |SUB - FULL|.
        full_update_max_abs: Largest |FULL - BASE|.
    """

    PLAIN: ClassVar = (
        *("num_elements", "num_sub_equal", "num_base_equal", "num_sub_moved", "num_full_moved"),
        *("num_nonfinite", "relative_l2", "cosine", "difference_max_abs", "full_update_max_abs"),
        *("difference_sum_squares", "full_update_sum_squares", "sub_update_sum_squares"),
        "update_dot",
    )

    num_elements: int = 0
    num_sub_equal: Mapping[str, int] = field(default_factory=dict)
    num_base_equal: Mapping[str, int] = field(default_factory=dict)
    num_sub_moved: int = 0
    num_nonfinite: int = 0
    difference_sum_squares: Overflowing = 0.0
    full_update_sum_squares: Overflowing = 0.0
    sub_update_sum_squares: Overflowing = 0.0
    update_dot: Overflowing = 0.0
    difference_max_abs: float = 0.0
    full_update_max_abs: float = 0.0

    def summary(self) -> str:
        """`1 of 10 elements equal (bits)`."""
        return (
            f"{self.num_sub_equal.get('bits', 0):,} of {self.num_elements:,} elements equal (bits)"
        )

    def __repr__(self) -> str:
        return one_line(self, self.summary())

    def __add__(self, other: Agreement) -> Agreement:
        """Both sets of elements together."""
        return summed((self, other), largest=("difference_max_abs", "full_update_max_abs"))

    @property
    def num_full_moved(self) -> int:
        """Elements whose bits differ between BASE and FULL."""
        return self.num_elements - self.num_base_equal.get("bits", 0)

    @property
    def relative_l2(self) -> float | None:
        """‖SUB - FULL‖ / ‖FULL - BASE‖, 1 for doing nothing; None where FULL did not move."""
        return _ratio(sqrt(self.difference_sum_squares), sqrt(self.full_update_sum_squares))

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two updates; None where one of them is zero."""
        # The root of a square is exact, so two equal updates have a cosine of exactly 1.
        norms = sqrt(self.full_update_sum_squares * self.sub_update_sum_squares)
        cosine = _ratio(self.update_dot, norms)
        return None if cosine is None else min(1.0, max(-1.0, cosine))

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        num = self.num_elements
        if num < 0:
            yield f"num_elements is {num}"
        if self.num_sub_equal.keys() != self.num_base_equal.keys():
            yield "num_sub_equal and num_base_equal are counted under different criteria"
        for name in ("num_sub_equal", "num_base_equal"):
            counts = getattr(self, name)
            if "bits" not in counts:
                yield f"{name} has no bits"
            for key, count in counts.items():
                if not is_criterion(key):
                    yield f"{name} has the key {key[:40]!a}, which is no criterion"
                if not 0 <= count <= num:
                    yield f"{name} is {count} of {num} elements ({key[:40]!a})"
        for name in ("num_sub_moved", "num_nonfinite"):
            if not 0 <= getattr(self, name) <= num:
                yield f"{name} is {getattr(self, name)} of {num} elements"
        squares = self.difference_sum_squares, self.full_update_sum_squares
        largest = self.difference_max_abs, self.full_update_max_abs
        if min(*squares, self.sub_update_sum_squares, *largest) < 0:
            yield "a sum of squares or a largest of magnitudes is negative"


@dataclass(frozen=True)
class SplitAgreement:
    """How SUB agrees with FULL inside a mask, and outside it. Add two with `+`."""

    PLAIN: ClassVar = REGIONS

    inside: Agreement = field(default_factory=Agreement)
    outside: Agreement = field(default_factory=Agreement)

    def __repr__(self) -> str:
        return one_line(self, f"inside {self.inside.summary()}, outside {self.outside.summary()}")

    def __add__(self, other: SplitAgreement) -> SplitAgreement:
        """Both sets of elements together, region by region."""
        return summed((self, other))

    @property
    def all(self) -> Agreement:
        """Both regions together: the figure that flatters."""
        return self.inside + self.outside

    def region(self, name: Region) -> Agreement:
        """One of `REGIONS`."""
        return {"inside": self.inside, "outside": self.outside, "all": self.all}[name]


class AgreementTally:
    """The agreement of one tensor, or of one part of a fused tensor, added chunk by chunk."""

    def __init__(
        self, dtype: DType, criteria: Sequence[Criterion], num_rows: int, num_columns: int
    ) -> None:
        """Start at zero.

        Args:
            dtype: Dtype of the elements.
            criteria: The criteria to count.
            num_rows: Rows of the part's 2-D view.
            num_columns: Its columns.
        """
        self._dtype = dtype
        self._inside, self._outside = (
            _RegionTally(dtype, criteria, num_rows, num_columns) for _ in range(2)
        )

    def add(
        self,
        base: Bits,
        full: Bits,
        sub: Bits,
        inside: NDArray[np.bool_],
        row: int,
        column: int,
        scanner: Scanner,
    ) -> None:
        """Count one rectangle; each element must be added once.

        Args:
            base: Shape `[rows, columns]`.
            full: The same rectangle of FULL.
            sub: The same rectangle of SUB.
            inside: Bool, same shape: which elements are in the mask.
            row: First row of the rectangle in the part.
            column: First column.
            scanner: Scanner of this thread.
        """
        num_inside = int(np.count_nonzero(inside))
        # Elements of the other region become zero in all three, and so count as equal.
        keep = np.negative(inside.astype(self._dtype.bits))
        self._inside.add(base & keep, full & keep, sub & keep, num_inside, row, column, scanner)
        np.invert(keep, out=keep)
        num_outside = inside.size - num_inside
        self._outside.add(base & keep, full & keep, sub & keep, num_outside, row, column, scanner)

    def counts(self, scanner: Scanner) -> SplitAgreement:
        """The counts so far; `scanner` is of the same kind as those passed to `add`."""
        return SplitAgreement(self._inside.counts(scanner), self._outside.counts(scanner))


class _RegionTally:
    """One region of a tensor; elements of the other one are zeroed."""

    def __init__(
        self, dtype: DType, criteria: Sequence[Criterion], num_rows: int, num_columns: int
    ) -> None:
        self._dtype = dtype
        self._sub, self._base = (
            Tally(dtype, criteria, num_rows, num_columns) for _ in range(2)
        )  # each against full
        self._measured = Agreement()

    def add(
        self,
        base: Bits,
        full: Bits,
        sub: Bits,
        num_elements: int,
        row: int,
        column: int,
        scanner: Scanner,
    ) -> None:
        if not num_elements:
            return
        self._sub.add(full, sub, row, column, scanner)
        self._base.add(full, base, row, column, scanner)
        # Indices, since boolean indexing of a matrix takes ten times as long.
        moved = np.flatnonzero((base != full) | (base != sub))
        before, by_full, by_sub = (
            self._dtype.decode(bits.reshape(-1).take(moved)) for bits in (base, full, sub)
        )
        with np.errstate(over="ignore", invalid="ignore"):  # doubles can overflow a sum
            differences = np.stack([by_sub - by_full, by_full - before, by_sub - before])
            finite = np.isfinite(differences).all(axis=0)
            if not finite.all():
                differences = differences[:, finite]
            difference, full_update, sub_update = differences
            self._measured += Agreement(
                num_elements=num_elements,
                num_sub_moved=int(np.count_nonzero(base != sub)),
                num_nonfinite=int(np.count_nonzero(~finite)),
                difference_sum_squares=float(np.square(difference).sum()),
                full_update_sum_squares=float(np.square(full_update).sum()),
                sub_update_sum_squares=float(np.square(sub_update).sum()),
                update_dot=float((sub_update * full_update).sum()),
                difference_max_abs=float(np.abs(difference).max(initial=0.0)),
                full_update_max_abs=float(np.abs(full_update).max(initial=0.0)),
            )

    def counts(self, scanner: Scanner) -> Agreement:
        """See `AgreementTally.counts`."""
        num_elements = self._measured.num_elements

        def num_equal(tally: Tally) -> dict[str, int]:
            num_changed = tally.counts(scanner).num_changed
            return {key: num_elements - num for key, num in num_changed.items()}

        equal = Agreement(num_sub_equal=num_equal(self._sub), num_base_equal=num_equal(self._base))
        return self._measured + equal


def _ratio(part: float, whole: float) -> float | None:
    """None if the denominator is 0 or a sum overflowed."""
    return part / whole if whole and isfinite(part) and isfinite(whole) else None
