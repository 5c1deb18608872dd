"""The kernels that count sets, against NumPy."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trimtab.elements.dtypes import DTYPES, exponent_bins, exponent_place, num_exponent_bins
from trimtab.elements.set_kernels import MOST_AT_ONCE, count_by_bin, count_shared


def packed(sets: NDArray[np.bool_]) -> NDArray[np.uint64]:
    padded = np.zeros((len(sets), -(-sets.shape[1] // 64) * 64), np.bool_)
    padded[:, : sets.shape[1]] = sets
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint64)


@pytest.mark.parametrize("num_sets", [2, 3, 7, 26])
@pytest.mark.parametrize("num_elements", [0, 1, 64, 1000])
def test_count_shared(num_sets: int, num_elements: int) -> None:
    rng = np.random.default_rng(num_sets)
    sets = rng.random((num_sets, num_elements)) < rng.random((num_sets, 1))
    shared = np.ones((num_sets, num_sets), np.int64)
    by_count = np.ones(num_sets + 1, np.int64)
    count_shared(packed(sets), shared, by_count)
    for i, j in product(range(num_sets), repeat=2):
        assert shared[i, j] == 1 + (np.sum(sets[i] & sets[j]) if i <= j else 0)
    times = np.bincount(sets.sum(axis=0), minlength=num_sets + 1)
    assert list(by_count) == [1, *(times[1:] + 1)]


def assert_by_bin(bits: NDArray[Any], dtype_name: str, sets: NDArray[np.bool_]) -> None:
    dtype = DTYPES[dtype_name]
    shift, largest = exponent_place(dtype)
    counts = np.zeros((largest + 1, 1 + len(sets)), np.int64)
    count_by_bin(bits, shift, largest.bit_length(), packed(sets), counts)
    bins, num = exponent_bins(bits, dtype), num_exponent_bins(dtype)
    assert list(counts[:, 0]) == list(np.bincount(bins, minlength=num))
    for place, members in enumerate(sets):
        assert list(counts[:, 1 + place]) == list(np.bincount(bins[members], minlength=num))


@pytest.mark.parametrize("dtype_name", DTYPES)
@pytest.mark.parametrize("num_elements", [0, 5, 64, 64 * 70 + 3])
def test_bins_of_all_bits(dtype_name: str, num_elements: int) -> None:
    rng = np.random.default_rng(num_elements)
    dtype = DTYPES[dtype_name]
    raw = rng.integers(0, 256, num_elements * dtype.num_bytes, dtype=np.uint8)
    assert_by_bin(raw.view(dtype.bits), dtype_name, rng.random((2, num_elements)) < 0.3)


@pytest.mark.parametrize("dtype_name", ["BF16", "F32", "F16"])
def test_bins_of_weights(dtype_name: str) -> None:
    """Of a normal distribution, with zeros, and with one weight far above all others."""
    rng = np.random.default_rng(0)
    dtype = DTYPES[dtype_name]
    values = rng.standard_normal(64 * 130 + 7) * 0.02
    values[rng.random(len(values)) < 0.1] = 0.0
    values[5] = 2.0 ** (MOST_AT_ONCE - 3)
    sets = rng.random((3, len(values))) < 0.2
    assert_by_bin(dtype.encode(values), dtype_name, sets)
    assert_by_bin(dtype.encode(np.zeros(640)), dtype_name, sets[:, :640])


@given(st.lists(st.integers(0, 2**16 - 1), max_size=300), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_bins_of_any_bits(elements: list[int], seed: int) -> None:
    sets = np.random.default_rng(seed).random((1, len(elements))) < 0.5
    assert_by_bin(np.array(elements, np.uint16), "BF16", sets)
