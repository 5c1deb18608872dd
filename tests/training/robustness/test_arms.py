"""All sets have the same size in every tensor, and are where they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints.building import random_bits, tensors_bytes
from trimtab.checkpoints.checkpoint import Checkpoint, open_checkpoint
from trimtab.masks.mask import Mask
from trimtab.training.perturbation.noise import ARMS, arms_of

SHAPES = {"a.weight": (60, 50), "b.weight": (40,), "c.weight": (9, 9), "full.weight": (5, 5)}


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Checkpoint]:
    path = tmp_path / "model.safetensors"
    arrays = {name: random_bits(shape, seed) for seed, (name, shape) in enumerate(SHAPES.items())}
    path.write_bytes(tensors_bytes(arrays))
    with open_checkpoint(path) as checkpoint:
        yield checkpoint


@pytest.fixture
def mask() -> Mask:
    """Less than half of `a`, more than half of `b`, nothing of `c`, all of `full`."""
    rng = np.random.default_rng(0)
    shares = dict(zip(SHAPES, (0.2, 0.7, 0.0, 1.0), strict=True))
    return Mask.from_arrays(
        {name: rng.random(SHAPES[name]) < item for name, item in shares.items()}
    )


def exponents(base: Checkpoint, name: str) -> np.ndarray:
    return base.tensors[name].read() >> 7 & 0xFF


def test_every_set_is_as_large_in_every_tensor(base: Checkpoint, mask: Mask) -> None:
    arms = arms_of(mask, base, 0)
    assert tuple(arms) == ARMS
    for name in mask:
        selected = mask.num_selected(name)
        expected = min(selected, mask.num_elements(name) - selected)
        assert {arm.elements.num_selected(name) for arm in arms.values()} == {expected}
    assert arms["mask"].elements.num_selected("full.weight") == 0
    assert arms["mask"].elements.num_selected("b.weight") < mask.num_selected("b.weight")


def test_where_the_sets_are(base: Checkpoint, mask: Mask) -> None:
    arms = arms_of(mask, base, 0)
    for name in mask:
        inside = mask.array(name)
        chosen = {arm: item.elements.array(name) for arm, item in arms.items()}
        assert not (chosen["mask"] & ~inside).any()
        assert not (chosen["outside"] & inside).any()
        bins = exponents(base, name)
        ours, matched = (
            np.bincount(bins[chosen[arm]], minlength=256) for arm in ("mask", "magnitude")
        )
        assert np.array_equal(ours, matched)
    assert np.array_equal(arms["mask"].elements.array("a.weight"), mask.array("a.weight"))


def test_the_share_in_the_mask_is_counted(base: Checkpoint, mask: Mask) -> None:
    arms = arms_of(mask, base, 0)
    for arm in arms.values():
        common = sum((arm.elements.array(name) & mask.array(name)).sum() for name in mask)
        assert arm.num_in_mask == common
    assert arms["mask"].num_in_mask == arms["mask"].elements.num_selected()
    assert arms["outside"].num_in_mask == 0
    assert 0 < arms["random"].num_in_mask < arms["random"].elements.num_selected()


def test_a_seed_draws_other_sets(base: Checkpoint, mask: Mask) -> None:
    first, again, other = (arms_of(mask, base, seed) for seed in (0, 0, 1))
    for arm in ARMS:
        assert first[arm].elements == again[arm].elements
        assert first[arm].elements != other[arm].elements


def test_a_mask_that_is_nowhere_more_than_half_is_the_set_itself(base: Checkpoint) -> None:
    mask = Mask.from_arrays({"a.weight": np.arange(3000).reshape(60, 50) < 1500})
    arms = arms_of(mask, base, 7)
    assert arms["mask"].elements is mask
    assert arms["outside"].elements == mask.complement()
