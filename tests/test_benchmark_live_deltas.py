"""The benchmark of changes in memory measures what it says, on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training import tiny
from trimtab.training import runtime, save_delta

pytestmark = pytest.mark.train


def test_changes_of_a_tensor() -> None:
    from benchmarks.live_deltas import compare

    result = compare(1 << 14, 0.09, 1, "cpu")
    assert 9 < result["percent_that_crosses"] < 11
    moved = result["bytes_moved_per_element"]
    assert 4 < moved["find"] < 4.3
    # 4 to compare, 1 for the flags, 2 to count and to find, and more for what changed.
    assert moved["find by torch"] > 7
    assert all(seconds > 0 for seconds in result["milliseconds_per_gigabyte"].values())


def test_a_model(tmp_path: Path) -> None:
    from benchmarks.live_deltas import in_model
    from transformers import AutoModelForCausalLM

    tiny.make_base(tmp_path / "base")
    with runtime.quiet():
        tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")
        with torch.no_grad():
            tuned.model.norm.weight.mul_(1.01)
        save_delta(tuned, tmp_path / "base", tmp_path / "x.delta")
        result = in_model(str(tmp_path / "base"), str(tmp_path / "x.delta"), 1, "cpu")
    assert 0 < result["percent_to_revert"] < 1
    assert set(result["milliseconds_per_gigabyte"]) == {"load_delta", "revert", "save_delta"}
