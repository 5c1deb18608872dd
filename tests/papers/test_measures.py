"""Figures, from files small enough to count by hand."""

from __future__ import annotations

from inspect import signature
from math import log
from typing import Any

import pytest

from trimtab.errors import SettingsError
from trimtab.papers.measures import MEASURES


def read(measure: str, data: Any, **settings: Any) -> float:
    """A figure."""
    return MEASURES[measure].read(data, **settings)


def group(num_elements: int, **num_changed: int) -> dict[str, Any]:
    """Counts by criterion."""
    return {"num_elements": num_elements, "num_changed": num_changed}


COMPARISON = {
    "total": group(100, bits=40, **{"atol=1e-05": 10}),
    "by_kind": {"norm": group(10, bits=1)},
    "by_layer": {"0": group(20, bits=4), "1": group(20, bits=10), "outside": group(60, bits=60)},
    "rank": {"summary": {"matrix_rank": {"mean": 0.99, "random_mean": 1.0}}},
    "geometry": {"summary": {"principal_mask": {"share": 0.4, "chance": 0.5, "lift": 0.8}}},
}


def point(changed: int, stepped: int, ever: int) -> dict[str, Any]:
    """Counts of a step."""
    one = {"num_elements": 1000, "changed": changed, "stepped": stepped, "ever": ever}
    return {"total": {**one, "returned": ever - changed}}


COUNTS = ((40, 40, 40), (60, 30, 65), (70, 20, 80), (75, 10, 100))
TRAJECTORY = {"points": [{"step": step, **point(*of)} for step, of in enumerate(COUNTS, start=1)]}


def model(greedy: float, sampled: float) -> dict[str, Any]:
    """What a model answered."""
    return {"answers": {"greedy_accuracy": greedy, "sampled_accuracy": sampled}}


EVALUATION = {
    "questions": {"majority_baseline": {"accuracy": 0.125}},
    "models": [model(0.25, 0.2), model(0.75, 0.5)],
    "by_level": [
        {"level": level, "models": [{}, {"greedy_accuracy": 1.0, "sampled_accuracy": accuracy}]}
        for level, accuracy in ((1, 0.9), (2, 0.2))
    ],
}

INSIDE = {
    "num_elements": 50,
    "num_sub_equal": {"bits": 40},
    "num_base_equal": {"bits": 0},
    "relative_l2": 0.3,
    "cosine": 0.9,
}
IDENTITY = {"total": {"inside": INSIDE, "all": {**INSIDE, "num_elements": 80}}}

OVERLAP = {
    "total": {
        "o1": 0.6,
        "nulls": {"independent": {"lift": 8.0}, "magnitude-matched": {"lift": 2.0}},
    }
}

RESULT = {
    "history": [
        {"step": 1, "reward": 0.2, "grad_norm": 2.0, "trimtab/gradient_density": 1.0},
        {"step": 2, "reward": 0.8, "grad_norm": 1.0, "trimtab/gradient_density": 0.5},
        {"step": 3, "reward": 0.9, "grad_norm": 0.0, "trimtab/gradient_density": 0.0},
    ]
}


@pytest.mark.parametrize(
    ("measure", "data", "settings", "figure"),
    [
        ("sparsity", COMPARISON, {}, 0.6),
        ("sparsity", COMPARISON, {"criterion": "atol=1e-05"}, 0.9),
        ("sparsity", COMPARISON, {"kind": "norm"}, 0.9),
        ("tolerance-gain", COMPARISON, {"wide": "atol=1e-05", "narrow": "bits"}, 0.3),
        ("layer-spread", COMPARISON, {}, 0.3),
        ("norm-excess", COMPARISON, {}, 0.3),
        ("rank", COMPARISON, {"figure": "matrix_rank"}, 0.99),
        ("rank", COMPARISON, {"figure": "matrix_rank", "of": "random_mean"}, 1.0),
        ("geometry", COMPARISON, {"figure": "principal_mask"}, 0.8),
        ("accuracy", EVALUATION, {}, 0.75),
        ("accuracy", EVALUATION, {"answers": "sampled"}, 0.5),
        ("accuracy", EVALUATION, {"answers": "sampled", "level": 2}, 0.2),
        ("level-gap", EVALUATION, {"hard": 2, "easy": 1}, -0.7),
        ("gain", EVALUATION, {}, 0.5),
        ("above-majority", EVALUATION, {}, 0.625),
        ("equal", IDENTITY, {}, 0.5),
        ("equal", IDENTITY, {"part": "inside"}, 0.8),
        ("equal", IDENTITY, {"part": "inside", "to": "base"}, 0.0),
        ("relative-l2", IDENTITY, {}, 0.3),
        ("cosine", IDENTITY, {}, 0.9),
        ("untouched", TRAJECTORY, {}, 0.9),
        ("cancelled", TRAJECTORY, {}, 0.025),
        ("cancelled", TRAJECTORY, {"of": "ever"}, 0.25),
        ("effective", TRAJECTORY, {}, 0.075),
        ("stepped", TRAJECTORY, {}, 0.025),
        ("sparsity-at", TRAJECTORY, {"step": 2}, 0.94),
        ("reward-at", RESULT, {"step": 2, "over": 2}, 0.5),
        ("reward-at", RESULT, {"step": 3, "over": 1}, 0.9),
        ("flattening", TRAJECTORY, {}, 5 / 40),
        ("gradient-density", RESULT, {}, 0.75),
        ("overlap", OVERLAP, {}, 8.0),
        ("overlap", OVERLAP, {"null": "magnitude-matched"}, 2.0),
        ("overlap", OVERLAP, {"figure": "o1"}, 0.6),
        ("overlap", OVERLAP, {"figure": "explained"}, log(4) / log(8)),
    ],
)
def test_figures(measure: str, data: Any, settings: dict[str, Any], figure: float) -> None:
    assert read(measure, data, **settings) == pytest.approx(figure)
    assert settings.keys() <= set(MEASURES[measure].settings)


def test_a_level_that_was_not_asked() -> None:
    with pytest.raises(SettingsError, match="no level 3"):
        read("accuracy", EVALUATION, level=3)


@pytest.mark.parametrize("name", MEASURES)
def test_words_know_the_settings_of_their_measure(name: str) -> None:
    """The same names, in the same order; the defaults are those of what is read."""
    data, *settings = signature(MEASURES[name].read).parameters
    assert data == "data"
    assert list(signature(MEASURES[name].words).parameters) == settings
