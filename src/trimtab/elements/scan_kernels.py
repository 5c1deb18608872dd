"""The pass of `trimtab.elements.scan`, compiled with Numba.

Its first stage compares 64 elements at a time into a 64-bit mask and skips the block if the mask is
zero. Most changes stay within a power of two and are only counted, by sign, exponent and steps
(`steps` of `Accumulator`), and settled once per tensor; the rest is packed for the second stage.

Import this module only if there is much to scan: it loads Numba and compiles once per machine
(cached on disk). The kernels release the GIL.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.elements import ulps
from trimtab.elements.dtypes import Bits, DType
from trimtab.elements.scan import Accumulator, NumpyScanner
from trimtab.elements.simd import (
    LANES,
    above,
    bit_length,
    compiled,
    differ,
    equal,
    num_ones,
    trailing_zeros,
)

BLOCK = 512
"""Changed elements tallied at once: their fp64 values stay in the first-level cache."""

EXACT, CENTRE = ulps.EXACT, ulps.CENTRE
NO_BIN = 255
INCREASED, DECREASED = Accumulator.INCREASED, Accumulator.DECREASED
ZERO_FLIP, NAN, NONFINITE = Accumulator.ZERO_FLIP, Accumulator.NAN, Accumulator.NONFINITE


@compiled()
def _find(
    base: Bits,
    tuned: Bits,
    columns: int,
    magnitude: Any,
    largest: Any,
    mantissa: int,
    steps: NDArray[np.int64],
    changed_per_row: NDArray[np.int64],
    changed_per_column: NDArray[np.int64],
    packed: Bits,
) -> tuple[int, int, int]:
    """First stage: count short steps, and pack the other changed elements."""
    num_differ = 0
    num_packed = 0
    num_nan_kept = 0
    whole = columns - columns % LANES
    counts_steps = len(steps) > 0
    # The largest number below the exponent of all ones, where infinity and NaN are.
    ordinary = base.dtype.type(magnitude - ((1 << mantissa) - 1) - 1)
    reach = np.int64(steps.shape[1] // 2)
    for row in range(changed_per_row.shape[0]):
        start = row * columns
        num_before = num_differ
        for block in range(0, whole, LANES):
            changed = differ(base, tuned, start + block)
            special = above(base, start + block, magnitude, ordinary)
            if special != 0:
                num_nan_kept += num_ones(above(base, start + block, magnitude, largest) & ~changed)
            num_differ += num_ones(changed)
            by_steps = counts_steps and special == 0
            while changed != 0:
                column = block + trailing_zeros(changed)
                changed &= changed - np.uint64(1)
                before = np.int64(base[start + column])
                after = np.int64(tuned[start + column])
                changed_per_column[column] += 1
                step = after - before + reach
                near = (step >= 0) & (step < 2 * reach)
                if by_steps and near and (before ^ after) >> mantissa == 0:
                    steps[before >> mantissa, step] += 1
                else:
                    packed[0, num_packed] = before
                    packed[1, num_packed] = after
                    num_packed += 1
        for column in range(whole, columns):
            element = base[start + column]
            if element != tuned[start + column]:
                packed[0, num_packed] = element
                packed[1, num_packed] = tuned[start + column]
                num_packed += 1
                changed_per_column[column] += 1
                num_differ += 1
            elif (element & magnitude) > largest:
                num_nan_kept += 1
        changed_per_row[row] += num_differ - num_before
    return num_differ, num_packed, num_nan_kept


# Sums may be taken in any order so that they use vectors; NaN and infinity keep their meaning.
@compiled(fastmath={"reassoc"})
def _tally(
    base_bits: Bits,
    tuned_bits: Bits,
    base: NDArray[Any],
    tuned: NDArray[Any],
    sign: Any,
    atols: NDArray[np.float64],
    strict_atols: NDArray[np.float64],
    rels: NDArray[np.float64],
    beyond: NDArray[np.int64],
    events: NDArray[np.int64],
    sums: NDArray[np.float64],
    ulp_bins: NDArray[np.int64],
) -> None:
    distance = np.empty(BLOCK, np.float64)
    scale = np.empty(BLOCK, np.float64)
    moved = np.empty(BLOCK, np.float64)
    moved_bits = moved.view(np.uint64)
    top = sums[3:4].view(np.uint64)
    ulp_bin = np.empty(BLOCK, np.uint8)
    for start in range(0, len(base), BLOCK):
        size = min(BLOCK, len(base) - start)

        increased = decreased = finite = nan = zero = 0
        total = total_abs = total_squares = 0.0
        for i in range(size):
            before = np.float64(base[start + i])
            after = np.float64(tuned[start + i])
            update = after - before
            apart = abs(update)
            distance[i] = apart
            scale[i] = max(abs(before), abs(after))
            increased += after > before
            decreased += after < before
            nan += update != update
            zero += apart == 0.0
            is_finite = apart < np.inf
            finite += is_finite
            total += update if is_finite else 0.0
            total_abs += apart if is_finite else 0.0
            total_squares += update * update if is_finite else 0.0
            moved[i] = apart if is_finite else 0.0
        events[INCREASED] += increased
        events[DECREASED] += decreased
        events[ZERO_FLIP] += zero
        events[NAN] += nan
        events[NONFINITE] += size - finite
        sums[0] += total
        sums[1] += total_abs
        sums[2] += total_squares
        # Non-negative floats are ordered like their bits, and integer maxima vectorise.
        largest = np.uint64(0)
        for i in range(size):
            largest = max(largest, moved_bits[i])
        top[0] = max(top[0], largest)

        index = 0
        for tolerance in atols:
            far = 0
            for i in range(size):
                far += not (distance[i] <= tolerance)
            beyond[index] += far
            index += 1
        for tolerance in strict_atols:
            far = 0
            for i in range(size):
                far += not (distance[i] < tolerance)
            beyond[index] += far
            index += 1
        for tolerance in rels:
            far = 0
            for i in range(size):
                far += (not (distance[i] <= tolerance * scale[i])) | (distance[i] == np.inf)
            beyond[index] += far
            index += 1

        for i in range(size):
            before_bits = np.uint64(base_bits[start + i])
            after_bits = np.uint64(tuned_bits[start + i])
            low = before_bits & (sign - np.uint64(1))
            high = after_bits & (sign - np.uint64(1))
            apart_bits = max(low, high) - min(low, high)
            steps = apart_bits if (before_bits ^ after_bits) & sign == 0 else low + high
            octave = bit_length(steps - np.uint64(1)) + (EXACT - 3)
            number = np.int64(steps) if steps <= EXACT else octave
            number = number if tuned[start + i] > base[start + i] else -number
            is_nan = distance[i] != distance[i]
            ulp_bin[i] = CENTRE if is_nan else CENTRE + number
        # A block has few bins: counting each with vectors is faster than a histogram's additions.
        low = high = ulp_bin[0]
        for i in range(size):
            low = min(low, ulp_bin[i])
            high = max(high, ulp_bin[i])
        for i in range(size, BLOCK):
            ulp_bin[i] = NO_BIN
        for index in range(low, high + 1):
            count = 0
            for i in range(0, size, LANES):
                count += num_ones(equal(ulp_bin, i, np.uint8(index)))
            ulp_bins[index] += count


@compiled()
def _scan(
    base: Bits,
    tuned: Bits,
    columns: int,
    sign: Any,
    largest: Any,
    mantissa: int,
    steps: NDArray[np.int64],
    changed_per_row: NDArray[np.int64],
    changed_per_column: NDArray[np.int64],
    packed: Bits,
    table: NDArray[np.uint32],
    decoded: NDArray[np.uint32],
    values: NDArray[Any],
    atols: NDArray[np.float64],
    strict_atols: NDArray[np.float64],
    rels: NDArray[np.float64],
    beyond: NDArray[np.int64],
    events: NDArray[np.int64],
    sums: NDArray[np.float64],
    ulp_bins: NDArray[np.int64],
) -> tuple[int, int]:
    """Both stages in one call, so that threads meet at the GIL once for each chunk."""
    num_differ, n, num_nan_kept = _find(
        base,
        tuned,
        columns,
        base.dtype.type(sign - 1),
        largest,
        mantissa,
        steps,
        changed_per_row,
        changed_per_column,
        packed,
    )
    if len(table) > 0:
        for side in range(2):
            for i in range(n):
                decoded[side, i] = table[packed[side, i]]
    elif len(decoded) > 0:
        for side in range(2):
            for i in range(n):
                decoded[side, i] = np.uint32(packed[side, i]) << np.uint32(16)
    _tally(
        packed[0, :n],
        packed[1, :n],
        values[0, :n],
        values[1, :n],
        np.uint64(sign),
        atols,
        strict_atols,
        rels,
        beyond,
        events,
        sums,
        ulp_bins,
    )
    return num_differ, num_nan_kept


@compiled()
def _settle(
    steps: NDArray[np.int64],
    ulp: NDArray[np.float64],
    step_bins: NDArray[np.int64],
    atols: NDArray[np.float64],
    strict_atols: NDArray[np.float64],
    rels: NDArray[np.float64],
    beyond: NDArray[np.int64],
    events: NDArray[np.int64],
    sums: NDArray[np.float64],
    ulp_bins: NDArray[np.int64],
) -> None:
    """Count the elements in `steps` under everything else, and empty it.

    Args:
        steps: Counts by sign and exponent, and by steps.
        ulp: For each sign and exponent, by how much one step of the magnitude moves the value.
        step_bins: For each column of `steps`, the bin number of its |steps|.
        atols: From here on, the fields of `Accumulator`.
        strict_atols: Likewise.
        rels: Likewise; no step is within them (`_steps_tell_all`).
        beyond: Likewise.
        events: Likewise.
        sums: Likewise.
        ulp_bins: Likewise.
    """
    reach = steps.shape[1] // 2
    for exponent in range(steps.shape[0]):
        for step in range(steps.shape[1]):
            count = steps[exponent, step]
            if count == 0:
                continue
            steps[exponent, step] = 0
            update = (step - reach) * ulp[exponent]
            distance = abs(update)
            index = 0
            for tolerance in atols:
                beyond[index] += count if distance > tolerance else 0
                index += 1
            for tolerance in strict_atols:
                beyond[index] += count if distance >= tolerance else 0
                index += 1
            for _ in rels:
                beyond[index] += count
                index += 1
            events[INCREASED if update > 0 else DECREASED] += count
            sums[0] += count * update
            sums[1] += count * distance
            sums[2] += count * distance * distance
            sums[3] = max(sums[3], distance)
            number = step_bins[step]
            ulp_bins[CENTRE + (number if update > 0 else -number)] += count


class _Scratch:
    """Memory for the changed elements of a chunk of one dtype, and their decoding.

    Attributes:
        packed: `[2, size]` bits of the changed elements of base and of tuned.
        table: fp32 bits of every element of an 8- or 16-bit dtype; empty for bf16 and wider dtypes.
        decoded: `[2, size]` bits of fp32 values; empty for wider dtypes.
        values: The same memory as floats; for wider dtypes that of `packed`.
    """

    def __init__(self, dtype: DType, size: int) -> None:
        self.packed: Bits = np.empty((2, size), dtype.bits)
        self.table = np.empty(0, np.uint32)
        if dtype.num_bytes >= 4:
            self.decoded = np.empty((0, 0), np.uint32)
            self.values: NDArray[Any] = self.packed.view(dtype.storage)
            return
        self.decoded = np.empty((2, size), np.uint32)
        self.values = self.decoded.view(np.float32)
        if dtype.name != "BF16":
            every = np.arange(1 << (8 * dtype.num_bytes), dtype=dtype.bits)
            with np.errstate(invalid="ignore"):  # NaN stays NaN
                self.table = dtype.decode(every).astype(np.float32).view(np.uint32)


class NumbaScanner:
    """The compiled pass, for floats; integers use NumPy. One per thread."""

    def __init__(self) -> None:
        self._scratch: dict[str, _Scratch] = {}
        self._fallback = NumpyScanner()

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
        if not dtype.is_float:
            return self._fallback.scan(
                base, tuned, dtype, changed_per_row, changed_per_column, into
            )
        scratch = self._scratch.get(dtype.name)
        if scratch is None or scratch.packed.shape[1] < base.size:
            scratch = self._scratch[dtype.name] = _Scratch(dtype, base.size)
        counts: tuple[int, int] = _scan(
            base.reshape(-1),
            tuned.reshape(-1),
            base.shape[1],
            dtype.bits.type(1 << (8 * dtype.num_bytes - 1)),
            dtype.bits.type(dtype.largest_magnitude),
            dtype.num_mantissa_bits,
            into.steps,
            changed_per_row,
            changed_per_column,
            scratch.packed,
            scratch.table,
            scratch.decoded,
            scratch.values,
            into.atols,
            into.strict_atols,
            into.rels,
            into.beyond,
            into.events,
            into.sums,
            into.ulp_bins,
        )
        return counts

    def settle(self, dtype: DType, into: Accumulator) -> None:
        """See `Scanner.settle`."""
        if not into.steps.size:
            return
        ulp, step_bins = _geometry_of_steps(dtype, into.steps.shape[1] // 2)
        _settle(
            into.steps,
            ulp,
            step_bins,
            into.atols,
            into.strict_atols,
            into.rels,
            into.beyond,
            into.events,
            into.sums,
            into.ulp_bins,
        )


@cache
def _geometry_of_steps(dtype: DType, reach: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The `ulp` and `step_bins` of `_settle`."""
    num_exponents = 1 << (8 * dtype.num_bytes - dtype.num_mantissa_bits)
    smallest = (np.arange(num_exponents) << dtype.num_mantissa_bits).astype(dtype.bits)
    with np.errstate(invalid="ignore"):  # infinity and NaN, which no step is counted for
        ulp = dtype.decode(smallest | dtype.bits.type(1)) - dtype.decode(smallest)
    return ulp, ulps.bin_of(np.abs(np.arange(-reach, reach)).astype(np.uint64))
