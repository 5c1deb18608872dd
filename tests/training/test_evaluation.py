"""Accuracies and their standard errors; the same checkpoint and seed give the same answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import CheckpointError
from trimtab.training.addition import is_correct, split_questions
from trimtab.training.evaluation import Evaluation, end_token, evaluate

FOUR = Evaluation(
    questions=("1+1", "2+2", "3+3", "4+4"),
    greedy=("2\n", "4\n", "6\n", "9\n"),
    greedy_correct=(True, True, True, False),
    num_samples=2,
    num_sampled_correct=(2, 2, 0, 0),
)


def test_accuracies_and_standard_errors() -> None:
    assert FOUR.num_questions == 4
    assert FOUR.greedy_accuracy == 0.75
    assert FOUR.greedy_standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert FOUR.sampled_accuracy == 0.5
    # The eight samples are four questions, each all right or all wrong.
    assert FOUR.sampled_standard_error == pytest.approx(math.sqrt(1 / 3) / 2)


def test_one_question_has_no_spread() -> None:
    single = Evaluation(("1+1",), ("2",), (True,), 4, (3,))
    assert single.sampled_accuracy == 0.75
    assert math.isnan(single.sampled_standard_error)


def test_round_trip_through_json() -> None:
    data = json.loads(json.dumps(FOUR.to_dict()))
    assert Evaluation.from_dict(data) == FOUR
    assert data["num_greedy_correct"] == 3


@pytest.mark.train
def test_answers_are_judged_and_repeatable(base: tuple[Path, dict[str, Any]]) -> None:
    questions = split_questions(0).heldout
    first = evaluate(base[0], questions, seed=1, num_samples=4)
    assert first.questions == tuple(map(str, questions))
    assert len(first.greedy) == len(questions)
    assert first.greedy_correct == tuple(
        is_correct(text, question.answer)
        for text, question in zip(first.greedy, questions, strict=True)
    )
    assert all(0 <= correct <= 4 for correct in first.num_sampled_correct)
    assert evaluate(base[0], questions, seed=1, num_samples=4) == first
    other = evaluate(base[0], questions, seed=2, num_samples=4)
    assert other.greedy == first.greedy
    assert other.num_sampled_correct != first.num_sampled_correct


@pytest.mark.train
def test_evaluation_leaves_the_random_state_alone(base: tuple[Path, dict[str, Any]]) -> None:
    import torch

    before = torch.get_rng_state()
    evaluate(base[0], split_questions(0).heldout[:2], seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_end_of_a_line_must_be_one_token() -> None:
    def two_tokens(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [5, 6]}

    with pytest.raises(CheckpointError, match="as 2 tokens, expected 1"):
        end_token(two_tokens)
