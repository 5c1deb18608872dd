"""The benchmark of the tracker measures tracked steps beside others, and its page shows them."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks import tracker

from docs import generated_tracker

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]

TINY = tracker.SMOLLM2 | {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    result = {
        "date": "2026-11-21",
        "trimtab_version": "0",
        "torch_version": "0",
        "processor": "none",
        "processors": 1,
        "load_before": 0.0,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracker, "SMOLLM2", TINY)
        times = {name: tracker.time_pairs(name, 2) for name in tracker.TRAININGS}
    peaks = {"peak": 3_000_000, "at rest": 1_000_000}
    memory = {name: {"plain": peaks, "tracked": peaks, "extra": peaks} for name in times}
    return {
        "sequences": 32,
        "tokens": 20,
        "speed": {"provenance": result, "rounds": 2, "threads": 1, "by_training": times},
        "memory": {"provenance": result, "processes": 3, "by_training": memory},
    }


def test_steps_are_tracked(report: dict[str, Any]) -> None:
    dense, masked = report["speed"]["by_training"].values()
    for one in (dense, masked):
        assert one["bytes of the base"] == 2 * one["num_elements"]
        assert one["point"] > 0
        assert one["gradients"] > 0
        assert one["tracker / step"] > 0
        assert one["bytes of a point"] > 100
    assert 0 < masked["stepped"] < dense["stepped"]
    assert masked["changed"] < tracker.DENSITY < dense["changed"]


@pytest.mark.parametrize("section", ["targets", "speed", "memory", "measured"])
def test_the_page(report: dict[str, Any], section: str, capsys: Any) -> None:
    getattr(generated_tracker, section)(report)
    shown = capsys.readouterr().out
    assert {
        "targets": "| ≤ 400 MB | 3.0 MB | yes |",
        "speed": "| a step, not tracked |",
        "memory": "| AdamW, fp32 weights | 3.0 MB | 3.0 MB | 3.0 MB | 1.0 MB |",
        "measured": "32 sequences of 20 tokens a step; 2 pairs of steps.",
    }[section] in shown
    getattr(generated_tracker, section)(None)
    assert not capsys.readouterr().out
