"""The pass of `trimtab.elements.scan`, compiled with Numba.

Its first stage compares 64 elements at a time into a 64-bit mask of those that differ, which takes
one instruction or two on a machine with wide vectors, and skips the block when the mask is zero;
changed elements are then taken out by counting trailing zeros. Numba has no vector types, so the
comparison is a few lines of LLVM IR: LLVM turns them into whatever the processor has. Most changes
stay within a power of two and are only counted, by sign, exponent and steps (see `fold` in
`trimtab.elements.scan`); the rest is packed for the second stage.

Import this module only when there is much to scan: it loads Numba and, once per machine,
compiles (cached on disk afterwards). The kernels release the GIL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from trimtab.elements import ulps
from trimtab.elements.dtypes import Bits, DType
from trimtab.elements.scan import Accumulator, NumpyScanner

__all__ = ["NumbaScanner"]

LANES = 64
"""Elements compared at once: the bits of the mask."""

BLOCK = 512
"""Changed elements tallied at once: their fp64 values stay in the first-level cache."""

EXACT, CENTRE = ulps.EXACT, ulps.CENTRE
NO_BIN = 255
INCREASED, DECREASED = Accumulator.INCREASED, Accumulator.DECREASED
ZERO_FLIP, NAN, NONFINITE = Accumulator.ZERO_FLIP, Accumulator.NAN, Accumulator.NONFINITE

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[Function], Function]:
    """`njit` without the GIL, cached on disk where a folder for that can be written."""

    def decorate(function: Function) -> Function:
        try:
            kernel: Function = njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # Numba found no folder that it could write its cache to
            kernel = njit(nogil=True, **options)(function)
        return kernel

    return decorate


def _vector(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Load `LANES` elements from `index` on; they need not be aligned."""
    data = cgutils.create_struct_proxy(array_type)(context, builder, value=array).data
    lane = ir.IntType(array_type.dtype.bitwidth)
    pointer = builder.bitcast(builder.gep(data, [index]), ir.VectorType(lane, LANES).as_pointer())
    return builder.load(pointer, align=array_type.dtype.bitwidth // 8)


def _splat(builder: Any, value: Any) -> Any:
    """A vector of `LANES` copies of a scalar."""
    undefined = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.IntType(32)(0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, undefined, lanes)


@intrinsic
def _differ(typing_context: Any, left: Any, right: Any, index: Any) -> Any:
    """Mask of the elements `index .. index + LANES` in which two arrays of integers differ."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = _vector(context, builder, signature.args[0], args[0], args[2])
        y = _vector(context, builder, signature.args[1], args[1], args[2])
        return builder.bitcast(builder.icmp_unsigned("!=", x, y), ir.IntType(LANES))

    return types.uint64(left, right, types.intp), generate


@intrinsic
def _above(typing_context: Any, array: Any, index: Any, magnitude: Any, limit: Any) -> Any:
    """Mask of the elements with `element & magnitude > limit`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = builder.and_(
            _vector(context, builder, signature.args[0], args[0], args[1]),
            _splat(builder, args[2]),
        )
        above = builder.icmp_unsigned(">", x, _splat(builder, args[3]))
        return builder.bitcast(above, ir.IntType(LANES))

    return types.uint64(array, types.intp, array.dtype, array.dtype), generate


@intrinsic
def _equal(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Mask of the elements `index .. index + LANES` that have a value."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = _vector(context, builder, signature.args[0], args[0], args[1])
        equal = builder.icmp_unsigned("==", x, _splat(builder, args[2]))
        return builder.bitcast(equal, ir.IntType(LANES))

    return types.uint64(array, types.intp, array.dtype), generate


@intrinsic
def _trailing_zeros(typing_context: Any, mask: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.intp(types.uint64), generate


@intrinsic
def _num_ones(typing_context: Any, mask: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.intp(types.uint64), generate


@intrinsic
def _bit_length(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sub(ir.IntType(64)(64), builder.ctlz(args[0], ir.IntType(1)(0)))

    return types.intp(types.uint64), generate


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
    """First stage: count steps that can be counted so, and pack the other changed elements."""
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
            differ = _differ(base, tuned, start + block)
            strange = _above(base, start + block, magnitude, ordinary)
            if strange != 0:
                num_nan_kept += _num_ones(_above(base, start + block, magnitude, largest) & ~differ)
            num_differ += _num_ones(differ)
            by_steps = counts_steps and strange == 0
            while differ != 0:
                column = block + _trailing_zeros(differ)
                differ &= differ - np.uint64(1)
                before = np.int64(base[start + column])
                after = np.int64(tuned[start + column])
                changed_per_column[column] += 1
                place = after - before + reach
                near = (place >= 0) & (place < 2 * reach)
                if by_steps and near and (before ^ after) >> mantissa == 0:
                    steps[before >> mantissa, place] += 1
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
        # Numbers that are not negative are in the order of their bits, and integers have a vector
        # maximum without a thought for NaN.
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
            octave = _bit_length(steps - np.uint64(1)) + (EXACT - 3)
            number = np.int64(steps) if steps <= EXACT else octave
            number = number if tuned[start + i] > base[start + i] else -number
            is_nan = distance[i] != distance[i]
            ulp_bin[i] = CENTRE if is_nan else CENTRE + number
        # Few bins are met in a block, so counting each with vectors beats a histogram's scattered
        # additions, which wait for each other.
        low = high = ulp_bin[0]
        for i in range(size):
            low = min(low, ulp_bin[i])
            high = max(high, ulp_bin[i])
        for i in range(size, BLOCK):
            ulp_bin[i] = NO_BIN
        for index in range(low, high + 1):
            count = 0
            for i in range(0, size, LANES):
                count += _num_ones(_equal(ulp_bin, i, np.uint8(index)))
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


class _Scratch:
    """Room for the changed elements of a chunk of one dtype, and what decodes them to floats.

    Attributes:
        packed: `[2, size]` bits of the changed elements of base and of tuned.
        table: Bits of the fp32 value of every element of an 8- or 16-bit dtype. Empty for bf16,
            whose bits are the upper half of its fp32 value, and for wider dtypes.
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
    """The pass compiled, for floats; integers go the way of NumPy. One per thread."""

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
