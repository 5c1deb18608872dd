"""The text of a sweep: its plan and its table, drawn from plain data."""

from __future__ import annotations

from typing import Any

from trimtab.report.sweep import plan_document, sweep_document
from trimtab.report.terminal import render_text


def row(cell: str, **known: Any) -> dict[str, Any]:
    names = (
        *("error", "criterion", "saved_dtype", "num_elements", "num_changed", "num_steps"),
        *("loss_last", "reward_last", "num_questions", "num_right", "seconds_train"),
    )
    return {
        **dict.fromkeys(names),
        "cell": cell,
        "arm": cell.partition(",")[0],
        "status": "finished",
        "peak_learning_rate": 1e-6,
        **known,
    }


def finished(cell: str, num_changed: int, **known: Any) -> dict[str, Any]:
    return row(
        cell,
        criterion="bits",
        saved_dtype="BF16",
        num_elements=10_000_000,
        num_changed=num_changed,
        num_steps=20,
        loss_last=1.23456,
        seconds_train=1234.5,
        **known,
    )


def mean(value: float, half: float | None, n: int = 2) -> dict[str, Any]:
    ends = (None, None) if half is None else (value - half, value + half)
    return {"n": n, "mean": value, "low": ends[0], "high": ends[1], "least": value, "most": value}


def arm(name: str, **known: Any) -> dict[str, Any]:
    metrics = dict.fromkeys(("sparsity", "loss_last", "reward_last", "accuracy"))
    return {"arm": name, "num_cells": 2, "num_finished": 2, **metrics, **known}


def test_table() -> None:
    table = {
        "confidence": 0.95,
        "cells": [
            finished("a,seed=0", 1, num_questions=8, num_right=3),
            finished("a,seed=1", 2_500_000, num_questions=8, num_right=4),
            row("b,seed=0", status="failed", error="no \x1b[1m good", peak_learning_rate=0.1),
        ],
        "arms": [
            arm("a", sparsity=mean(0.87499995, 0.1), accuracy=mean(0.4375, None)),
            arm("b", num_cells=1, num_finished=0),
        ],
    }
    assert render_text(sweep_document(table), console_width=100).splitlines() == [
        "Unchanged by bits, in the dtype that was saved",
        "cell      unchanged   saved  learning rate  steps   loss  right  seconds",
        "a,seed=0   >99.99 %    BF16          1e-06     20  1.235    3/8    1,234",
        "a,seed=1    75.00 %    BF16          1e-06     20  1.235    4/8    1,234",
        "b,seed=0          –  failed            0.1      –      –      –        –",
        "",
        "Over seeds: mean [95 % t-interval, of shares cut at 0 and 100 %]",
        "arm    n               unchanged  accuracy",
        "a    2/2  87.50 % [77.50, 97.50]   43.75 %",
        "b    0/1                       –         –",
        "",
        "1 cell failed",
        "b,seed=0: no \\x1b[1m good",
    ]


def test_narrow_table_keeps_the_figure() -> None:
    cells = [finished("a", 5)]
    document = sweep_document({"confidence": 0.95, "cells": cells, "arms": [arm("a")]})
    text, narrow = render_text(document), render_text(document, console_width=50)
    assert "Over seeds" not in text  # each arm is one cell
    assert "seconds" not in narrow
    assert ">99.99 %" in narrow


def difference(setting: str, why: str, **values: list[str]) -> dict[str, Any]:
    one = [] if why == "run file" else ["factors.steps"]
    known = [{"value": value, "cells": cells} for value, cells in values.items()]
    return {"setting": setting, "why": why, "of": one, "values": known}


def test_plan() -> None:
    work = {"sequences": 4, "tokens": 1234, "is_bound": True}
    plan = {
        "cells": [
            {"name": "a", "arm": "a", "is_finished": True},
            {"name": "b\x1b", "arm": "b", "is_finished": False},
        ],
        "differences": [
            difference("trainer.max_steps", "asked", x=["a"], y=["b"]),
            difference("trainer.long", "consequence", **{"z" * 99: ["a"], "0": ["b"]}),
            difference("trainer.only_in_a", "run file", x=["a"]),
        ],
        "matched": {
            "learning_rate": {"why": "equal", "of": [], "values": [{"value": 1e-6}]},
            "steps": {
                "why": "consequence",
                "of": ["factors.steps"],
                "values": [{"value": {"steps": 2000}}, {"value": {"epochs": 1.0}}],
            },
            "work_of_a_step": {"why": "run file", "of": [], "values": [{"value": work}]},
        },
    }
    assert render_text(plan_document(plan)).splitlines() == [
        "2 cells in 2 arms, 1 finished.",
        "  a  (finished)",
        "  b\\x1b",
        "",
        "Asked for",
        "  trainer.max_steps  x (1 cell); y (1 cell)  [steps]",
        "",
        "Follows from it",
        f"  trainer.long  {'z' * 39}… (1 cell); 0 (1 cell)  [steps]",
        "",
        "Not asked for: the run files differ in it",
        "  and 1 setting that only some of the algorithms have",
        "",
        "Matched",
        "  learning rate    1e-06 in every cell",
        "  steps            follows from steps: 2,000; 1 epochs of the data",
        "  tokens per step  DIFFERENT, and not asked for: at most about 1,234 in 4 sequences",
    ]
