"""Count every criterion in one pass over a pair of tensors.

The first stage compares the bits of all elements and packs the changed ones; the second decodes
those and counts them under every criterion. After RL most elements are unchanged, so the first
stage
runs at memory speed and the second is small. `trimtab.elements.scan_kernels` is the same, compiled;
this one is for small tensors, integers and as the reference of the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trimtab.elements import ulps
from trimtab.elements.counts import ChangeCounts
from trimtab.elements.criteria import Criterion
from trimtab.elements.dtypes import Bits, DType

STEPS_FROM = 1 << 18
"""Elements of a tensor from which a table of steps (128 KB for bf16) pays off."""

STEPS_REACH = 16
"""Steps in either direction that the table counts; longer ones are rare."""


class Accumulator:
    """What a scanner adds to, in the order of the criteria given.

    Attributes:
        atols: Tolerances of the `atol` criteria; likewise `strict_atols` and `rels`.
        beyond: int64 counts of changed elements beyond each tolerance: `atols`, then
            `strict_atols`, then `rels`.
        events: int64 counts of changed elements that `INCREASED`, `DECREASED`, only flipped the
            sign of a zero (`ZERO_FLIP`), involve a `NAN`, or moved by an infinite or NaN amount
            (`NONFINITE`).
        sums: fp64 sum, sum of magnitudes, sum of squares and largest magnitude of the finite
            updates.
        ulp_bins: int64 histogram, see `trimtab.elements.ulps`.
        steps: int64 counts of changed elements whose sign and exponent stayed the same: by sign and
            exponent (their bits are the row) and by the steps that the magnitude went (0 is in the
            middle of the row). Such an element moved by exactly so many ulp of its exponent,
            whatever its mantissa, so a few hundred numbers stand for all of them, and
            `Scanner.settle` counts them under all of the above. Empty where that is not possible.
    """

    INCREASED, DECREASED, ZERO_FLIP, NAN, NONFINITE = range(5)

    def __init__(self, criteria: Sequence[Criterion], dtype: DType, num_elements: int) -> None:
        def tolerances(rule: str) -> NDArray[np.float64]:
            return np.array([c.tolerance for c in criteria if c.rule == rule], dtype=np.float64)

        self.atols = tolerances("atol")
        self.strict_atols = tolerances("strict_atol")
        self.rels = tolerances("rel")
        num_tolerances = len(self.atols) + len(self.strict_atols) + len(self.rels)
        self.beyond = np.zeros(num_tolerances, dtype=np.int64)
        self.events = np.zeros(5, dtype=np.int64)
        self.sums = np.zeros(4, dtype=np.float64)
        self.ulp_bins = np.zeros(ulps.NUM_BINS, dtype=np.int64)
        num_exponents = reach = 0
        if num_elements >= STEPS_FROM and _steps_tell_all(dtype, self.rels):
            num_exponents = 1 << (8 * dtype.num_bytes - dtype.num_mantissa_bits)
            reach = min(STEPS_REACH, 1 << dtype.num_mantissa_bits)
        self.steps = np.zeros((num_exponents, 2 * reach), dtype=np.int64)


def _steps_tell_all(dtype: DType, rels: NDArray[np.float64]) -> bool:
    """Whether sign, exponent and steps decide every criterion, for any mantissa.

    Yes, if each relative tolerance is below one step of the largest mantissa: 1 / 255 for bf16.
    """
    if not dtype.is_float or dtype.num_bytes > 2:
        return False
    largest_mantissa = (2 << dtype.num_mantissa_bits) - 1
    return bool(np.all(rels * largest_mantissa < 1))


class Scanner(Protocol):
    """Does the pass. A scanner may have scratch memory: use one per thread."""

    def scan(
        self,
        base: Bits,
        tuned: Bits,
        dtype: DType,
        changed_per_row: NDArray[np.int64],
        changed_per_column: NDArray[np.int64],
        into: Accumulator,
    ) -> tuple[int, int]:
        """Count one rectangle of elements.

        Args:
            base: Elements, shape `[rows, columns]`, C-contiguous.
            tuned: The same of the tuned checkpoint.
            dtype: What the bits mean.
            changed_per_row: `[rows]`, added to.
            changed_per_column: `[columns]`, added to.
            into: Added to.

        Returns:
            How many elements differ in their bits, and how many of the others are NaN.
        """

    def settle(self, dtype: DType, into: Accumulator) -> None:
        """Count the steps that `scan` collected in `into.steps`, and reset them."""


class NumpyScanner:
    """The pass in NumPy: any dtype, no compilation."""

    def scan(
        self,
        base: Bits,
        tuned: Bits,
        dtype: DType,
        changed_per_row: NDArray[np.int64],
        changed_per_column: NDArray[np.int64],
        into: Accumulator,
    ) -> tuple[int, int]:
        """See `Scanner.scan`."""
        differ = base != tuned
        changed_per_row += np.count_nonzero(differ, axis=1)
        changed_per_column += np.count_nonzero(differ, axis=0)
        changed_base, changed_tuned = base[differ], tuned[differ]
        if len(changed_base):
            self._tally(changed_base, changed_tuned, dtype, into)
        num_nan_kept = int(np.count_nonzero(dtype.is_nan(base) & ~differ))
        return len(changed_base), num_nan_kept

    def settle(self, dtype: DType, into: Accumulator) -> None:
        """See `Scanner.settle`: no steps are collected here."""

    def _tally(self, base: Bits, tuned: Bits, dtype: DType, into: Accumulator) -> None:
        """Count elements that are known to differ, shape `[n]`."""
        before, after = dtype.decode(base), dtype.decode(tuned)
        with np.errstate(invalid="ignore", over="ignore"):
            update = after - before
            distance = np.abs(update)
            scale = np.maximum(np.abs(before), np.abs(after))
            far = [~(distance <= tolerance) for tolerance in into.atols]
            far += [~(distance < tolerance) for tolerance in into.strict_atols]
            # Where scale is infinite so is the distance, and inf <= inf must not pass as near.
            far += [~(distance <= rel * scale) | np.isinf(distance) for rel in into.rels]
        finite = np.isfinite(update)
        nan = dtype.is_nan(base) | dtype.is_nan(tuned)
        for index, beyond in enumerate(far):
            into.beyond[index] += np.count_nonzero(beyond)
        # Integers of 64 bits are compared as they are: two of them can be one number in fp64.
        low, high = (
            (before, after)
            if dtype.is_float
            else (base.view(dtype.storage), tuned.view(dtype.storage))
        )
        increased = high > low
        into.events[Accumulator.INCREASED] += np.count_nonzero(increased)
        into.events[Accumulator.DECREASED] += np.count_nonzero(high < low)
        into.events[Accumulator.NAN] += np.count_nonzero(nan)
        into.events[Accumulator.NONFINITE] += np.count_nonzero(~finite)
        if dtype.is_float:
            into.events[Accumulator.ZERO_FLIP] += np.count_nonzero(distance == 0)

        update, distance = update[finite], distance[finite]
        with np.errstate(over="ignore"):  # doubles near the largest can overflow a sum
            into.sums[0] += update.sum()
            into.sums[1] += distance.sum()
            into.sums[2] += np.square(distance).sum()
        into.sums[3] = max(into.sums[3], distance.max(initial=0.0))

        steps = _unsigned_steps(base[~nan], tuned[~nan], dtype)
        sign = np.where(increased[~nan], 1, -1)
        into.ulp_bins += np.bincount(
            ulps.CENTRE + sign * ulps.bin_of(steps), minlength=ulps.NUM_BINS
        ).astype(np.int64)


def _unsigned_steps(base: Bits, tuned: Bits, dtype: DType) -> NDArray[np.uint64]:
    """Representable values between two elements, exact up to the whole range of 64-bit dtypes."""
    if dtype.is_float:
        sign = base.dtype.type(1 << (8 * dtype.num_bytes - 1))
        before = (base & ~sign).astype(np.uint64)
        after = (tuned & ~sign).astype(np.uint64)
        same_side = (base & sign) == (tuned & sign)
        apart = np.maximum(before, after) - np.minimum(before, after)
        return np.where(same_side, apart, before + after)
    # Two's complement: the order of unsigned integers once the sign bit is flipped.
    flip = base.dtype.type(1 << (8 * dtype.num_bytes - 1) if dtype.kind == "int" else 0)
    low, high = np.minimum(base ^ flip, tuned ^ flip), np.maximum(base ^ flip, tuned ^ flip)
    return (high - low).astype(np.uint64)


class Tally:
    """All counts of one tensor, or of one part of a fused tensor, added chunk by chunk."""

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
        self._criteria = tuple(criteria)
        self._num_elements = num_rows * num_columns
        self._num_differ = 0
        self._num_nan_kept = 0
        self._accumulator = Accumulator(criteria, dtype, self._num_elements)
        self.changed_per_row = np.zeros(num_rows, dtype=np.int64)
        self.changed_per_column = np.zeros(num_columns, dtype=np.int64)

    def add(self, base: Bits, tuned: Bits, row: int, column: int, scanner: Scanner) -> None:
        """Count one rectangle; each element must be added once.

        Args:
            base: Shape `[rows, columns]`, C-contiguous.
            tuned: The same rectangle of the tuned checkpoint.
            row: First row of the rectangle in the part.
            column: First column.
            scanner: Scanner of this thread.
        """
        rows, columns = base.shape
        num_differ, num_nan_kept = scanner.scan(
            base,
            tuned,
            self._dtype,
            self.changed_per_row[row : row + rows],
            self.changed_per_column[column : column + columns],
            self._accumulator,
        )
        self._num_differ += num_differ
        self._num_nan_kept += num_nan_kept

    def counts(self, scanner: Scanner) -> ChangeCounts:
        """The counts so far; `scanner` is of the same kind as those passed to `add`."""
        acc = self._accumulator
        scanner.settle(self._dtype, acc)
        events = [int(count) for count in acc.events]
        beyond = iter(acc.beyond.tolist())
        tolerance_keys = [
            criterion
            for rule in ("atol", "strict_atol", "rel")
            for criterion in self._criteria
            if criterion.rule == rule
        ]
        # A NaN that stays the same is no change of bits, but it equals nothing as a number.
        num_changed = {c: next(beyond) + self._num_nan_kept for c in tolerance_keys}
        num_changed[Criterion("bits")] = self._num_differ
        num_changed[Criterion("value")] = (
            self._num_differ - events[Accumulator.ZERO_FLIP] + self._num_nan_kept
        )
        total, total_abs, total_squares, max_abs = acc.sums.tolist()
        return ChangeCounts(
            num_elements=self._num_elements,
            num_changed={c.key: num_changed[c] for c in self._criteria},
            num_zero_sign_flips=events[Accumulator.ZERO_FLIP],
            num_nan=self._num_nan_kept + events[Accumulator.NAN],
            num_increased=events[Accumulator.INCREASED],
            num_decreased=events[Accumulator.DECREASED],
            num_nonfinite_updates=events[Accumulator.NONFINITE],
            ulp_histogram=ulps.labelled(acc.ulp_bins),
            update_sum=total,
            update_sum_abs=total_abs,
            update_sum_squares=total_squares,
            update_max_abs=max_abs,
        )
