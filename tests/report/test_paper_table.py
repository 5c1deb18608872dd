"""Papers in words: figures, bounds, plans, and what is said where nothing was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.papers.test_results import result, trial
from trimtab.report.paper import (
    bound_text,
    expected_text,
    figure_text,
    paper_document,
    plan_document,
    verdicts_text,
)
from trimtab.report.terminal import render_text


@pytest.mark.parametrize(
    ("value", "interval", "unit", "text"),
    [
        (0.0812, [0.07, 0.09], "share", "8.12 % [7.00, 9.00]"),
        (0.0812, None, "share", "8.12 %"),
        (0.0684, [0.0491, 0.0876], "points", "6.84 points [4.91, 8.76]"),
        (1.13, [1.1, 1.2], "factor", "1.130 [1.100, 1.200]"),
        (-0.000001, [-0.00001, 0.0], "share", ">-0.01 % [>-0.01, 0.00]"),
        (0.999999, [0.99999, 1.0], "share", ">99.99 % [>99.99, 100.00]"),
        (0.000001, None, "share", "<0.01 %"),
        (None, None, "share", "–"),
        (0.98, [0.93, 1.03], "share", "98.00 % [93.00, 100.00]"),
        (0.01, [-0.03, 0.05], "share", "1.00 % [0.00, 5.00]"),
        (-0.9, [-1.2, -0.6], "points", "-90.00 points [-100.00, -60.00]"),
        (1.02, [0.99, 1.05], "share", "102.00 % [99.00, 105.00]"),  # no share: left alone
        (0.5, [-0.1, 1.1], "factor", "0.500 [-0.100, 1.100]"),
    ],
)
def test_figures(value: float | None, interval: Any, unit: str, text: str) -> None:
    assert figure_text(value, interval, unit) == text


@pytest.mark.parametrize(
    ("bound", "unit", "text"),
    [
        ({}, "share", ""),
        ({"above": 0.685}, "share", "above 68.5 %"),
        ({"below": 1.0}, "factor", "below 1"),
        ({"within": 0.02}, "share", "within ± 2 %"),
        ({"above": -0.05}, "points", "above -5 points"),
        ({"equals": 0.7604, "digits": 0.00005}, "share", "76.04 %, as printed"),
    ],
)
def test_bounds(bound: dict[str, float], unit: str, text: str) -> None:
    assert bound_text({"bound": bound, "unit": unit, "premise": False}) == text


@pytest.mark.parametrize(
    ("verdicts", "text"),
    [
        ({"holds": 1, "does not hold": 0, "not settled": 0}, "1 holds"),
        (
            {"holds": 2, "does not hold": 1, "not settled": 1},
            "2 hold, 1 does not hold and 1 is not settled",
        ),
        (
            {"does not hold": 3, "not yet run": 2, "not testable here": 21},
            "3 do not hold, 2 are not yet run and 21 are not testable here",
        ),
        ({}, ""),
    ],
)
def test_verbs_agree_with_their_number(verdicts: dict[str, int], text: str) -> None:
    assert verdicts_text(verdicts) == text


def test_a_claim_is_told_with_theirs_ours_and_the_verdict() -> None:
    control = trial(about="control: sft", bound={}, values={"0": 0.5}, missing=["sft/seed-1"])
    text = render_text(paper_document(result(trial(), control)), console_width=120)
    assert "a (Table 1): HOLDS" in text
    assert "theirs: RL 68.5 %" in text
    assert "ours: sparsity of grpo: 91.00 % [88.52, 93.48], n = 3, asked for: above 50 %" in text
    assert "ours: control: sft: 50.00 %, n = 1 (1 run to come)" in text
    assert "1 claim: 1 holds." in text


def test_what_was_not_run_has_a_dash() -> None:
    text = render_text(paper_document(result(trial(values={}))), console_width=120)
    assert "a (Table 1): NOT YET RUN" in text and "ours: sparsity of grpo: –, n = 0" in text


def test_what_cannot_be_tested_is_named_by_reason() -> None:
    (claim,) = result().claims
    claims = tuple({**claim, "id": id, "why": "no network"} for id in "ab")
    text = render_text(paper_document(replace(result(), claims=claims)), console_width=120)
    assert text.endswith("Not testable here: no network\n  a, b")
    assert "It is sparse." not in text


def test_ours_is_every_figure_that_decides() -> None:
    def ours(*trials: dict[str, Any]) -> str:
        (numbers, *_) = paper_document(result(*trials)).tables()
        return numbers.rows[0][2]

    figure = "91.00 % [88.52, 93.48], n = 3, asked for: above 50 %"
    assert ours(trial(), trial(bound={}), trial(about="and sft")) == (
        f"sparsity of grpo: {figure}; and sft: {figure}"
    )
    assert ours() == "–"
    assert expected_text({"expected": {}, "unit": "%"}) == "–"


def plan(**more: Any) -> str:
    """The plan of a paper with two runs, one of them finished."""
    result = {
        "paper": "one-2025",
        "scale": "small",
        "seeds": [0, 1],
        "cells": {"grpo/seed-0": True, "grpo/seed-1": False},
        "minutes": 3.0,
        "num_claims": 4,
        "public": [],
        **more,
    }
    return render_text(plan_document(result), console_width=120)


def test_a_plan_says_what_is_left_and_what_it_costs() -> None:
    assert plan().splitlines() == [
        "one-2025 at scale small: 4 claims, 2 runs (seeds 0, 1), 1 finished.",
        "",
        "To train: 1 run, about 3 minutes on one CPU core, each kept as soon as it is finished:",
        "  grpo/seed-1",
    ]
    assert "about 2.5 hours" in plan(minutes=150)
    assert "about 1 minute on" in plan(minutes=0.2)


def test_a_plan_of_what_is_finished_names_nothing() -> None:
    assert plan(cells={"grpo/seed-0": True}, public=["tulu"]).splitlines() == [
        "one-2025 at scale small: 4 claims, 1 run (seeds 0, 1), 1 finished.",
        "",
        "Published checkpoints to compare: tulu.",
    ]
