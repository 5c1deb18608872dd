"""The benchmark of 8-bit states: what it trains and keeps, and the table of its result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks import mask_tasks, state_forms
from benchmarks.mask_tasks import TASKS, Task
from benchmarks.state_forms import DEFAULT, FORMS, Plan
from benchmarks.which_mask import Bench

from docs import generated_optimizer
from trimtab.training import runtime

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore::FutureWarning")]

PLAN = Plan(("rotate",), (0.05,), (1e-2, 3e-2), (100,), (0, 1))


def test_every_seed_is_trained_in_each_form_at_one_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime.start()
    monkeypatch.setattr(mask_tasks, "STEPS", 2)
    task = TASKS["rotate"]
    monkeypatch.setitem(TASKS, "rotate", Task(task.base, task.examples, 2, 4))
    bench = Bench("letters", tmp_path / "base", dtype="bfloat16")
    assert {p.dtype for p in bench.model.parameters()} == {torch.bfloat16}
    (reported,) = state_forms.measure(bench, PLAN, tmp_path)
    assert [(form, cell.seed) for form, cell, _ in reported] == [
        (form, seed) for seed in (0, 1) for form in FORMS
    ]
    assert len({cell.rate for _, cell, _ in reported}) == 1
    lines = (tmp_path / "cells.jsonl").read_text().splitlines()
    assert len(lines) == 2 + 2 * len(FORMS)  # two rates for the default
    (again,) = state_forms.measure(bench, PLAN, tmp_path)
    assert again == reported
    assert len((tmp_path / "cells.jsonl").read_text().splitlines()) == len(lines)
    cells = [
        [form, c.task, c.density, c.rate, c.seed, result["sampled"], result["greedy"]]
        for form, c, result in reported
    ]
    capsys.readouterr()
    generated_optimizer.learning(json.loads(json.dumps({"letters": {"cells": cells}})))
    head, _, line, *_ = capsys.readouterr().out.splitlines()
    assert DEFAULT in head
    assert "`rotate`, 5%" in line
    assert line.count("[") == len(FORMS)
