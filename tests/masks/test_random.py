"""Random bits: an exact count, every subset alike, and the same everywhere."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.masks import random
from trimtab.masks.random import Lots, random_tensor


def drawn(num_elements: int, num_selected: int, seed: int) -> np.ndarray:
    """A draw as a bool array."""
    return random_tensor((num_elements,), num_selected, seed=seed, name="w").unpack()


@given(st.data())
def test_the_count_is_exact_and_the_padding_empty(data: st.DataObject) -> None:
    num_elements = data.draw(st.integers(0, 3000))
    num_selected = data.draw(st.integers(0, num_elements))
    seed = data.draw(st.integers(-(2**70), 2**70))
    tensor = random_tensor((num_elements,), num_selected, seed=seed, name="w")
    assert tensor.unpack().sum() == num_selected == tensor.num_selected
    assert tensor.has_clean_padding
    assert len(tensor.bits) == -(-num_elements // 8)


@pytest.mark.parametrize("num_selected", [0, 1, 5, 31, 3_000, 150_000, 299_999, 300_000])
def test_the_count_is_exact_over_many_chunks(
    num_selected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "CHUNK_ELEMENTS", 1 << 12)
    assert drawn(300_001, num_selected, seed=0).sum() == num_selected


@pytest.mark.parametrize(("num_elements", "num_selected"), [(6, 3), (7, 1), (5, 4), (11, 2)])
def test_every_subset_is_as_likely(
    num_elements: int, num_selected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "CHUNK_ELEMENTS", 8)
    num_draws = 200 * comb(num_elements, num_selected)
    counts = Counter(
        tuple(np.flatnonzero(drawn(num_elements, num_selected, seed)).tolist())
        for seed in range(num_draws)
    )
    subsets = list(combinations(range(num_elements), num_selected))
    assert set(counts) == set(subsets)
    # Chi-square: mean is the degrees of freedom, variance twice that; 5 standard deviations.
    freedom = len(subsets) - 1
    chi_square = sum((counts[subset] - 200) ** 2 / 200 for subset in subsets)
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("value", [False, True])
def test_mending_the_count_is_uniform(value: bool) -> None:
    """Elements added to none, or taken from all, are any elements alike."""
    num_elements, num, num_draws = 40, 10, 4000
    hits = np.zeros(num_elements)
    generator = np.random.PCG64(0)
    for _ in range(num_draws):
        bits = np.full(num_elements // 8, 255 * value, dtype=np.uint8)
        random._flip(bits, num_elements, num, value, generator)
        flipped = np.unpackbits(bits, bitorder="little") != value
        assert flipped.sum() == num
        hits += flipped
    expected = num_draws * num / num_elements
    deviation = (expected * (1 - num / num_elements)) ** 0.5
    assert np.abs(hits - expected).max() < 5 * deviation


def test_positions_are_uniform_where_the_number_is_no_power_of_two() -> None:
    positions = np.concatenate([random._positions(np.random.PCG64(s), 5, 40_000) for s in range(4)])
    counts = np.bincount(positions.astype(np.int64))
    assert len(counts) == 5
    expected = len(positions) / 5
    assert np.abs(counts - expected).max() < 5 * expected**0.5


def test_a_large_tensor_is_selected_evenly() -> None:
    """Parts of a tensor of several chunks get their share, whichever chunk they lie in."""
    num_elements, density = 5_000_000, 0.1
    selected = drawn(num_elements, round(density * num_elements), seed=1)
    parts = selected[: num_elements // 1000 * 1000].reshape(1000, -1)
    expected = density * parts.shape[1]
    deviation = (expected * (1 - density)) ** 0.5
    assert np.abs(parts.sum(axis=1) - expected).max() < 5 * deviation
    # Neighbours are independent of each other.
    both = np.count_nonzero(selected[1:] & selected[:-1])
    assert abs(both - density**2 * num_elements) < 5 * density * num_elements**0.5


def test_seed_and_name_decide() -> None:
    def draw(seed: int, name: str) -> bytes:
        return random_tensor((100, 10), 300, seed=seed, name=name).bits.tobytes()

    assert draw(1, "w") == draw(1, "w")
    assert len({draw(seed, name) for seed in (0, 1, -1) for name in ("w", "v")}) == 6


def test_a_seed_means_the_same_mask_for_ever() -> None:
    """Results in papers name a seed: these change only together with the format."""
    small = random_tensor((4, 10), 9, seed=7, name="model.norm.weight")
    assert small.indices().tolist() == [1, 10, 15, 27, 30, 31, 34, 36, 38]
    sparse = random_tensor((2000, 1000), 9, seed=7, name="model.norm.weight")
    assert sparse.indices().tolist() == [
        *(60017, 115984, 229212, 263354, 554342),
        *(824509, 1477958, 1772635, 1854934),
    ]


def test_lots_of_one_stratum_are_a_random_tensor() -> None:
    lots = Lots([1000], [123], seed=3, name="w")
    sizes = [1, 8, 13, 500, 0, 478]
    won = np.concatenate([lots.draw(np.zeros(size, dtype=np.uint16)) for size in sizes])
    expected = random_tensor((1000,), 123, seed=3, name="w").unpack()
    assert np.array_equal(won, expected)


@given(st.data())
def test_lots_have_an_exact_number_of_winners(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=5))
    nums = [data.draw(st.integers(0, size)) for size in sizes]
    strata = np.repeat(np.arange(len(sizes)), sizes).astype(np.uint16)
    strata = strata[data.draw(st.permutations(range(len(strata))))]
    cut = data.draw(st.integers(0, len(strata)))
    lots = Lots(sizes, nums, seed=0, name="w")
    won = np.concatenate([lots.draw(strata[:cut]), lots.draw(strata[cut:])])
    assert np.bincount(strata[won], minlength=len(sizes)).tolist() == nums
    # The next lot of a stratum is the next, wherever its elements come among the others.
    whole = Lots(sizes, nums, seed=0, name="w").draw(strata)
    assert np.array_equal(whole, won)
