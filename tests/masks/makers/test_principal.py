"""Principal elements against NumPy's SVD, and the union with small weights."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.measure.checkpoints import save
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.errors import MaskError
from trimtab.masks.makers.principal import PrincipalScores, UnionScores, safe_scores
from trimtab.masks.makers.weight_scores import low_magnitude_scores
from trimtab.masks.mask import Mask
from trimtab.masks.selection import scores
from trimtab.masks.selection.quotas import Quotas
from trimtab.masks.selection.scores import ArrayScores, Scores
from trimtab.masks.selection.top_k import select


def matrices() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"wide": (12, 40), "tall": (40, 12), "experts": (3, 10, 16), "norm": (20,)}
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**drawn, "zero": torch.zeros(5, 6), "none": torch.zeros(0, 4)}


def reconstruction(matrix: np.ndarray, rank: int) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def scored(one: Scores, name: str) -> np.ndarray:
    chunks = list(one.chunks(name))
    return np.concatenate(chunks) if chunks else np.zeros(0, np.float32)


def selected(one: Scores, density: float) -> Mask:
    quotas = Quotas.of_density(density, one.shapes)
    return select(one, quotas, seed=0, provenance={"step": "x"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scores_are_magnitudes_in_the_best_approximation(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "CHUNK_ELEMENTS", 64)
    tensors = {name: tensor.to(dtype) for name, tensor in matrices().items()}
    with open_checkpoint(save(tmp_path / "base", tensors, None)) as base:
        principal, off = (
            PrincipalScores(base, share=0.25),
            PrincipalScores(base, share=0.25, off=True),
        )
        for name, tensor in tensors.items():
            values = tensor.double().numpy()
            stack = values if values.ndim == 3 else [np.atleast_2d(values)]
            expected = [reconstruction(m, ceil(0.25 * min(m.shape))).ravel() for m in stack]
            found = scored(principal, name)
            assert np.allclose(found, np.abs(np.concatenate(expected)), atol=1e-5)
            assert np.array_equal(scored(off, name), -found)
        lengths = [len(chunk) for chunk in principal.chunks("experts")]
        assert lengths == [64] * 7 + [32]


def test_off_is_the_complement_of_on(tmp_path: Path) -> None:
    tensors = {name: matrices()[name] for name in ("wide", "tall")}
    with open_checkpoint(save(tmp_path / "base", tensors, None)) as base:
        on = selected(PrincipalScores(base, share=0.25), 0.75)
        assert selected(PrincipalScores(base, share=0.25, off=True), 0.25) == on.complement()


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_rank_that_is_none_is_refused(tmp_path: Path, share: float) -> None:
    with (
        open_checkpoint(save(tmp_path / "base", matrices(), None)) as base,
        pytest.raises(MaskError, match="expected a share above 0, at most 1"),
    ):
        PrincipalScores(base, share=share)


def test_a_union_is_of_two_masks_of_one_density(tmp_path: Path) -> None:
    tensors = {name: matrices()[name] for name in ("wide", "tall")}
    with open_checkpoint(save(tmp_path / "base", tensors, None)) as base:
        safe = safe_scores(base, share=0.25)
        low, off = low_magnitude_scores(base), PrincipalScores(base, share=0.25, off=True)
        made = selected(safe, 0.5)
        for name in tensors:
            num, size = made.num_selected(name), made.num_elements(name)
            assert num == size // 2
            # The two masks, each a little larger than before, until their union is as large.
            for each in range(size):
                tops = [np.argsort(-scored(one, name), kind="stable")[:each] for one in (low, off)]
                union = np.union1d(*tops)
                if len(union) >= num:
                    break
            # Ranks are known to the digits of bf16, so that a few at the edge may differ.
            assert len(np.setdiff1d(made.indices(name), union)) <= 0.03 * size


def test_a_union_of_exact_scores_is_exact() -> None:
    """Small integers are told apart by bf16, so that every rank is right."""
    rng = np.random.default_rng(0)
    arrays = [rng.permutation(100).astype(np.float32) for _ in range(2)]
    union = UnionScores(*(ArrayScores({"w": array}) for array in arrays))
    assert np.array_equal(scored(union, "w"), (np.maximum(*arrays) + 0.5).astype(np.float32) / 100)
