"""The table of stored dtypes, and the integer views that make bits comparable.

Elements are unsigned integers of their stored width ("bits"), not floats, so that +0.0 and -0.0
differ and a NaN equals itself. Values are decoded only for criteria that need them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from trimtab.words import one_line

Bits: TypeAlias = NDArray[Any]
"""Elements as unsigned integers of the stored width."""


@dataclass(frozen=True)
class DType:
    """A dtype that a checkpoint can store.

    Attributes:
        name: The safetensors spelling, such as `BF16`.
        kind: `float` for everything with a sign bit, an exponent and a mantissa (values are
            ordered by sign and magnitude); `int`, `uint` and `bool` otherwise; `scale` for the
            exponent-only F8_E8M0.
        storage: The numpy (or ml_dtypes) dtype that decodes the bits.
    """

    name: str
    kind: Literal["float", "int", "uint", "bool", "scale"]
    storage: np.dtype[Any]

    def __repr__(self) -> str:
        return one_line(self, self.name)

    @property
    def num_bytes(self) -> int:
        """Bytes per element."""
        return self.storage.itemsize

    @cached_property
    def bits(self) -> np.dtype[Any]:
        """Unsigned integer dtype of the same width."""
        return np.dtype(f"u{self.storage.itemsize}")

    @property
    def is_float(self) -> bool:
        """Whether the elements are floating-point numbers that training can move."""
        return self.kind == "float"

    @cached_property
    def num_mantissa_bits(self) -> int:
        """Stored bits of the mantissa of a float dtype."""
        return int(ml_dtypes.finfo(self.storage).nmant)

    @cached_property
    def largest_magnitude(self) -> int:
        """Bits, without the sign, of the largest number of a float dtype (infinity if it has it).

        What lies above is NaN.
        """
        has_infinity = self.name != "F8_E4M3"
        largest = np.inf if has_infinity else ml_dtypes.finfo(self.storage).max
        return int(np.array(largest, dtype=self.storage).view(self.bits))

    def decode(self, bits: Bits) -> NDArray[np.float64]:
        """Values of the elements, exact in fp64 (64-bit integers are rounded to fp64)."""
        values: NDArray[Any] = bits.view(self.storage)
        with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
            return values.astype(np.float64)

    def encode(self, values: NDArray[Any]) -> Bits:
        """Round values to this dtype, to nearest and ties to even, and return the bits."""
        values = np.ascontiguousarray(values)
        with np.errstate(over="ignore", invalid="ignore"):
            if values.dtype == np.float64 and self.num_bytes < 4:
                values = _float32_to_odd(values)
            stored: Bits = values.astype(self.storage).view(self.bits)
        return stored

    def is_nan(self, bits: Bits) -> NDArray[np.bool_]:
        """Which elements are NaN; never any for integers."""
        if self.kind == "scale":
            return np.equal(bits, 0xFF)
        if self.kind != "float":
            return np.zeros(bits.shape, dtype=np.bool_)
        magnitude = self.bits.type((1 << (8 * self.num_bytes - 1)) - 1)
        return np.greater(bits & magnitude, self.bits.type(self.largest_magnitude))

    def ordered(self, bits: Bits) -> NDArray[np.int64]:
        """Position of each element on the line of representable values.

        Neighbouring floats get neighbouring integers, and +0.0 and -0.0 both get 0, so a
        difference of positions is a signed distance in units in the last place (ulp).

        Args:
            bits: Elements as unsigned integers. NaNs get a position beyond infinity that has no
                meaning as a distance.

        Returns:
            int64 positions, same shape as `bits`. Integers of 64 bits wrap around.
        """
        if self.kind == "float":
            sign = self.bits.type(1 << (8 * self.num_bytes - 1))
            magnitude = (bits & ~sign).astype(np.int64)
            return np.where(bits & sign, -magnitude, magnitude)
        return bits.view(self.storage).astype(np.int64)


def _float32_to_odd(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round fp64 to fp32 so that rounding again, to a dtype of 16 bits or fewer, is exact.

    ml_dtypes rounds to bf16 and fp8 via fp32. A value that fp32 cannot hold becomes the neighbour
    with an odd last bit, which is never a tie.
    """
    rounded = values.astype(np.float32)
    bits = rounded.view(np.uint32)
    finite = np.isfinite(values)
    away = finite & (np.abs(rounded.astype(np.float64)) > np.abs(values))
    bits -= away.astype(np.uint32)
    bits |= (finite & (rounded.astype(np.float64) != values)).astype(np.uint32)
    return rounded


DTYPES: dict[str, DType] = {
    name: DType(name, kind, np.dtype(storage))  # type: ignore[arg-type]
    for name, kind, storage in (
        ("F64", "float", np.float64),
        ("F32", "float", np.float32),
        ("F16", "float", np.float16),
        ("BF16", "float", ml_dtypes.bfloat16),
        ("F8_E4M3", "float", ml_dtypes.float8_e4m3fn),
        ("F8_E5M2", "float", ml_dtypes.float8_e5m2),
        ("F8_E8M0", "scale", ml_dtypes.float8_e8m0fnu),
        ("I64", "int", np.int64),
        ("I32", "int", np.int32),
        ("I16", "int", np.int16),
        ("I8", "int", np.int8),
        ("U64", "uint", np.uint64),
        ("U32", "uint", np.uint32),
        ("U16", "uint", np.uint16),
        ("U8", "uint", np.uint8),
        ("BOOL", "bool", np.bool_),
    )
}
"""Every dtype that trimtab reads, by its safetensors name."""


def num_exponent_bins(dtype: DType) -> int:
    """Number of bins of a dtype: 256 for bf16 and fp32, 1 for non-floats."""
    return exponent_place(dtype)[1] + 1


def exponent_place(dtype: DType) -> tuple[int, int]:
    """`(shift, field)` with `bin = bits >> shift & field`, for loops that compute it themselves."""
    if not dtype.is_float:
        return 0, 0
    num_exponent_bits = 8 * dtype.num_bytes - 1 - dtype.num_mantissa_bits
    return dtype.num_mantissa_bits, (1 << num_exponent_bits) - 1


def exponent_bins(bits: Bits, dtype: DType) -> NDArray[np.uint16]:
    """The biased exponent of each element; zeros and subnormals are in bin 0.

    These bins are the strata of every "magnitude-matched" figure: the distance that a weight must
    move before its stored value changes is the same within a bin to a factor of two.

    Args:
        bits: Elements as unsigned integers of the stored width. Any shape.
        dtype: Dtype of the elements; non-floats are all in bin 0.

    Returns:
        uint16, same shape: 0 to `num_exponent_bins(dtype)` - 1.
    """
    shift, field = exponent_place(dtype)
    bins = bits >> dtype.bits.type(shift) & dtype.bits.type(field)
    return bins.astype(np.uint16)
