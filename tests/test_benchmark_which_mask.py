"""The benchmark of masks without an earlier run: what it runs, keeps, chooses and writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks import mask_tasks, which_mask
from benchmarks.mask_tasks import TASKS, Task, as_tensors
from benchmarks.which_mask import ALL, GRADIENTS, LORA, OWN, Bench, Cell, Plan

from docs import generated_which_mask
from trimtab.training import mask_from_model, runtime

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore::FutureWarning")]

PLAN = Plan(
    ("rotate",),
    (
        *which_mask._arms("rotate", ("low-magnitude", OWN, GRADIENTS, LORA), (0.05,)),
        ("rotate", LORA, 0.005),
    ),
    {0.05: (1e-2, 3e-2), LORA: (1e-2,), OWN: (3e-3,), ALL: (1e-2, 3e-2)},
    choosing=(100,),
    reported=(0, 1),
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    runtime.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_tasks, "STEPS", 2)
        yield Bench("letters", tmp_path_factory.mktemp("letters") / "base")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    task = TASKS["rotate"]
    monkeypatch.setitem(TASKS, "rotate", Task(task.base, task.examples, 2, 4))


def test_the_questions_are_new_to_the_base(bench: Bench) -> None:
    train, heldout = bench.examples("rotate", 0)
    words = [tuple(row["input_ids"][1:5]) for row in (*train, *heldout)]
    assert len(set(words)) == len(words) == mask_tasks.NUM_TRAIN + mask_tasks.NUM_HELDOUT
    names = {"".join(mask_tasks.SYMBOLS[i] for i in word) for word in words}
    assert names.isdisjoint(mask_tasks._words(seen=True))
    ids = "".join(mask_tasks.SYMBOLS[i] for i in train[0]["input_ids"])
    assert ids[0] == "?" and ids[5] == "=" and ids[6:10] == ids[4] + ids[1:4] and ids[10] == "\n"
    assert train[0]["labels"] == [-100] * 6 + list(train[0]["input_ids"][6:])


def test_every_contestant_trains_what_it_says(bench: Bench) -> None:
    num = {
        kind: bench.run(Cell("rotate", kind, 0.05, 1e-2, 0), 1e-3)["selected"]
        for kind in ("low-magnitude", OWN, GRADIENTS, LORA, ALL)
    }
    total = bench.num_elements
    assert (
        num["low-magnitude"]
        == mask_from_model(bench.model, "low-magnitude", density=0.05).num_selected()
    )
    assert num[OWN] == num[GRADIENTS] == int(0.05 * total + 0.5) and num[ALL] == total
    assert num[LORA] == bench.rank(0.05) * bench.per_rank
    assert num[LORA] * 16 <= 18 * 0.05 * total < (num[LORA] + bench.per_rank) * 16


def test_sampled_accuracy_is_the_probability_of_the_right_answer(bench: Bench) -> None:
    import torch

    _, heldout = bench.examples("rotate", 1)
    asked = bench.ask(bench.model, heldout)
    batch = as_tensors(heldout)
    with torch.no_grad():
        chances = bench.model(batch["input_ids"]).logits.double().softmax(-1)
    expected = 0.0
    for row, chance in zip(batch["input_ids"], chances, strict=True):
        right = 1.0
        for position in range(6, 11):
            right *= float(chance[position - 1, row[position]])
        expected += right / len(heldout)
    assert asked["sampled"] == pytest.approx(expected, abs=6e-6)


def test_it_goes_on_chooses_and_writes(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Cell] = []
    results: dict[float, float] = {1e-2: 0.2, 3e-2: 0.4, 3e-3: 0.3, 1e-3: 0.1}

    def run(cell: Cell, rate_of_all: float) -> dict[str, Any]:
        assert cell.kind == ALL or rate_of_all == 3e-2
        runs.append(cell)
        return {"sampled": results[cell.rate], "greedy": 0.5, "selected": 7, "seconds": 1.5}

    monkeypatch.setattr(bench, "run", run)
    steps = which_mask.measure(bench, PLAN, tmp_path, {})
    assert not next(steps)
    assert [cell.rate for cell in next(steps)] == [1e-2, 3e-2, 3e-2, 3e-2]
    *_, done = which_mask.measure(bench, PLAN, tmp_path, {})
    assert runs == list(done) and len(runs) == 4 + 4 + 3 + 4 + 3  # none for LoRA at 0.005
    again = list(which_mask.measure(bench, PLAN, tmp_path, {}))
    assert len(runs) == 18 and again[-1] == done
    output = tmp_path / "out.json"
    output.write_text('{"sums": {"cells": [], "steps": 3}}')
    which_mask.write(output, "letters", which_mask.report(bench, PLAN, done))
    written = json.loads(output.read_text())
    assert written["sums"] == {"steps": 3, "cells": []} and len(written["letters"]["cells"]) == 18
    known = which_mask.recorded(output, "letters")
    assert list(which_mask.measure(bench, PLAN, tmp_path / "new", known))[-1].keys() == done.keys()
    assert len(runs) == 18 and which_mask.recorded(tmp_path / "none", "letters") == {}
    assert written["letters"]["cells"][0] == ["rotate", ALL, 1.0, 1e-2, 100, 0.2, 0.5, 7]


def test_the_tables_show_the_reported_seeds(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    def cells(kind: str, density: float, rate: float, values: list[float]) -> list[Any]:
        seeds = [100, 0, 1]
        return [
            ["rotate", kind, density, rate, s, v, v, 9] for s, v in zip(seeds, values, strict=True)
        ]

    part = {
        **which_mask.report(bench, PLAN, {}),
        "base": {"rotate": [0.01, 0.03]},
        "cells": [
            *cells(ALL, 1.0, 1e-3, [0.1, 0.8, 0.9]),
            *cells("random", 0.05, 1e-2, [0.09, 0.9, 0.9]),
            *cells("random", 0.05, 3e-2, [0.1, 0.7, 0.7]),
            *cells("low-magnitude", 0.05, 1e-1, [0.9, 0.9, 0.9]),
            *cells(LORA, 0.05, 1e-2, [0.9, 0.8, 0.8]),
            ["rotate", "random", 0.2, 1e-2, 0, 0.5, 0.5, 9],  # a seed is missing
        ],
    }
    report = {"letters": part}
    generated_which_mask.accuracies(report, "letters", "rotate")
    text = capsys.readouterr().out
    assert "Training everything: 85.0 [21.5, 148.5] % right, at a learning rate of 1e-3" in text
    assert "before training: 2.0 %." in text
    assert "| `random` | 70.0 (-15.0 [-78.5, +48.5])<br>at 3e-2 |" in text
    assert "| `low-magnitude` | 90.0 (+5.0 [-58.5, +68.5])<br>at 1e-1 |" in text
    assert f"<br>at 1e-2, rank {bench.rank(0.05)} |" in text and "20.00 %" not in text
    generated_which_mask.rates(report, "letters")
    assert "| 5.00 % | 30 – 100 |" in capsys.readouterr().out
    generated_which_mask.measured(report, "letters")
    assert "16 runs of 2 steps of 4 sequences" in capsys.readouterr().out
    generated_which_mask.rates(report, "sums")
    assert "Not measured yet" in capsys.readouterr().out
