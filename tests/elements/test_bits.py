"""Sums of packed bits by row and column equal those of the unpacked matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.elements import set_kernels
from trimtab.elements.bits import (
    Counters,
    bit_sums,
    count_bins,
    count_by_bin,
    slabs,
)
from trimtab.elements.fast import COMPILED_FROM, counters_for

COUNTERS = {
    "numpy": Counters(bit_sums, count_bins, count_by_bin),
    "numba": Counters(
        set_kernels.compiled_bit_sums,
        set_kernels.compiled_count_bins,
        set_kernels.compiled_count_by_bin,
    ),
}


@st.composite
def rectangles(draw: st.DrawFn) -> tuple[np.ndarray, range, range]:
    """A bool matrix, and a rectangle of it."""
    num_rows, num_columns = draw(st.integers(1, 9)), draw(st.integers(1, 150))
    seed, density = draw(st.integers(0, 2**32)), draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    matrix = np.random.default_rng(seed).random((num_rows, num_columns)) < density
    top, left = draw(st.integers(0, num_rows - 1)), draw(st.integers(0, num_columns - 1))
    bottom = draw(st.integers(top, num_rows))
    right = draw(st.integers(left, num_columns))
    return matrix, range(top, bottom), range(left, right)


@pytest.mark.parametrize("name", COUNTERS)
@settings(deadline=None)  # the first call compiles
@given(drawn=rectangles())
def test_sums_of_a_rectangle(name: str, drawn: tuple[np.ndarray, range, range]) -> None:
    matrix, rows, columns = drawn
    bits = np.packbits(matrix.ravel(), bitorder="little")
    by_row, by_column = COUNTERS[name].bit_sums(bits, matrix.shape[1], rows, columns)
    inside = matrix[rows.start : rows.stop, columns.start : columns.stop]
    np.testing.assert_array_equal(by_row, inside.sum(axis=1))
    np.testing.assert_array_equal(by_column, inside.sum(axis=0))
    assert by_row.dtype == by_column.dtype == np.int64


@pytest.mark.parametrize("name", COUNTERS)
def test_sums_over_several_slabs(name: str) -> None:
    """Slabs need not begin at a whole byte, and all but the last are of one height."""
    matrix = np.random.default_rng(0).random((700, 4099)) < 0.1
    assert len(list(slabs(range(700), 4099))) > 2
    bits = np.packbits(matrix.ravel(), bitorder="little")
    by_row, by_column = COUNTERS[name].bit_sums(bits, 4099, range(3, 699), range(1, 4098))
    np.testing.assert_array_equal(by_row, matrix[3:699, 1:4098].sum(axis=1))
    np.testing.assert_array_equal(by_column, matrix[3:699, 1:4098].sum(axis=0))


@pytest.mark.parametrize("name", COUNTERS)
@settings(deadline=None)
@given(seed=st.integers(0, 2**32), shape=st.tuples(st.integers(1, 7), st.integers(1, 9)))
def test_counts_by_bin(name: str, seed: int, shape: tuple[int, int]) -> None:
    bins = np.random.default_rng(seed).choice(np.array([2, 5, 6], dtype=np.uint16), shape)
    place = np.zeros(8, dtype=np.int64)
    place[[2, 5, 6]] = [0, 1, 2]
    by_row = np.ones((shape[0], 3), dtype=np.int32)
    by_column = np.ones((shape[1], 3), dtype=np.int32)
    COUNTERS[name].count_by_bin(bins, place, by_row, by_column)
    for at, value in enumerate((2, 5, 6)):
        np.testing.assert_array_equal(by_row[:, at] - 1, (bins == value).sum(axis=1))
        np.testing.assert_array_equal(by_column[:, at] - 1, (bins == value).sum(axis=0))


@pytest.mark.parametrize("name", COUNTERS)
@settings(deadline=None)
@given(seed=st.integers(0, 2**32), shape=st.tuples(st.integers(1, 7), st.integers(1, 9)))
def test_counts_of_selected_elements_by_bin(name: str, seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    bins = rng.integers(0, 4, shape).astype(np.uint16)
    selected = rng.random(shape) < 0.4
    counts = np.ones((2, 5), dtype=np.int64)
    COUNTERS[name].count_bins(bins, selected, counts)
    for value in range(5):
        assert counts[1, value] - 1 == (selected & (bins == value)).sum()
        assert counts[0, value] - 1 == (~selected & (bins == value)).sum()


def test_the_compiled_ones_are_for_much() -> None:
    assert counters_for(COMPILED_FROM - 1) == COUNTERS["numpy"]
    assert counters_for(COMPILED_FROM) == COUNTERS["numba"]
