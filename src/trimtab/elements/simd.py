"""The compiler of the kernels, and operations on 64 elements at a time as LLVM IR.

Numba has no vector types; comparing 64 elements into a 64-bit mask is a few lines of LLVM IR, which
LLVM compiles to the widest vectors of the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 64
"""Elements compared at once: the bits of the mask."""

PREDICTED = 32
"""Elements whose prediction is computed at once."""

FITTED = 24
"""Factors that are fitted at once."""

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


def _vector(
    context: Any, builder: Any, array_type: Any, array: Any, index: Any, lanes: int = LANES
) -> Any:
    """Load elements from `index` on; they need not be aligned."""
    data = cgutils.create_struct_proxy(array_type)(context, builder, value=array).data
    lane = ir.IntType(array_type.dtype.bitwidth)
    pointer = builder.bitcast(builder.gep(data, [index]), ir.VectorType(lane, lanes).as_pointer())
    return builder.load(pointer, align=array_type.dtype.bitwidth // 8)


def _splat(builder: Any, value: Any, lanes: int = LANES) -> Any:
    """A vector of copies of a scalar."""
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(first, undefined, zeros)


@intrinsic
def differ(typing_context: Any, left: Any, right: Any, index: Any) -> Any:
    """Mask of the elements `index .. index + LANES` in which two arrays of integers differ."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = _vector(context, builder, signature.args[0], args[0], args[2])
        y = _vector(context, builder, signature.args[1], args[1], args[2])
        return builder.bitcast(builder.icmp_unsigned("!=", x, y), ir.IntType(LANES))

    return types.uint64(left, right, types.intp), generate


@intrinsic
def above(typing_context: Any, array: Any, index: Any, magnitude: Any, limit: Any) -> Any:
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
def num_at_most(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """How many of the 16 elements `index .. index + 16` are at most a value."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = _vector(context, builder, signature.args[0], args[0], args[1], 16)
        at_most = builder.icmp_unsigned("<=", x, _splat(builder, args[2], 16))
        mask = builder.zext(builder.bitcast(at_most, ir.IntType(16)), ir.IntType(64))
        return builder.ctpop(mask)

    return types.intp(array, types.intp, array.dtype), generate


@intrinsic
def equal(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Mask of the elements `index .. index + LANES` that have a value."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = _vector(context, builder, signature.args[0], args[0], args[1])
        equal = builder.icmp_unsigned("==", x, _splat(builder, args[2]))
        return builder.bitcast(equal, ir.IntType(LANES))

    return types.uint64(array, types.intp, array.dtype), generate


@intrinsic
def has_bit(typing_context: Any, array: Any, index: Any, bit: Any) -> Any:
    """Mask of the elements with `element & bit != 0`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = builder.and_(
            _vector(context, builder, signature.args[0], args[0], args[1]),
            _splat(builder, args[2]),
        )
        zero = _splat(builder, ir.Constant(args[2].type, 0))
        return builder.bitcast(builder.icmp_unsigned("!=", x, zero), ir.IntType(LANES))

    return types.uint64(array, types.intp, array.dtype), generate


@intrinsic
def trailing_zeros(typing_context: Any, mask: Any) -> Any:
    """Zeros below the lowest one of a mask that is not zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.intp(types.uint64), generate


@intrinsic
def num_ones(typing_context: Any, mask: Any) -> Any:
    """How many bits of a mask are one."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.intp(types.uint64), generate


@intrinsic
def bit_length(typing_context: Any, value: Any) -> Any:
    """Bits that an integer needs; 0 for 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sub(ir.IntType(64)(64), builder.ctlz(args[0], ir.IntType(1)(0)))

    return types.intp(types.uint64), generate


@intrinsic
def predicted(
    typing_context: Any,
    levels: Any,
    at: Any,
    left: Any,
    first: Any,
    right: Any,
    column: Any,
    rank: Any,
    stride: Any,
    shift: Any,
) -> Any:
    """Write the levels of `PREDICTED` elements of a row: see `update_kernels.predict`.

    `first` is the place of the row's first factor in `left`, `column` that of the first column's
    first factor in `right`, whose next factor is `stride` places further.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        types_of, (levels, at, left, first, right, column, rank, stride, shift) = (
            signature.args,
            args,
        )
        number = ir.IntType(32)
        lanes = ir.VectorType(number, PREDICTED)
        total = cgutils.alloca_once(builder, lanes)
        builder.store(ir.Constant(lanes, None), total)
        factors = cgutils.create_struct_proxy(types_of[2])(context, builder, value=left).data
        with cgutils.for_range(builder, rank) as loop:
            place = builder.add(column, builder.mul(loop.index, stride))
            part = _vector(context, builder, types_of[4], right, place, PREDICTED)
            factor = builder.load(builder.gep(factors, [builder.add(first, loop.index)]))
            product = builder.mul(builder.sext(part, lanes), _splat(builder, factor, PREDICTED))
            builder.store(builder.add(builder.load(total), product), total)
        sums = builder.load(total)
        zero = ir.Constant(lanes, None)
        is_down = builder.icmp_signed("<", sums, zero)
        size = builder.select(is_down, builder.sub(zero, sums), sums)
        size = builder.lshr(size, _splat(builder, shift, PREDICTED))
        most = _splat(builder, number(15), PREDICTED)
        size = builder.select(builder.icmp_unsigned("<", size, most), size, most)
        sign = builder.select(is_down, _splat(builder, number(128), PREDICTED), zero)
        level = builder.trunc(builder.or_(size, sign), ir.VectorType(ir.IntType(8), PREDICTED))
        data = cgutils.create_struct_proxy(types_of[0])(context, builder, value=levels).data
        pointer = builder.bitcast(builder.gep(data, [at]), level.type.as_pointer())
        builder.store(level, pointer, align=1)
        return context.get_dummy_value()

    places = (levels, types.intp, left, types.intp, right, types.intp)
    return types.none(*places, types.intp, types.intp, types.int32), generate


@intrinsic
def add_scaled(
    typing_context: Any, target: Any, at: Any, source: Any, place: Any, factor: Any
) -> Any:
    """`target[at : at + FITTED] += factor * source[place : place + FITTED]` of fp32 numbers."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = ir.VectorType(ir.FloatType(), FITTED)
        places = {}
        for i in (0, 2):
            array = cgutils.create_struct_proxy(signature.args[i])(context, builder, value=args[i])
            place = builder.gep(array.data, [args[i + 1]])
            places[i] = builder.bitcast(place, lanes.as_pointer())
        product = builder.fmul(builder.load(places[2], align=4), _splat(builder, args[4], FITTED))
        total = builder.fadd(builder.load(places[0], align=4), product)
        builder.store(total, places[0], align=4)
        return context.get_dummy_value()

    return types.none(target, types.intp, source, types.intp, types.float32), generate
