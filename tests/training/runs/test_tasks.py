"""The built-in tasks: their rows and their rewards."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.errors import SettingsError
from trimtab.training.addition import split_questions
from trimtab.training.runs.rewards import Reward
from trimtab.training.runs.settings import DataTable
from trimtab.training.runs.tasks import (
    addition_reward,
    addition_rows,
    gym_questions,
    gym_reward,
    gym_rows,
)


def score(reward: Reward, completions: list[Any], **columns: Any) -> list[float]:
    return reward.function(completions=completions, prompts=["" for _ in completions], **columns)


def gym(name: str = "chain_sum", **more: Any) -> DataTable:
    return DataTable(task=f"reasoning_gym:{name}", size=5, **more)


def test_addition_has_the_columns_asked_for_and_follows_the_seed() -> None:
    questions = split_questions(3).train
    rows = addition_rows(("prompt", "chosen", "rejected"), 3)
    assert rows.ends_with_line
    assert [row["prompt"] for row in rows.rows] == [question.prompt for question in questions]
    for row, question in zip(rows.rows, questions, strict=True):
        assert row["chosen"] == question.gold
        assert row["rejected"] != question.gold
        assert 0 <= int(row["rejected"]) <= 18
    assert addition_rows(("prompt", "chosen", "rejected"), 3) == rows
    assert addition_rows(("prompt", "chosen", "rejected"), 4).digest != rows.digest
    answers = addition_rows(("prompt", "completion", "answer"), 3).rows
    assert [row["answer"] for row in answers] == [question.answer for question in questions]
    assert [row["completion"] for row in answers] == [question.gold for question in questions]


def test_addition_is_rewarded_for_the_sum() -> None:
    assert score(addition_reward(), ["7\n", "8"], answer=[7, 7]) == [1.0, 0.0]


@pytest.mark.gym
@pytest.mark.train
def test_a_gym_task_has_the_questions_of_its_seed_and_configuration() -> None:
    from reasoning_gym.factory import create_dataset

    table = gym(config={"min_terms": 2, "max_terms": 2})
    expected = list(create_dataset("chain_sum", seed=3, size=5, min_terms=2, max_terms=2))
    rows = gym_rows(gym_questions(table, 3), table, ("prompt", "completion", "item"))
    assert [(row["prompt"], row["completion"]) for row in rows.rows] == [
        (question["question"], question["answer"]) for question in expected
    ]
    assert rows.source == "reasoning_gym:chain_sum"
    assert rows.describe()["config"]["max_terms"] == 2
    again, other = (gym_rows(gym_questions(table, seed), table, ("prompt",)) for seed in (3, 4))
    assert again.digest == gym_rows(gym_questions(table, 3), table, ("prompt",)).digest
    assert again.digest != other.digest


@pytest.mark.gym
@pytest.mark.train
def test_a_gym_task_can_ask_in_messages() -> None:
    table = gym(chat=True)
    (row, *_) = gym_rows(gym_questions(table, 3), table, ("prompt", "completion")).rows
    assert row["prompt"][0]["role"] == "user"
    assert row["completion"] == [{"role": "assistant", "content": row["completion"][0]["content"]}]


@pytest.mark.gym
@pytest.mark.train
def test_a_gym_task_is_scored_by_its_own_verifier() -> None:
    table = gym("basic_arithmetic")
    questions = gym_questions(table, 3)
    right = questions[1]["answer"]
    reward = gym_reward(questions, table)
    completions = [f"I think <answer> {right} </answer>.", f" {right}\n", "none", ""]
    expected = [1.0, 1.0, *(questions.score_answer(text, questions[1]) for text in ("none", ""))]
    assert score(reward, completions, item=[1, 1, 1, 1]) == expected
    messages = [[{"role": "assistant", "content": right}]]
    assert score(reward, messages, item=[1]) == [1.0]


@pytest.mark.gym
@pytest.mark.train
@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("chain_sums", {}, "no task chain_sums: did you mean chain_sum?"),
        (
            "chain_sum",
            {"min_term": 2},
            "no key data.config.min_term: did you mean data.config.min_",
        ),
        ("chain_sum", {"min_terms": "2"}, 'data.config.min_terms is "2", expected a whole number'),
        ("chain_sum", {"seed": 1}, "data.config.seed is set by seed"),
        ("chain_sum", {"size": 1}, r"data.config.size is set by size in \[data\]"),
        ("chain_sum", {"min_terms": 9, "max_terms": 2}, "data.config: max_terms must be"),
    ],
)
def test_gym_tasks_that_cannot_be_made(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        gym_questions(gym(name, config=config), 0)


@pytest.mark.train
def test_a_gym_task_without_written_answers_cannot_be_learned_from() -> None:
    table = gym("rearc")
    questions = [{"question": "q", "answer": None}]
    with pytest.raises(SettingsError, match=r"no written answers to learn: sample them"):
        gym_rows(questions, table, ("prompt", "completion"))
