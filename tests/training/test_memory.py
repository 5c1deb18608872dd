"""The peak of one phase is not that of the phases before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trimtab.training import runtime
from trimtab.training.runtime import PeakMemory, give_back_unused

pytestmark = pytest.mark.train

MEGABYTE = 1 << 20


def fill(num_megabytes: int) -> None:
    np.ones(num_megabytes * MEGABYTE, dtype=np.uint8)


def test_each_phase_has_its_own_peak() -> None:
    cpu = torch.device("cpu")
    large = PeakMemory(cpu)
    if large._since != "the start of this phase":
        pytest.skip("this system does not let a process reset its peak")
    fill(300)
    before = large.read()
    small = PeakMemory(cpu)
    fill(50)
    after = small.read()
    assert before["num_bytes"] - after["num_bytes"] > 200 * MEGABYTE
    assert after["of"] == "resident memory"
    assert after["num_bytes"] - after["num_bytes_at_start"] > 40 * MEGABYTE


def test_where_the_peak_cannot_be_reset(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    missing = tmp_path_factory.mktemp("proc") / "none" / "file"
    monkeypatch.setattr(runtime, "CLEAR", missing)
    monkeypatch.setattr(runtime, "STATUS", missing)
    result = PeakMemory(torch.device("cpu")).read()
    assert result["since"] == "the start of the process"
    assert result["num_bytes"] > 50 * MEGABYTE


def test_memory_that_is_not_used_is_given_back() -> None:
    small = [np.ones(60_000, dtype=np.uint8) for _ in range(2_000)]  # too small to be mapped
    last = np.ones(60_000, dtype=np.uint8)  # keeps the heap from shrinking at its end
    before = PeakMemory(torch.device("cpu")).read()["num_bytes_at_start"]
    ring: list[object] = [small]
    ring.append(ring)
    del small, ring
    give_back_unused()
    after = PeakMemory(torch.device("cpu")).read()["num_bytes_at_start"]
    assert last.sum() == 60_000
    assert before - after > 80 * MEGABYTE
