"""Wanda's choice against a loop over rows and elements."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.checkpoints.building import random_bits, tensors_bytes
from trimtab.checkpoints import stream
from trimtab.checkpoints.checkpoint import Checkpoint, open_checkpoint
from trimtab.errors import CheckpointError, MaskError
from trimtab.masks.pruning import matrices_of
from trimtab.masks.wanda import InputNorms, kept_by_wanda, lowest_of_rows

UP, DOWN = (f"model.layers.0.mlp.{kind}_proj.weight" for kind in ("up", "down"))
SHAPES = {UP: (24, 17), DOWN: (17, 24)}


def finite_bits(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """bf16 elements with few exponents, so that many scores tie, and some zeros of either sign."""
    bits = random_bits(shape, seed) & 0x80C0 | 0x3F00
    bits[np.random.default_rng(seed).random(shape) < 0.1] &= 0x8000
    return bits


def values(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Checkpoint]:
    arrays = {name: finite_bits(shape, seed) for seed, (name, shape) in enumerate(SHAPES.items())}
    arrays["model.norm.weight"] = finite_bits((17,), 9)
    path = tmp_path / "model.safetensors"
    path.write_bytes(tensors_bytes(arrays))
    with open_checkpoint(path) as checkpoint:
        yield checkpoint


def norms_of(base: Checkpoint, seed: int = 0) -> InputNorms:
    rng = np.random.default_rng(seed)
    vectors = {
        name: rng.integers(0, 4, shape[1]).astype(np.float32) for name, shape in SHAPES.items()
    }
    return InputNorms(vectors, {"read": "nothing"})


def kept_by_hand(weights: np.ndarray, norms: np.ndarray, num: int) -> np.ndarray:
    """Sort the scores of a row, the first first among equals, and prune so many."""
    kept = np.ones(weights.shape, dtype=np.bool_)
    for row, tensor in enumerate(weights):
        scores = [
            (abs(float(w)) * float(n), place)
            for place, (w, n) in enumerate(zip(tensor, norms, strict=True))
        ]
        for _, place in sorted(scores)[:num]:
            kept[row, place] = False
    return kept


@pytest.mark.parametrize(("sparsity", "nums"), [(0.5, (8, 12)), (0.3, (5, 7)), (0, (0, 0))])
@pytest.mark.parametrize("chunk", [1 << 19, 16, 8])
def test_as_a_loop_chooses(
    base: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    sparsity: float,
    nums: tuple[int, int],
    chunk: int,
) -> None:
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", chunk)  # rows are cut by chunks
    norms = norms_of(base)
    mask = kept_by_wanda(base, matrices_of(base), sparsity, norms)
    assert mask.names == (UP, DOWN)
    for name, num in zip(SHAPES, nums, strict=True):
        weights = values(base.tensors[name].read())
        assert np.array_equal(mask.array(name), kept_by_hand(weights, norms.vectors[name], num))
        assert mask.base[name].dtype == "BF16"


def test_all_can_go(base: Checkpoint) -> None:
    assert not kept_by_wanda(base, matrices_of(base), 1.0, norms_of(base)).num_selected()


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
               elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, float("inf")])),
    st.data(),
)  # fmt: skip
def test_exactly_so_many_of_each_row_and_the_first_of_equals(
    scores: np.ndarray, data: st.DataObject
) -> None:
    num = data.draw(st.integers(0, scores.shape[1]))
    lowest = lowest_of_rows(scores, num)
    expected = np.zeros_like(lowest)
    order = np.argsort(scores, axis=1, kind="stable")[:, :num]
    np.put_along_axis(expected, order, True, axis=1)
    assert np.array_equal(lowest, expected)


def test_a_weight_that_is_not_finite(tmp_path: Path) -> None:
    bits = finite_bits((24, 17), 0)
    bits[3, 3] = 0x7F80  # infinity, times a norm of 0
    path = tmp_path / "model.safetensors"
    path.write_bytes(tensors_bytes({UP: bits}))
    norms = InputNorms({UP: np.zeros(17, np.float32)})
    with open_checkpoint(path) as base, pytest.raises(MaskError, match=f"{UP} has scores that are"):
        kept_by_wanda(base, matrices_of(base), 0.5, norms)


def test_gpt2_stores_its_matrices_the_other_way_round(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(tensors_bytes({"transformer.h.0.mlp.c_fc.weight": finite_bits((4, 4), 0)}))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with (
        open_checkpoint(path) as base,
        pytest.raises(CheckpointError, match=r"\[inputs, outputs\], whose rows are no outputs"),
    ):
        kept_by_wanda(base, matrices_of(base), 0.5, InputNorms({}))


def test_a_stack_of_experts_has_no_one_input(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.down_proj"
    path = tmp_path / "model.safetensors"
    path.write_bytes(tensors_bytes({name: finite_bits((2, 4, 4), 0)}))
    with open_checkpoint(path) as base, pytest.raises(CheckpointError, match="several matrices"):
        kept_by_wanda(base, matrices_of(base), 0.5, InputNorms({}))
