"""The benchmark of swaps makes each swap it times, and its page shows all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training import tiny

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]


def test_every_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from benchmarks.swap import measure
    from transformers import AutoModelForCausalLM

    from docs import generated_deltas
    from trimtab.training import runtime

    tiny.make_base(tmp_path / "base")
    folders = [str(tmp_path / name) for name in ("one", "two")]
    with runtime.quiet():
        for scale, folder in zip((1.01, 0.99), folders, strict=True):
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(scale)
            model.save_pretrained(folder)
        report = measure(str(tmp_path / "base"), folders, threads=1, rounds=1)
    ways = report["ways"]
    assert all(way["milliseconds_per_gigabyte"] > 0 for way in ways.values())
    assert ways["checkpoints in memory"]["percent_in_memory"] == 100
    assert ways["checkpoint files"]["percent_in_memory"] == 0
    assert 0 < ways["changes in memory"]["percent_in_memory"] < 110
    assert 0 < report["percent_of_base_changed_by_merging"] < 100
    provenance = {"date": "2026-11-29", "processor": "none", "processors": 1, "load_before": 0.0}
    versions = {f"{name}_version": "0" for name in ("trimtab", "torch", "peft")}
    generated_deltas.swaps({**report, "provenance": provenance | versions})
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed.replace("**", "") for name in ways)
