"""The dtype table against torch, which has its own tables and its own rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.elements.cases import edge_bits
from trimtab.elements.dtypes import DTYPES, DType

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
SMALL = [dtype for dtype in DTYPES.values() if dtype.is_float and dtype.num_bytes <= 2]


def every(dtype: DType) -> np.ndarray:
    """All bits of a dtype of 8 or 16 bits."""
    return np.arange(1 << (8 * dtype.num_bytes), dtype=dtype.bits)


@pytest.mark.parametrize("name", TORCH)
def test_decode_equals_torch(name: str) -> None:
    dtype = DTYPES[name]
    bits = every(dtype) if dtype.num_bytes <= 2 else edge_bits(dtype)
    expected = torch.from_numpy(bits.copy()).view(TORCH[name]).double().numpy()
    np.testing.assert_array_equal(dtype.decode(bits), expected)
    np.testing.assert_array_equal(dtype.is_nan(bits), np.isnan(expected))


@pytest.mark.parametrize("dtype", SMALL, ids=lambda dtype: dtype.name)
def test_order_follows_the_values(dtype: DType) -> None:
    bits = every(dtype)
    bits = bits[~dtype.is_nan(bits)]
    place, value = dtype.ordered(bits), dtype.decode(bits)
    by_place = np.argsort(place, kind="stable")
    assert (np.diff(value[by_place]) >= 0).all()
    # Neighbours are one apart, and only +0 and -0 share a place.
    np.testing.assert_array_equal(
        np.unique(np.diff(np.sort(place)), return_counts=True)[1], [1, len(bits) - 2]
    )


@pytest.mark.parametrize("dtype", SMALL, ids=lambda dtype: dtype.name)
def test_encode_inverts_decode(dtype: DType) -> None:
    bits = every(dtype)
    bits = bits[~dtype.is_nan(bits)]
    np.testing.assert_array_equal(dtype.encode(dtype.decode(bits)), bits)


@pytest.mark.parametrize("dtype", SMALL, ids=lambda dtype: dtype.name)
@given(st.integers(0, 2**16 - 1), st.sampled_from([-1, 1]), st.integers(30, 40))
def test_fp64_is_rounded_once(dtype: DType, index: int, side: int, places: int) -> None:
    """A hair beside the middle of two neighbours, where fp32 would see the middle itself."""
    bits = every(dtype)
    values = np.unique(dtype.decode(bits[~dtype.is_nan(bits)]))
    values = values[np.isfinite(values)]
    low, high = values[index % (len(values) - 1) :][:2]
    middle = (low + high) / 2
    beside = middle + side * (high - low) * 2.0**-places
    expected = high if side > 0 else low
    assert dtype.decode(dtype.encode(np.array([beside])))[0] == expected


def test_fp32_is_rounded_as_torch_does() -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(0, 1, 10_000) * 10.0 ** rng.integers(-45, 38, 10_000)).astype(np.float32)
    for name in ("BF16", "F16"):
        expected = torch.from_numpy(values).to(TORCH[name]).view(torch.uint16).numpy()
        np.testing.assert_array_equal(DTYPES[name].encode(values), expected)
