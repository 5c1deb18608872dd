"""The result: levels, differences, round trip, and files that are no such result."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.training.evaluation.results import make_evaluation
from trimtab.errors import ResultFormatError
from trimtab.results.answers import answers_difference
from trimtab.results.evaluation import Evaluation


def test_levels_are_in_their_order_and_add_up() -> None:
    evaluation = make_evaluation(levels=(10, 2, "hard", 2, 10, "easy"))
    data = evaluation.to_dict()
    assert [row["level"] for row in data["by_level"]] == [2, 10, "easy", "hard"]
    assert [row["num_questions"] for row in data["by_level"]] == [2, 2, 1, 1]
    assert evaluation.questions is not None
    places = evaluation.questions.indices_by_level()
    for row in data["by_level"]:
        for model, entry in zip(evaluation.models, row["models"], strict=True):
            assert model.answers is not None
            right = [model.answers.answers[place].correct for place in places[row["level"]]]
            assert entry["num_greedy_correct"] == sum(right)
            assert entry["num_questions"] == len(right)
    for place, model in enumerate(data["models"]):
        by_level = (row["models"][place]["num_greedy_correct"] for row in data["by_level"])
        assert sum(by_level) == model["answers"]["num_greedy_correct"]


def test_everything_is_set_against_the_first_model() -> None:
    evaluation = make_evaluation(levels=(1, 1, 1, 2, 2, 2))
    data = evaluation.to_dict()
    first, second = (model.answers for model in evaluation.models)
    assert first is not None
    assert second is not None
    assert data["models"][0]["difference"] is None
    assert data["models"][1]["difference"] == answers_difference(first, second)
    of_level = data["by_level"][1]["models"]
    assert of_level[0]["difference"] is None
    expected = answers_difference(first.subset([3, 4, 5]), second.subset([3, 4, 5]))
    assert of_level[1]["difference"] == expected


def test_the_baseline_is_of_the_questions_that_it_stands_beside() -> None:
    data = make_evaluation(levels=(1, 1, 1, 2, 2, 2)).to_dict()
    # The answers are a, a, b, b, b, c.
    assert data["questions"]["majority_baseline"]["answer"] == "b"
    assert data["questions"]["majority_baseline"]["num_correct"] == 3
    assert [row["majority_baseline"]["answer"] for row in data["by_level"]] == ["a", "b"]


def test_without_written_answers_there_is_no_baseline() -> None:
    evaluation = make_evaluation()
    assert evaluation.questions is not None
    first, *others = evaluation.questions.rows
    asked = replace(evaluation.questions, rows=(replace(first, answer=None), *others))
    assert replace(evaluation, questions=asked).to_dict()["questions"]["majority_baseline"] is None


@pytest.mark.parametrize("levels", [None, (1, 1, 2, 2, 3, 3)])
@pytest.mark.parametrize("num_samples", [0, 4])
def test_round_trip_through_json(levels: tuple[Any, ...] | None, num_samples: int) -> None:
    evaluation = make_evaluation(levels=levels, num_samples=num_samples)
    data = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    again = Evaluation.from_dict(data)
    assert again == evaluation
    assert again.to_dict() == data


def test_figures_in_a_file_are_not_believed() -> None:
    data = make_evaluation().to_dict()
    data["models"][0]["answers"]["greedy_accuracy"] = 1.0
    data["models"][1]["forgetting"]["kl"] = 0.0
    assert Evaluation.from_dict(data).to_dict() == make_evaluation().to_dict()


@pytest.mark.parametrize("data", [None, [], {}, {"format": "trimtab.comparison"}])
def test_other_things_are_no_evaluation(data: Any) -> None:
    with pytest.raises(ResultFormatError, match="not a trimtab evaluation"):
        Evaluation.from_dict(data)


def test_another_version() -> None:
    data = make_evaluation().to_dict() | {"format_version": 2}
    with pytest.raises(ResultFormatError, match="version 2: this trimtab reads version 1"):
        Evaluation.from_dict(data)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("models",), []),
        (("models", 0, "answers"), None),
        (("models", 0, "answers", "answers"), []),
        (("models", 0, "answers", "num_samples"), "many"),
        (("models", 1, "forgetting"), None),
        (("models", 1, "forgetting", "passages"), []),
        (("models", 1, "suites"), {}),
        (("models", 1, "suites", "arc_easy", "metrics", "acc", "value"), "high"),
        (("models", 1, "checkpoint", "id"), "base"),
        (("models", 1, "checkpoint", "id"), 5),
        (("models", 1, "checkpoint"), {}),
        (("questions",), None),
        (("questions", "rows", 0, "prompt"), 5),
        (("questions", "rows", 0, "answer"), 5),
        (("questions", "record"), {}),
        (("settings", "batch_size"), "all"),
        (("text",), {}),
        (("text",), None),
    ],
)
def test_damaged_files(where: tuple[Any, ...], value: Any) -> None:
    data = json.loads(json.dumps(make_evaluation(suites=True).to_dict()))
    *path, last = where
    inner = data
    for step in path:
        inner = inner[step]
    assert inner[last] != value
    inner[last] = value
    with pytest.raises(ResultFormatError, match="damaged evaluation"):
        Evaluation.from_dict(data)
