"""The task: exact prompts, an honest split, and the reward."""

from __future__ import annotations

from itertools import product

import pytest

from trimtab.training.addition import SHOTS, Question, is_correct, reward, split_questions


def test_prompt_and_gold_are_exactly_these() -> None:
    question = Question(6, 9)
    assert question.prompt == "3+4=7\n2+9=11\n6+9="
    assert question.gold == "15\n"
    assert str(question) == "6+9"


@pytest.mark.parametrize("seed", range(20))
def test_split_covers_every_question_once(seed: int) -> None:
    split = split_questions(seed)
    shown = {Question(shot.a, shot.b) for shot in SHOTS} | {Question(s.b, s.a) for s in SHOTS}
    every = {Question(a, b) for a, b in product(range(10), repeat=2)} - shown
    assert len(split.train) == 64
    assert len(split.heldout) == 32
    assert set(split.train) | set(split.heldout) == every
    assert not set(split.train) & set(split.heldout)


@pytest.mark.parametrize("seed", range(20))
def test_no_heldout_question_mirrors_a_training_question(seed: int) -> None:
    split = split_questions(seed)
    mirrored = {Question(question.b, question.a) for question in split.train}
    assert not mirrored & set(split.heldout)


def test_split_is_decided_by_its_seed() -> None:
    assert split_questions(3) == split_questions(3)
    assert split_questions(3) != split_questions(4)


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("12", True),
        ("12\n", True),
        (" 12 apples", True),
        ("12.", True),
        ("012", True),
        ("120", False),
        ("1 2", False),
        ("1", False),
        ("-12", False),
        ("is 12", False),
        ("=12", False),
        ("\u0661\u0662", False),  # digits of another script
        ("", False),
        ("\n", False),
    ],
)
def test_the_first_number_is_the_answer(text: str, correct: bool) -> None:
    assert is_correct(text, 12) is correct


def test_reward_is_one_for_a_right_completion() -> None:
    rewards = reward(["7\n", "8\n", "x"], [7, 7, 7], prompts=["", "", ""], trainer_state=None)
    assert rewards == [1.0, 0.0, 0.0]


def test_reward_refuses_unequal_columns() -> None:
    with pytest.raises(ValueError, match="shorter"):
        reward(["7", "8"], [7])
