"""Exponent bins against `frexp`, for every float dtype that can be stored."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from trimtab.elements.dtypes import DTYPES, exponent_bins, exponent_place, num_exponent_bins

FLOATS = [name for name, dtype in DTYPES.items() if dtype.is_float]


@pytest.mark.parametrize("name", FLOATS)
def test_the_bin_is_the_biased_exponent(name: str) -> None:
    dtype = DTYPES[name]
    rng = np.random.default_rng(0)
    sizes = 2.0 ** rng.uniform(-5, 5, 500)
    bits = dtype.encode(np.where(rng.random(500) < 0.5, sizes, -sizes))
    exponents = np.frexp(dtype.decode(bits))[1] - 1  # of 1.x · 2^e
    bias = 1 - int(ml_dtypes.finfo(dtype.storage).minexp)
    assert np.array_equal(exponent_bins(bits, dtype), exponents + bias)


@pytest.mark.parametrize("name", FLOATS)
def test_zeros_and_subnormals_share_a_bin(name: str) -> None:
    dtype = DTYPES[name]
    tiny = float(ml_dtypes.finfo(dtype.storage).smallest_subnormal)
    assert not exponent_bins(dtype.encode(np.array([0.0, -0.0, tiny, -tiny])), dtype).any()


@pytest.mark.parametrize("name", FLOATS)
def test_every_bit_pattern_has_a_bin(name: str) -> None:
    dtype = DTYPES[name]
    rng = np.random.default_rng(1)
    high = 1 << 8 * dtype.num_bytes
    bits = rng.integers(0, high, 10_000, dtype=np.uint64).astype(dtype.bits)
    bins = exponent_bins(bits.reshape(100, 100), dtype)
    assert bins.shape == (100, 100)
    assert bins.max() < num_exponent_bins(dtype)
    assert exponent_bins(np.array([high - 1], dtype.bits), dtype) == num_exponent_bins(dtype) - 1


def test_what_is_no_float_has_one_bin() -> None:
    for dtype in DTYPES.values():
        if not dtype.is_float:
            assert num_exponent_bins(dtype) == 1
            assert not exponent_bins(np.arange(9).astype(dtype.bits), dtype).any()


def test_places() -> None:
    assert exponent_place(DTYPES["BF16"]) == (7, 255)
    assert exponent_place(DTYPES["F16"]) == (10, 31)
    assert exponent_place(DTYPES["F32"]) == (23, 255)
    assert exponent_place(DTYPES["F8_E4M3"]) == (3, 15)
