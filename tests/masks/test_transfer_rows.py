"""Rows of packed tensors against the bool arrays that they are of."""

from __future__ import annotations

from fractions import Fraction
from math import floor, prod

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from trimtab.masks import transfer
from trimtab.masks.packed import PackedTensor
from trimtab.masks.transfer import nearest, random_rows, row_counts, scaled_counts

ARRAYS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=13))


@given(array=ARRAYS)
def test_rows_are_counted(array: NDArray[np.bool_]) -> None:
    counts = row_counts(PackedTensor.pack(array))
    expected = array.sum(axis=-1) if array.ndim else array.sum()
    np.testing.assert_array_equal(counts, expected)
    assert counts.shape == array.shape[:-1]


def test_rows_are_counted_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK_ELEMENTS", 100)
    array = np.random.default_rng(0).random((45, 7)) < 0.3
    np.testing.assert_array_equal(row_counts(PackedTensor.pack(array)), array.sum(axis=1))


@given(num=st.integers(1, 200), before=st.integers(1, 200))
def test_the_nearest_unit(num: int, before: int) -> None:
    found = nearest(np.arange(num), num, before)
    for i in range(num):
        place = Fraction(i * (before - 1), num - 1) if num > 1 else Fraction(0)
        assert found[i] == floor(place + Fraction(1, 2))
    assert found[0] == 0
    assert num == 1 or found[-1] == before - 1
    if num == before:
        assert found.tolist() == list(range(num))


@given(data=st.data(), before=st.integers(0, 50), after=st.integers(0, 50))
def test_scaled_counts_have_the_same_share(data: st.DataObject, before: int, after: int) -> None:
    counts = np.array(data.draw(st.lists(st.integers(0, before), max_size=30)), dtype=np.int64)
    scaled = scaled_counts(counts, before, after)
    assert scaled.dtype == np.int64
    assert len(scaled) == len(counts)
    if not before:
        assert not scaled.any()
        return
    exact = [Fraction(int(count) * after, before) for count in counts]
    for count, share in zip(scaled, exact, strict=True):
        assert 0 <= count <= after
        assert abs(int(count) - share) < 1
    assert abs(int(scaled.sum()) - sum(exact, Fraction(0))) <= Fraction(1, 2)
    if before == after:
        np.testing.assert_array_equal(scaled, counts)


@given(data=st.data())
def test_random_rows_have_their_counts(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=19))
    columns = shape[-1] if shape else 1
    num_rows = prod(shape[:-1])
    sizes = st.lists(st.integers(0, columns), min_size=num_rows, max_size=num_rows)
    counts = np.array(data.draw(sizes), dtype=np.int64)
    tensor = random_rows(shape, counts, seed=data.draw(st.integers()), name="w")
    assert tensor.shape == shape
    assert tensor.has_clean_padding
    assert tensor.num_selected == counts.sum()
    np.testing.assert_array_equal(row_counts(tensor).reshape(-1), counts)


def test_random_rows_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.random.default_rng(0).integers(0, 8, 45)
    whole = random_rows((45, 7), counts, seed=1, name="w")
    monkeypatch.setattr(transfer, "CHUNK_ELEMENTS", 100)
    np.testing.assert_array_equal(random_rows((45, 7), counts, seed=1, name="w").bits, whole.bits)


def test_every_choice_is_as_likely() -> None:
    """2 of 4 in each of many rows: all six pairs come up equally often."""
    num = 60_000
    tensor = random_rows((num, 4), np.full(num, 2), seed=0, name="w")
    found = np.bincount(tensor.unpack() @ (1 << np.arange(4)), minlength=16)
    pairs = found[[0b0011, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100]]
    assert pairs.sum() == num
    chi_squared = ((pairs - num / 6) ** 2 / (num / 6)).sum()
    assert chi_squared < 20.5  # 0.1 % of a chi-squared with 5 degrees of freedom is above


def test_a_seed_and_a_name_decide_the_draw_everywhere() -> None:
    """The lowest of each row's raw draws, one draw after the other."""
    counts = np.array([1, 3, 0])
    generator = np.random.PCG64(xxhash.xxh3_128_intdigest(b"7\0w"))
    expected = []
    for count in counts:
        draws = [generator.random_raw() for _ in range(8)]
        expected.append(sum(1 << draws.index(draw) for draw in sorted(draws)[:count]))
    assert expected == [2, 13, 0]
    assert random_rows((3, 8), counts, seed=7, name="w").bits.tolist() == expected
    assert random_rows((3, 8), counts, seed=8, name="w").bits.tolist() != expected
    assert random_rows((3, 8), counts, seed=7, name="v").bits.tolist() != expected
