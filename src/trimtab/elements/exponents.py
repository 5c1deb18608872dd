"""The exponent of each element: the strata of every "magnitude-matched" figure.

How far a weight must move before its stored value changes grows with its exponent, so elements of
one exponent are alike in how easily they change; within a bin the distance differs by less than a
factor of two. Masks are matched by magnitude in bins of tensor × exponent of the stored base
weight.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits, DType

__all__ = ["exponent_bins", "exponent_place", "num_exponent_bins"]


def num_exponent_bins(dtype: DType) -> int:
    """How many bins a dtype has: 256 for bf16 and fp32, 1 for what is no float."""
    return exponent_place(dtype)[1] + 1


def exponent_place(dtype: DType) -> tuple[int, int]:
    """`(shift, field)` with `bin = bits >> shift & field`, for loops that compute it themselves."""
    if not dtype.is_float:
        return 0, 0
    num_exponent_bits = 8 * dtype.num_bytes - 1 - dtype.num_mantissa_bits
    return dtype.num_mantissa_bits, (1 << num_exponent_bits) - 1


def exponent_bins(bits: Bits, dtype: DType) -> NDArray[np.uint16]:
    """The biased exponent of each element; zeros and subnormals are in bin 0.

    Args:
        bits: Elements as unsigned integers of the stored width. Any shape.
        dtype: What they mean; elements that are no floats are all in bin 0.

    Returns:
        uint16, same shape: 0 to `num_exponent_bins(dtype)` - 1.
    """
    shift, field = exponent_place(dtype)
    bins = bits >> dtype.bits.type(shift) & dtype.bits.type(field)
    return bins.astype(np.uint16)
