"""The text at the end of a demo."""

from __future__ import annotations

from typing import Any

import pytest

from tests.report.factory import make_comparison, make_demo
from trimtab.measure.compare_result import Comparison
from trimtab.report.demo import demo_document
from trimtab.report.terminal import render_text

LABELS = ("grpo", "sft")


def text_of_demo(*parts: Any, **how: Any) -> str:
    return render_text(demo_document(*parts), **how)


def arms() -> dict[str, Comparison]:
    return {label: make_comparison(num_layers=2, seed=seed) for seed, label in enumerate(LABELS)}


@pytest.mark.parametrize("width", [60, 120])
def test_every_score_and_sparsity_is_there(width: int) -> None:
    demo, comparisons = make_demo(), arms()
    text = text_of_demo(demo, comparisons, console_width=width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "(criterion: bits)" in text
    for label, comparison in comparisons.items():
        assert f"after {label}" in text
        assert set(comparison.by_kind()) <= {line.split()[0] for line in text.splitlines() if line}
    for word in demo["model_note"].split():
        assert word in text


def test_intervals_are_those_of_the_record_and_say_what_they_are() -> None:
    demo, comparisons = make_demo(), arms()
    demo["before"]["accuracy_sampled"] = {"correct": 84, "total": 256, "interval": [0.22, 0.45]}
    text = text_of_demo(demo, comparisons, console_width=100)
    assert "32.8 % [22.0, 45.0]" in text
    assert "Held-out accuracy [95 % interval]\n" in text
