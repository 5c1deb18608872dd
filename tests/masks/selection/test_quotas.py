"""How many to select where: by density to whole elements, and like another mask exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.masks.masks import SHAPES, example_mask
from tests.measure.checkpoints import Tensors, llama_tensors, moved, save
from trimtab.checkpoints import weights
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.elements.dtypes import DTYPES, exponent_bins
from trimtab.errors import MaskMismatchError
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.masks.selection import quotas
from trimtab.masks.selection.quotas import MATCHES, Quotas

BF16 = DTYPES["BF16"]


def bins_of(tensor: torch.Tensor) -> np.ndarray:
    return exponent_bins(tensor.view(torch.int16).numpy().view(np.uint16), BF16)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Tensors, Mask]:
    tensors = llama_tensors()
    folder = save(tmp_path / "base", tensors)
    return folder, tensors, extract_mask(folder, save(tmp_path / "tuned", moved(tensors)))


@given(st.floats(0, 1), st.sampled_from(["total", "tensor"]))
def test_densities_are_rounded_once(density: float, match: quotas.Match) -> None:
    found = Quotas.of_density(density, SHAPES, match=match)
    assert len(found.groups) == (1 if match == "total" else len(SHAPES))
    assert [name for group in found.groups for name in group.names] == list(SHAPES)
    for group in found.groups:
        (size,), (num,) = group.sizes, group.nums
        assert size == sum(int(np.prod(SHAPES[name])) for name in group.names)
        assert abs(num - density * size) <= 0.5
    assert found.num_selected == sum(int(group.nums.sum()) for group in found.groups)


@pytest.mark.parametrize("density", [0.0, 0.07, 1 / 3, 1.0])
def test_every_bin_has_the_density(saved: tuple[Path, Tensors, Mask], density: float) -> None:
    folder, tensors, _ = saved
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with open_checkpoint(folder) as base:
        found = Quotas.of_density(density, shapes, match="magnitude", base=base)
    for group in found.groups:
        sizes = np.bincount(bins_of(tensors[group.name]).ravel(), minlength=256)
        assert np.array_equal(group.sizes, sizes)
        assert np.abs(group.nums - density * sizes).max() < 1
        assert group.nums.sum() == int(density * sizes.sum() + 0.5)
    assert found.origin == {"match": "magnitude", "density": density}


@pytest.mark.parametrize("match", MATCHES)
def test_like_a_mask(saved: tuple[Path, Tensors, Mask], match: quotas.Match) -> None:
    folder, tensors, mask = saved
    with open_checkpoint(folder) as base:
        found = Quotas.like(mask, match=match, base=base)
    assert found.num_selected == mask.num_selected()
    assert found.origin == {"match": match, "like": mask.digest}
    for group in found.groups:
        if match == "magnitude":
            chosen = bins_of(tensors[group.name])[mask.array(group.name)]
            assert np.array_equal(group.nums, np.bincount(chosen, minlength=256))
        else:
            assert group.nums == sum(mask.num_selected(name) for name in group.names)
    assert (found.base is base) == (match == "magnitude")


def test_strata_are_the_bins(
    saved: tuple[Path, Tensors, Mask], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tensors, mask = saved
    for module in (quotas, weights):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", 64)
    name = "model.layers.0.self_attn.k_proj.weight"
    with open_checkpoint(folder) as base:
        by_bin = Quotas.like(mask, match="magnitude", base=base)
        chunks = list(by_bin.strata(name))
    assert [len(chunk) for chunk in chunks] == [64] * 8
    assert np.array_equal(np.concatenate(chunks), bins_of(tensors[name]).ravel())
    whole = np.concatenate(list(Quotas.like(mask).strata(name)))
    assert np.array_equal(whole, np.zeros(512))


def test_tensors_that_cannot_be_selected_from_are_left_out_only_when_empty() -> None:
    mask = example_mask()
    empty = Mask.from_arrays({**{n: mask.array(n) for n in mask}, "more": np.zeros(3, np.bool_)})
    assert "more" not in Quotas.like(empty, SHAPES).shapes
    few = {name: SHAPES[name] for name in ("model.norm.weight", "scalar", "nothing")}
    with pytest.raises(MaskMismatchError, match=r"model.embed_tokens.weight is not in the model"):
        Quotas.like(mask, few)


def test_another_base_is_refused(saved: tuple[Path, Tensors, Mask], tmp_path: Path) -> None:
    _, _, mask = saved
    with (
        open_checkpoint(tmp_path / "tuned") as tuned,
        pytest.raises(MaskMismatchError, match="has the digest"),
    ):
        Quotas.like(mask, match="magnitude", base=tuned)


def test_bins_are_counted_with_a_mask_or_without(saved: tuple[Path, Tensors, Mask]) -> None:
    folder, tensors, mask = saved
    name = "model.norm.weight"
    shapes = {name: (32,)}
    with open_checkpoint(folder) as base:
        only = mask.restrict(tensors=[name])
        like = Quotas.like(only, shapes, match="magnitude", base=base)
        none = Quotas.of_density(0, shapes, match="magnitude", base=base)
    bins = bins_of(tensors[name])
    assert np.array_equal(like.groups[0].sizes, np.bincount(bins, minlength=256))
    assert np.array_equal(like.groups[0].nums, np.bincount(bins[mask.array(name)], minlength=256))
    assert np.array_equal(none.groups[0].sizes, like.groups[0].sizes)
    assert not none.groups[0].nums.any()
    assert like.digests == {name: mask.base[name].digest}
