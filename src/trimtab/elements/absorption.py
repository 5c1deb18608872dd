"""Which steps a stored dtype absorbs: the distance to rounding, and how many elements it stops.

A weight `w` that moves by `d` and is stored again differs only if `w + d` no longer rounds to `w`:
half the gap to the neighbouring number, so the threshold grows with |w| (2^-9 to 2^-8 of |w| in
bf16). Below the power of two the gaps are half as wide, so a bf16 norm weight of 1.0 needs a move
of
0.0020 down but 0.0039 up. Changes are by value, as in criterion `value`: -0.0 that rounds to +0.0
has not moved. `w + d` is taken in exact arithmetic and rounded once, to nearest, ties to even.

How many elements a step can move depends on the base weights only through a histogram: of every bit
pattern for 8 and 16 bits, of sign × exponent × {power of two, odd, even} for 32 and 64 bits, where
the gap and the tie rule depend on nothing else. Histograms of parts of a tensor add up.

Source: the absorption argument of arXiv 2602.03839 (PULSE) and 2511.08567 (Gate III), which use
|w| / 256 for bf16; here the threshold is exact for every element and dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import erfc, fsum, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits, DType

_MANTISSA_BITS = {"F32": 23, "F64": 52}


def rounding_reach(bits: Bits, dtype: DType) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest fp64 distances down and up at which rounding leaves each element.

    `down <= d` exactly when `w - d` rounds to another value than `w`, and `up <= d` when `w + d`
    does, for every positive fp64 `d`. A tie that rounds back to `w` is one fp64 step short of
    leaving. Moving the largest finite number out counts when it overflows.

    Args:
        bits: Elements as unsigned integers. Any shape.
        dtype: What the bits mean; a floating-point dtype.

    Returns:
        `(down, up)`, fp64, same shape; infinite where the element is NaN or infinite.
    """
    sign = dtype.bits.type(1 << (8 * dtype.num_bytes - 1))
    one = dtype.bits.type(1)
    magnitude = bits & ~sign
    with np.errstate(invalid="ignore", over="ignore"):
        here = dtype.decode(magnitude)
        outwards = dtype.decode(magnitude + one) - here
        inwards = here - dtype.decode(np.where(magnitude == 0, magnitude, magnitude - one))
    outwards = np.where(np.isfinite(outwards), outwards, inwards)
    inwards = np.where(magnitude == 0, outwards, inwards)
    is_odd = (magnitude & one).astype(np.bool_)
    finite = np.isfinite(here)

    def reach(gap: NDArray[np.float64]) -> NDArray[np.float64]:
        half = gap / 2
        return np.where(finite, np.where(is_odd, half, np.nextafter(half, np.inf)), np.inf)

    negative = (bits & sign).astype(np.bool_)
    toward_zero, away = reach(inwards), reach(outwards)
    return np.where(negative, away, toward_zero), np.where(negative, toward_zero, away)


def base_histogram(bits: Bits, dtype: DType) -> NDArray[np.int64]:
    """Count elements by what decides their rounding; entry `i` is like `histogram_bits(dtype)[i]`.

    Args:
        bits: Elements as unsigned integers. Any shape.
        dtype: What the bits mean; a floating-point dtype.
    """
    counts = np.zeros(len(histogram_bits(dtype)), dtype=np.int64)
    flat = bits.ravel()
    if dtype.name in _MANTISSA_BITS:
        _kernels()[1](flat, counts, np.uint64(_MANTISSA_BITS[dtype.name]))
    else:
        _kernels()[0](flat, counts)
    return counts


@cache
def histogram_bits(dtype: DType) -> Bits:
    """One bit pattern for each entry of `base_histogram`; read-only."""
    if dtype.name in _MANTISSA_BITS:
        key = np.arange(4 << (8 * dtype.num_bytes - _MANTISSA_BITS[dtype.name]))
        # The last two bits of a key are a mantissa of its class: 0 zero, 1 odd, 2 even (3 unused).
        patterns = ((key >> 2) << _MANTISSA_BITS[dtype.name] | key & 3).astype(dtype.bits)
    else:
        patterns = np.arange(1 << (8 * dtype.num_bytes)).astype(dtype.bits)
    patterns.setflags(write=False)
    return patterns


@cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    """The two counting loops; eight times as fast as `np.bincount` here."""
    from trimtab.elements.simd import compiled  # loads Numba

    @compiled()
    def count_patterns(bits: Any, counts: Any) -> None:
        for pattern in bits:
            counts[pattern] += 1

    @compiled()
    def count_classes(bits: Any, counts: Any, mantissa_bits: Any) -> None:
        mask = (np.uint64(1) << mantissa_bits) - np.uint64(1)
        for pattern in bits:
            mantissa = np.uint64(pattern) & mask
            parity = 0 if mantissa == 0 else (1 if mantissa & np.uint64(1) else 2)
            counts[np.int64(np.uint64(pattern) >> mantissa_bits) * 4 + parity] += 1

    return count_patterns, count_classes


@cache
def _reaches(dtype: DType) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return rounding_reach(histogram_bits(dtype), dtype)


def num_finite(histogram: NDArray[np.int64], dtype: DType) -> int:
    """Elements that are neither NaN nor infinite."""
    return int(histogram[np.isfinite(_reaches(dtype)[0])].sum())


def count_movable(histogram: NDArray[np.int64], dtype: DType, distance: float) -> int:
    """Elements that a move by `distance`, down or up, could change once stored.

    Args:
        histogram: From `base_histogram`.
        dtype: The stored dtype.
        distance: How far an element moves, in units of its value; positive and finite.
    """
    return int(histogram[np.minimum(*_reaches(dtype)) <= distance].sum())


def expected_moved(histogram: NDArray[np.int64], dtype: DType, deviation: float) -> float:
    """Expected number of elements changed by independent Normal(0, deviation²) moves.

    Args:
        histogram: From `base_histogram`.
        dtype: The stored dtype.
        deviation: Standard deviation of the move, in units of the elements' value; positive.
    """
    occurring = np.flatnonzero(histogram)
    down, up = (reach[occurring] for reach in _reaches(dtype))
    # Most patterns share their reach with others: the Gaussian tail is taken once for each.
    distinct, index = np.unique(np.concatenate((down, up)), return_inverse=True)
    weights = np.bincount(index, weights=np.tile(histogram[occurring], 2))
    scale = deviation * sqrt(2)
    pairs = zip(distinct.tolist(), weights.tolist(), strict=True)
    return fsum(weight * erfc(reach / scale) / 2 for reach, weight in pairs)


def adam_step_bounds(steps: int, betas: tuple[float, float]) -> NDArray[np.float64]:
    """Largest |Adam step| / LR at steps 1 … `steps` of a run that starts without state.

    With `m̂ = (1-β1)/(1-β1^t) · Σ β1^k g_k` and `v̂ = (1-β2)/(1-β2^t) · Σ β2^k g_k²` over the last
    `t` gradients (k = 0 is the newest), Cauchy-Schwarz on `Σ (β1^k β2^(-k/2)) (β2^(k/2) g_k)` gives

        m̂² / v̂ ≤ (1-β1)² / (1-β2) · (1-β2^t) / (1-β1^t)² · Σ ρ^k,   ρ = β1²/β2,  k < t,

    attained by gradients proportional to (β1/β2)^k. It is exactly 1 at the first step, and rises
    to (1-β1) / √((1-β2)(1-ρ)): 7.27 for (0.9, 0.999), which is below the
    √((1-β1)/(1-β2)) = 10 that arXiv 2602.03839 (PULSE) uses. Early in a run it is
    far below both: 1.16 at step 20 of (0.9, 0.999). Epsilon only shortens steps; weight decay is
    not included.

    Args:
        steps: How many steps, at least 1.
        betas: β1 >= 0 and β2 < 1 with β1² < β2 (otherwise the bound grows without end).

    Returns:
        fp64, one bound for each step.
    """
    beta1, beta2 = betas
    step = np.arange(1, steps + 1, dtype=np.float64)
    rho = beta1**2 / beta2
    series = (1 - rho**step) / (1 - rho)
    bounds: NDArray[np.float64] = (
        (1 - beta1) * np.sqrt(series * (1 - beta2**step) / (1 - beta2)) / (1 - beta1**step)
    )
    return bounds


def adam_displacement_bound(steps: int, betas: tuple[float, float]) -> float:
    """Farthest that an element can be from its start after `steps` Adam steps, divided by LR.

    The sum of `adam_step_bounds`. No gradients attain every step's bound at once, so this cannot
    be reached; it holds for any gradients and any schedule that stays at or below LR.
    """
    return fsum(adam_step_bounds(steps, betas))
