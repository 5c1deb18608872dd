"""Figures of one model's answers, of some of them, and of two models on the same questions."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.training.evaluation.results import answers_of
from trimtab.results.answers import Answers, answers_difference
from trimtab.results.schema import from_plain
from trimtab.results.statistics import mcnemar, paired_interval, wilson

FOUR = answers_of(
    ("2", "4", "6", "9"), (True, True, True, False), (True, True, False, True), 2, (2, 2, 0, 0)
)
GREEDY = answers_of(("2", "5"), (True, False), (True, True))


def test_accuracies_and_standard_errors() -> None:
    assert FOUR.num_questions == 4
    assert FOUR.greedy_accuracy == 0.75
    assert FOUR.greedy_standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert FOUR.greedy_interval == wilson(0.75, 4)
    assert FOUR.sampled_accuracy == 0.5
    # The eight samples are four questions, each all right or all wrong.
    assert FOUR.sampled_standard_error == pytest.approx(math.sqrt(1 / 3) / 2)
    assert FOUR.sampled_interval == pytest.approx(wilson(0.5, 3))


def test_without_samples_there_is_no_sampled_figure() -> None:
    data = GREEDY.to_dict()
    assert data["greedy_accuracy"] == 0.5
    for name in ("sampled_accuracy", "sampled_standard_error", "sampled_interval"):
        assert data[name] is None


def test_one_question_has_no_spread() -> None:
    single = answers_of(("2",), (True,), (True,), 4, (3,))
    assert single.sampled_accuracy == 0.75
    assert single.sampled_standard_error is None
    assert single.sampled_interval == wilson(0.75, 1)


def test_some_of_the_answers() -> None:
    part = FOUR.subset([3, 0])
    assert part == answers_of(("9", "2"), (False, True), (True, True), 2, (0, 2))
    assert GREEDY.subset([1]) == answers_of(("5",), (False,), (True,))


@pytest.mark.parametrize("answers", [FOUR, GREEDY])
def test_round_trip_through_json(answers: Answers) -> None:
    data = json.loads(json.dumps(answers.to_dict(), allow_nan=False))
    assert from_plain(Answers, data, what="answers") == answers
    assert data["num_greedy_correct"] == sum(answer.correct for answer in answers.answers)
    ended = sum(answer.ended for answer in answers.answers)
    assert data["num_greedy_not_ended"] == answers.num_questions - ended


def test_more_right_samples_than_samples_are_refused() -> None:
    data: dict[str, Any] = FOUR.to_dict()
    data["answers"][0]["num_sampled_correct"] = 3
    with pytest.raises(ValueError, match="num_sampled_correct is 3 of 2 samples"):
        from_plain(Answers, data, what="answers")


def test_difference_counts_pairs() -> None:
    before = answers_of(
        ("",) * 6, (True, True, False, False, False, True), (True,) * 6, 2, (2, 1, 0, 0, 1, 2)
    )
    after = answers_of(
        ("",) * 6, (True, False, True, True, False, True), (True,) * 6, 2, (2, 0, 2, 1, 1, 2)
    )
    result = answers_difference(before, after)
    assert (result["num_gained"], result["num_lost"], result["num_questions"]) == (2, 1, 6)
    assert result["greedy_difference"] == pytest.approx(1 / 6)
    assert result["greedy_interval"] == list(paired_interval(2, 1, 6))
    assert result["p_value"] == mcnemar(2, 1) == 1.0
    # Differences of the shares: 0, -1/2, 1, 1/2, 0, 0.
    assert result["sampled_difference"] == pytest.approx(1 / 6)
    squares = [(d - 1 / 6) ** 2 for d in (0, -0.5, 1, 0.5, 0, 0)]
    assert result["sampled_standard_error"] == pytest.approx(math.sqrt(sum(squares) / 5 / 6))
    assert result["sampled_interval"][0] < 1 / 6 < result["sampled_interval"][1]


def test_a_model_does_not_differ_from_itself() -> None:
    result = answers_difference(FOUR, FOUR)
    assert (result["num_gained"], result["num_lost"], result["p_value"]) == (0, 0, 1.0)
    assert result["sampled_difference"] == result["sampled_standard_error"] == 0
    assert answers_difference(GREEDY, GREEDY)["sampled_difference"] is None


def test_answers_to_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        answers_difference(FOUR, GREEDY)
