"""Elements within reach of a step, against adding the step to every one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.measure.checkpoints import llama_tensors, save
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.elements.absorption import adam_displacement_bound
from trimtab.errors import MaskError
from trimtab.masks.makers.absorption import absorption_distance, absorption_mask, absorption_scores
from trimtab.masks.selection.quotas import Quotas
from trimtab.masks.selection.top_k import select


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("lr", [1e-9, 1e-5, 3e-4])
def test_what_a_step_can_change(tmp_path: Path, dtype: torch.dtype, lr: float) -> None:
    tensors = llama_tensors(dtype=dtype)
    step = {"step": "absorption", "lr": lr}
    with open_checkpoint(save(tmp_path / "base", tensors)) as base:
        mask = absorption_mask(base, lr, provenance=step)
    for name, tensor in tensors.items():
        exact = tensor.double()  # a sum of two such numbers is rounded once
        moved = [(exact + sign * lr).to(dtype).double() != exact for sign in (-1, 1)]
        assert np.array_equal(mask.array(name), (moved[0] | moved[1]).numpy())
    assert mask.provenance["steps"] == [{**step, "distance": lr}]
    assert mask.base.keys() == tensors.keys()


def test_with_a_size_the_easiest_come_first(tmp_path: Path) -> None:
    tensors = llama_tensors()
    with open_checkpoint(save(tmp_path / "base", tensors)) as base:
        reached = absorption_mask(base, 2e-5, provenance={})
        scores = absorption_scores(base)
        sized = select(scores, Quotas.like(reached, scores.shapes), seed=0, provenance={})
        # A tie that rounds back is one fp64 step farther, which fp32 does not tell apart.
        for name in tensors:
            reach = np.concatenate(list(scores.chunks(name)))
            found, expected = (reach[m.array(name).ravel()] for m in (sized, reached))
            assert sorted(found.tolist()) == sorted(expected.tolist())


def test_distances() -> None:
    assert absorption_distance(1e-6) == 1e-6
    assert absorption_distance(1e-6, 20) == 1e-6 * adam_displacement_bound(20, (0.9, 0.999))
    for lr in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(MaskError, match="expected a finite number above 0"):
            absorption_distance(lr)
    with pytest.raises(MaskError, match="0 steps: expected 1 or more"):
        absorption_distance(1e-6, 0)
