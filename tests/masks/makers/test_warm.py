"""What moved early as scores and as a mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.measure.checkpoints import llama_tensors, save
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.masks.makers.counts import TimesScores, ever
from trimtab.masks.selection.scores import ArrayScores


def test_scores_are_the_times(tmp_path: Path) -> None:
    tensors = llama_tensors()
    times = {name: np.arange(tensor.numel()) % 5 for name, tensor in tensors.items()}
    with open_checkpoint(save(tmp_path / "base", tensors)) as base:
        scores = TimesScores(times.__getitem__, base)
        assert scores.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for name, expected in times.items():
            found = np.concatenate([*scores.chunks(name)])
            assert found.dtype == np.float32
            assert found.tolist() == expected.tolist()
        mask = ever(scores, {"step": "warm"})
    assert mask.base == scores.base
    assert mask.provenance["steps"] == [{"step": "warm"}]
    for name, expected in times.items():
        assert np.array_equal(mask.array(name).reshape(-1), expected > 0)


@pytest.mark.parametrize("shape", [(), (0, 3), (3,)])
def test_shapes_at_the_edge(shape: tuple[int, ...]) -> None:
    mask = ever(ArrayScores({"a": np.ones(shape)}), {"step": "warm"})
    assert mask.array("a").shape == shape
    assert mask.array("a").all()
