"""Selection by score: exact counts, the highest first, ties at random; against sorting."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.masks.masks import SHAPES, example_mask
from tests.measure.checkpoints import llama_tensors, save
from trimtab.checkpoints import weights
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.elements.dtypes import DTYPES, exponent_bins
from trimtab.errors import MaskError, MaskMismatchError
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask
from trimtab.masks.selection import scores
from trimtab.masks.selection.quotas import Quotas
from trimtab.masks.selection.scores import ArrayScores
from trimtab.masks.selection.top_k import ordered_keys, select

floats = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0])
STEP = {"step": "test"}


def is_top(score: np.ndarray, selected: np.ndarray, num: int) -> bool:
    """Whether `num` elements are selected, and none that scores higher is left out."""
    lowest = score[selected].min(initial=np.inf)
    highest = score[~selected].max(initial=-np.inf)
    return int(selected.sum()) == num and bool(lowest >= highest)


@given(st.data())
def test_the_highest_scores_are_selected(data: st.DataObject) -> None:
    shapes = st.lists(hnp.array_shapes(min_dims=0, max_dims=2, max_side=9), max_size=3)
    arrays = {
        f"w{index}": data.draw(hnp.arrays(np.float32, shape, elements=floats))
        for index, shape in enumerate(data.draw(shapes))
    }
    density = data.draw(st.floats(0, 1))
    held = ArrayScores(arrays)
    by_tensor = select(held, Quotas.of_density(density, held.shapes), seed=0, provenance=STEP)
    for name, array in arrays.items():
        assert is_top(array, by_tensor.array(name), int(density * array.size + 0.5))
    quotas = Quotas.of_density(density, held.shapes, match="total")
    whole = select(held, quotas, seed=0, provenance=STEP)
    size = sum(array.size for array in arrays.values())
    joined = [
        np.concatenate([part.ravel() for part in parts]) if arrays else np.zeros(0, np.bool_)
        for parts in (arrays.values(), [whole.array(name) for name in arrays])
    ]
    assert is_top(joined[0], joined[1].astype(np.bool_), int(density * size + 0.5))


def test_many_chunks_are_one_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    held = ArrayScores({"w": rng.normal(size=(50, 37)), "v": rng.normal(size=11)})
    quotas = Quotas.of_density(0.3, held.shapes, match="total")
    whole = select(held, quotas, seed=0, provenance=STEP)
    for module in (scores, weights):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", 64)
    monkeypatch.setattr("trimtab.masks.selection.quotas.CHUNK_ELEMENTS", 64)
    assert select(held, quotas, seed=0, provenance=STEP) == whole


def test_every_bin_has_its_own_top(tmp_path: Path) -> None:
    tensors = llama_tensors()
    rng = np.random.default_rng(1)
    held = ArrayScores({name: rng.random(tensor.shape) for name, tensor in tensors.items()})
    with open_checkpoint(save(tmp_path / "base", tensors)) as base:
        quotas = Quotas.of_density(0.25, held.shapes, match="magnitude", base=base)
        mask = select(held, quotas, seed=0, provenance=STEP)
    for name, tensor in tensors.items():
        bins = exponent_bins(tensor.view(torch.int16).numpy().view(np.uint16), DTYPES["BF16"])
        array = dict(zip(held.shapes, held._arrays.values(), strict=True))[name]
        total = 0
        for number in np.unique(bins):
            inside = bins == number
            num = int(mask.array(name)[inside].sum())
            assert is_top(array[inside].astype(np.float32), mask.array(name)[inside], num)
            assert abs(num - 0.25 * inside.sum()) <= 1
            total += num
        assert total == int(0.25 * tensor.numel() + 0.5)


def test_ties_are_broken_alike_for_all() -> None:
    """Two of the five that tie for the last two of three places."""
    array = np.array([1, 5, 2, 2, 2, 0, 2, 2], dtype=np.float32)
    tied = [2, 3, 4, 6, 7]
    held = ArrayScores({"w": array})
    quotas = Quotas.of_density(3 / 8, held.shapes)
    num_draws = 3000
    counts = Counter(
        tuple(select(held, quotas, seed=seed, provenance=STEP).indices("w").tolist())
        for seed in range(num_draws)
    )
    choices = {tuple(sorted((1, *pair))) for pair in combinations(tied, 2)}
    assert set(counts) == choices
    expected = num_draws / len(choices)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    freedom = len(choices) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_scores_that_are_all_equal_make_the_random_control() -> None:
    mask = example_mask()
    flat = ArrayScores({name: np.zeros(shape) for name, shape in SHAPES.items()})
    quotas = Quotas.like(mask)
    assert select(flat, quotas, seed=4, provenance=STEP) == mask.random_like(4)


def test_a_random_whole_has_the_count_of_the_whole() -> None:
    mask = example_mask()
    flat = ArrayScores({name: np.zeros(shape) for name, shape in SHAPES.items()})
    quotas = Quotas.like(mask, match="total")
    drawn = select(flat, quotas, seed=0, provenance=STEP)
    assert drawn.num_selected() == mask.num_selected() == quotas.num_selected
    assert any(drawn.num_selected(name) != mask.num_selected(name) for name in mask)


def test_the_provenance_says_how() -> None:
    base = {"w": BaseTensor("BF16", "0" * 32), "v": BaseTensor("BF16", "1" * 32)}
    held = ArrayScores({"w": np.arange(10.0), "v": np.arange(3.0)}, base)
    reference = Mask.from_arrays({"w": np.arange(10) < 4})
    quotas = Quotas.like(reference, held.shapes)
    mask = select(held, quotas, seed=7, provenance={"step": "high", "of": "x"})
    assert mask.indices("w").tolist() == [6, 7, 8, 9]
    assert mask.names == ("w",)
    assert mask.base == {"w": base["w"]}
    assert mask.provenance["steps"] == [
        {"step": "high", "of": "x", "match": "tensor", "like": reference.digest, "seed": 7}
    ]


def test_what_cannot_be_selected_is_refused(tmp_path: Path) -> None:
    held = ArrayScores({"w": np.array([1.0, np.nan, 3.0])})
    with pytest.raises(MaskError, match="the scores of w hold NaN"):
        select(held, Quotas.of_density(0.5, held.shapes), seed=0, provenance=STEP)
    with pytest.raises(MaskMismatchError, match=r"w has shape \(4,\), its scores \(3,\); v has"):
        select(held, Quotas.of_density(0.5, {"w": (4,), "v": ()}), seed=0, provenance=STEP)
    for density in (-0.1, 1.1, float("nan")):
        with pytest.raises(MaskError, match="expected a number from 0 to 1"):
            Quotas.of_density(density, held.shapes)
    with pytest.raises(MaskError, match="add --base"):
        Quotas.of_density(0.5, held.shapes, match="magnitude")
    with (
        open_checkpoint(save(tmp_path / "base", llama_tensors())) as base,
        pytest.raises(MaskMismatchError, match="w is not in it"),
    ):
        Quotas.of_density(0.5, held.shapes, match="magnitude", base=base)


@given(hnp.arrays(np.float32, 20, elements=floats))
def test_keys_are_in_the_order_of_the_scores(array: np.ndarray) -> None:
    keys = ordered_keys("w", array)
    assert np.array_equal(keys[:, None] < keys, array[:, None] < array)
    assert np.array_equal(keys[:, None] == keys, array[:, None] == array)
