"""Small and large weights, against sorting; and no preference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.measure.checkpoints import llama_tensors, save
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.masks.makers.weight_scores import (
    high_magnitude_scores,
    low_magnitude_scores,
    no_preference,
)
from trimtab.masks.mask import Mask
from trimtab.masks.selection.quotas import Quotas
from trimtab.masks.selection.top_k import select


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_smallest_and_the_largest_are_selected(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = llama_tensors(dtype=dtype)
    with open_checkpoint(save(tmp_path / "base", tensors)) as base:
        for make, sign in ((low_magnitude_scores, 1), (high_magnitude_scores, -1)):
            scores = make(base)
            quotas = Quotas.of_density(0.3, scores.shapes)
            mask = select(scores, quotas, seed=0, provenance={"step": "x"})
            for name, tensor in tensors.items():
                size = sign * tensor.float().abs().numpy()
                chosen = mask.array(name)
                assert chosen.sum() == int(0.3 * size.size + 0.5)
                assert size[chosen].max() <= size[~chosen].min()


def test_no_preference_is_the_random_control(tmp_path: Path) -> None:
    tensors = llama_tensors()
    rng = np.random.default_rng(0)
    mask = Mask.from_arrays({name: rng.random(t.shape) < 0.2 for name, t in tensors.items()})
    with open_checkpoint(save(tmp_path / "base", tensors)) as base:
        scores = no_preference(base)
        made = select(scores, Quotas.like(mask, scores.shapes), seed=5, provenance={"step": "x"})
    assert made == mask.random_like(5)
