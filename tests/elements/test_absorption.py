"""Rounding thresholds against real casts of every small-dtype value, and Adam's bounds."""

from __future__ import annotations

from fractions import Fraction
from math import erfc, fsum, inf, isclose, isfinite, nextafter, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trimtab.elements.absorption import (
    adam_displacement_bound,
    adam_step_bounds,
    base_histogram,
    count_movable,
    expected_moved,
    histogram_bits,
    num_finite,
    rounding_reach,
)
from trimtab.elements.dtypes import DTYPES, Bits, DType

SMALL = ("BF16", "F16", "F8_E4M3", "F8_E5M2")
FLOATS = (*SMALL, "F32", "F64")


def all_finite_bits(dtype: DType) -> Bits:
    bits = np.arange(1 << (8 * dtype.num_bytes)).astype(dtype.bits)
    return bits[np.isfinite(dtype.decode(bits))]


def random_bits(dtype: DType, count: int, seed: int = 0) -> Bits:
    """Random bit patterns: every exponent, subnormals, NaN and infinity among them."""
    raw = np.random.default_rng(seed).bytes(count * dtype.num_bytes)
    bits = np.frombuffer(raw, dtype=dtype.bits).copy()
    powers_of_two = bits[: count // 4] >> (dtype.num_bytes * 6) << (dtype.num_bytes * 6)
    return np.concatenate((bits, powers_of_two))


def leaves(dtype: DType, bits: Bits, move: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether value + move, cast to the dtype for real, is another value.

    The sum must be exact in fp32 for bf16 and fp8, whose ml_dtypes cast goes through fp32.
    """
    value = dtype.decode(bits)
    moved = value + move
    if dtype.name in ("BF16", "F8_E4M3", "F8_E5M2"):
        with np.errstate(over="ignore"):
            single = moved.astype(np.float32)
        assert np.all((single == moved) | (np.abs(moved) > 3.4e38))
        moved = single.astype(np.float64)
    return np.asarray(dtype.decode(dtype.encode(moved)) != value)


@pytest.mark.parametrize("name", SMALL)
def test_reach_is_where_a_real_cast_of_every_value_begins_to_differ(name: str) -> None:
    dtype = DTYPES[name]
    bits = all_finite_bits(dtype)
    for direction, reach in zip((-1, 1), rounding_reach(bits, dtype), strict=True):
        assert np.all(np.isfinite(reach))
        assert np.all(reach > 0)
        half = reach.astype(np.float32).astype(np.float64)  # drops the one fp64 step of a tie
        for factor in (1 - 2**-10, 1.0, 1 + 2**-10, 0.5, 1.5):
            move = half * factor
            expected = leaves(dtype, bits, direction * move)
            np.testing.assert_array_equal(reach <= move, expected, err_msg=f"{direction} {factor}")


def test_reach_of_random_fp32_is_where_a_real_cast_begins_to_differ() -> None:
    dtype = DTYPES["F32"]
    bits = random_bits(dtype, 40_000)
    bits = bits[np.isfinite(dtype.decode(bits))]
    for direction, reach in zip((-1, 1), rounding_reach(bits, dtype), strict=True):
        half = np.where(bits & 1, reach, np.nextafter(reach, 0))
        for factor in (1 - 2**-10, 1.0, 1 + 2**-10):
            move = half * factor
            np.testing.assert_array_equal(reach <= move, leaves(dtype, bits, direction * move))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_reach_of_fp64_is_half_the_gap_to_the_neighbour(value: float) -> None:
    bits = np.array([value]).view(np.uint64)
    down, up = (float(reach[0]) for reach in rounding_reach(bits, DTYPES["F64"]))
    for neighbour, reach in ((nextafter(value, -inf), down), (nextafter(value, inf), up)):
        if not isfinite(neighbour):
            continue
        half = abs(Fraction(neighbour) - Fraction(value)) / 2
        if bits[0] & np.uint64(1):
            # Below half the smallest subnormal there is no fp64 number: 0 stands for it.
            assert reach == float(half)
        else:  # the smallest fp64 number beyond the tie, which stays
            assert Fraction(reach) > half
            assert Fraction(nextafter(reach, 0)) <= half


def test_known_thresholds_of_bf16() -> None:
    dtype = DTYPES["BF16"]
    values = np.array([1.0, -1.0, 0.0, -0.0, np.nan, np.inf])
    down, up = rounding_reach(dtype.encode(values), dtype)
    one_fp64_step = 1 + 1e-15
    # A norm weight of 1.0: .0020 down, .0039 up (1.0 is even, so the tie itself stays).
    assert 2**-9 < down[0] < 2**-9 * one_fp64_step
    assert 2**-8 < up[0] < 2**-8 * one_fp64_step
    assert (down[1], up[1]) == (up[0], down[0])
    smallest = 2.0**-133
    assert np.all((down[2:4] > smallest / 2) & (down[2:4] < smallest / 2 * one_fp64_step))
    assert np.all(up[2:4] == down[2:4])
    assert np.all(np.isinf(down[4:]))
    assert np.all(np.isinf(up[4:]))


def test_norm_weights_of_one_cannot_move_in_2000_steps_of_5e_7() -> None:
    dtype = DTYPES["BF16"]
    histogram = base_histogram(dtype.encode(np.ones(64)), dtype)
    assert count_movable(histogram, dtype, 5e-7 * 2000) == 0
    assert count_movable(histogram, dtype, 0.0020) == 64


@pytest.mark.parametrize("name", FLOATS)
def test_histogram_decides_rounding_as_the_elements_themselves_do(name: str) -> None:
    dtype = DTYPES[name]
    bits = random_bits(dtype, 4000).reshape(100, -1)
    histogram = base_histogram(bits, dtype)
    assert histogram.sum() == bits.size
    assert num_finite(histogram, dtype) == np.isfinite(dtype.decode(bits)).sum()
    down, up = rounding_reach(bits, dtype)
    pooled = np.repeat(histogram_bits(dtype), histogram)
    pooled_down, pooled_up = rounding_reach(pooled, dtype)
    np.testing.assert_array_equal(np.sort(down, axis=None), np.sort(pooled_down))
    np.testing.assert_array_equal(np.sort(up, axis=None), np.sort(pooled_up))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("distance", [1e-42, 1e-6, 1e-3, 1.0])
def test_counts_and_expectation_equal_an_element_by_element_sum(name: str, distance: float) -> None:
    dtype = DTYPES[name]
    bits = random_bits(dtype, 2000, seed=1)
    histogram = base_histogram(bits, dtype)
    down, up = rounding_reach(bits, dtype)
    assert (
        count_movable(histogram, dtype, distance) == ((down <= distance) | (up <= distance)).sum()
    )
    expected = fsum(
        (erfc(d / (distance * sqrt(2))) + erfc(u / (distance * sqrt(2)))) / 2
        for d, u in zip(down.tolist(), up.tolist(), strict=True)
    )
    assert isclose(expected_moved(histogram, dtype, distance), expected, rel_tol=1e-9)


def test_histograms_of_parts_add_up_to_that_of_the_whole() -> None:
    dtype = DTYPES["F32"]
    bits = random_bits(dtype, 1000)
    parts = base_histogram(bits[:333], dtype) + base_histogram(bits[333:], dtype)
    np.testing.assert_array_equal(parts, base_histogram(bits, dtype))


def test_expectation_agrees_with_simulated_random_walks() -> None:
    dtype = DTYPES["BF16"]
    rng = np.random.default_rng(0)
    bits = dtype.encode((rng.standard_normal(4000) * 0.02).astype(np.float32))
    lr, steps, runs = 2e-6, 100, 60
    expected = expected_moved(base_histogram(bits, dtype), dtype, lr * sqrt(steps))
    master = np.tile(dtype.decode(bits), (runs, 1))
    for _ in range(steps):
        master += lr * rng.standard_normal(master.shape)
    stored = dtype.encode(master.astype(np.float32))
    changed = np.asarray(dtype.decode(stored) != dtype.decode(bits)).sum(axis=1)
    standard_error = changed.std() / sqrt(runs)
    assert standard_error < 0.01 * expected
    assert abs(changed.mean() - expected) < 4 * standard_error


def adam_step_ratio(gradients: NDArray[np.float64], betas: tuple[float, float]) -> Any:
    """|m̂| / sqrt(v̂) after the gradients, oldest first."""
    m = v = 0.0
    for gradient in gradients:
        m = betas[0] * m + (1 - betas[0]) * gradient
        v = betas[1] * v + (1 - betas[1]) * gradient**2
    steps = len(gradients)
    return abs(m / (1 - betas[0] ** steps)) / sqrt(v / (1 - betas[1] ** steps))


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.0, 0.99), (0.95, 0.94)])
@pytest.mark.parametrize("steps", [1, 2, 7, 60])
def test_adam_bound_is_attained_and_never_exceeded(betas: tuple[float, float], steps: int) -> None:
    bound = adam_step_bounds(steps, betas)[-1]
    if betas[0] > 0:
        worst = (betas[0] / betas[1]) ** np.arange(steps - 1, -1, -1.0)
        assert isclose(adam_step_ratio(worst, betas), bound, rel_tol=1e-9)
    rng = np.random.default_rng(steps)
    for _ in range(200):
        gradients = rng.standard_normal(steps) * rng.choice([1e-3, 1, 1e3], size=steps)
        assert adam_step_ratio(gradients, betas) <= bound * (1 + 1e-9)


def test_adam_bound_at_known_points() -> None:
    bounds = adam_step_bounds(20_000, (0.9, 0.999))
    limit = 0.1 / sqrt(0.001 * (1 - 0.81 / 0.999))
    assert bounds[0] == pytest.approx(1.0)
    assert bounds.max() == pytest.approx(limit, rel=1e-6)
    assert limit == pytest.approx(7.27, abs=0.005)
    assert limit < sqrt(0.1 / 0.001)  # the looser constant, 10
    assert adam_displacement_bound(20, (0.9, 0.999)) == pytest.approx(bounds[:20].sum())
