"""Held-out questions of tasks, files and runs: what is asked, and what is left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import SettingsError
from trimtab.training.addition import split_questions
from trimtab.training.evaluation.questions import (
    Questions,
    file_questions,
    questions_of_run,
    questions_of_task,
)
from trimtab.training.runs.rewards import comparison
from trimtab.training.runs.settings import DataTable, Settings

pytestmark = pytest.mark.train

ROWS = [
    {"prompt": "1+1=", "answer": "2", "level": 1, "kind": "a"},
    {"prompt": "1+2=", "answer": "3", "level": 1, "kind": "b"},
    {"prompt": "9+9=", "answer": "18", "level": 2, "kind": "a"},
]
GYM = DataTable(task="reasoning_gym:chain_sum", config={"max_terms": 3, "max_digits": 1}, size=40)


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def run_file(folder: Path, data: dict[str, Any], reward: dict[str, Any] | None = None) -> Settings:
    lines = ['algorithm = "grpo"', 'model = "m"', 'output = "o"', 'mask = "none"', "seed = 3"]
    for name, table in (("data", data), ("reward", reward)):
        if table is not None:
            lines += [f"[{name}]", *(f"{key} = {json.dumps(item)}" for key, item in table.items())]
    path = folder / "run.toml"
    path.write_text("\n".join(lines))
    return Settings.read(path)


def right(questions: Questions, completions: Sequence[str]) -> list[float]:
    rows = questions.rows.rows
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    return questions.reward.function(
        prompts=list(questions.prompts), completions=list(completions), **columns
    )


def test_addition_asks_what_a_run_with_this_seed_does_not_train_on() -> None:
    questions = questions_of_task(DataTable(task="addition"), seed=3)
    heldout = split_questions(3).heldout
    assert questions.prompts == tuple(question.prompt for question in heldout)
    assert questions.answers == tuple(question.answer for question in heldout)
    assert right(questions, [f"{answer}" for answer in questions.answers]) == [1.0] * 32
    assert questions.stop == "\n"
    assert questions.describe()["seed"] == 3
    assert len(questions_of_task(DataTable(task="addition"), num=5)) == 5


def test_a_file_with_levels(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", ROWS)
    questions = file_questions(path, comparison("exact", "answer", None))
    assert questions.prompts == ("1+1=", "1+2=", "9+9=")
    assert questions.answers == ("2", "3", "18")
    assert (questions.levels, questions.by) == ((1, 1, 2), "level")
    assert right(questions, [" 2\n", "4", "18"]) == [1.0, 0.0, 1.0]
    by_kind = file_questions(path, comparison("exact", "answer", None), by="kind")
    assert (by_kind.levels, by_kind.by) == (("a", "b", "a"), "kind")
    assert len(questions.first(2)) == 2
    assert questions.first(2).levels == (1, 1)
    assert questions.describe()["xxh3_128"] != questions.first(2).describe()["xxh3_128"]


@pytest.mark.parametrize(
    ("level", "shown"), [([1, 2], "[1, 2]"), (None, "null"), (float("nan"), "NaN"), (0.5, 0.5)]
)
def test_levels_that_are_not_plain_become_text(tmp_path: Path, level: Any, shown: Any) -> None:
    path = write(tmp_path / "q.jsonl", [{"prompt": "a", "answer": 1, "level": level}])
    questions = file_questions(path, comparison("exact", "answer", None))
    assert questions.levels == (shown,)
    assert questions.answers == ("1",)


def test_no_such_column(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", ROWS)
    with pytest.raises(
        SettingsError, match=r"no column size .* it has answer, kind, level, prompt"
    ):
        file_questions(path, comparison("exact", "answer", None), by="size")
    with pytest.raises(SettingsError, match="line 1 lacks gold"):
        file_questions(path, comparison("exact", "gold", None))


@pytest.mark.gym
def test_reasoning_gym_by_what_it_tells() -> None:
    questions = questions_of_task(GYM, seed=1, num=30, by="num_terms")
    assert len(questions) == 30
    assert questions.levels is not None
    assert set(questions.levels) == {2, 3}
    # The level is that of the question: as many numbers as terms.
    for prompt, level in zip(questions.prompts, questions.levels, strict=True):
        terms = prompt.partition(":")[2].replace("=", "").split()
        assert len(terms) == 2 * int(level) - 1
    assert right(questions, [str(answer) for answer in questions.answers]) == [1.0] * 30
    assert questions.describe()["config"]["max_terms"] == 3


@pytest.mark.gym
def test_reasoning_gym_has_what_it_can_be_told_by() -> None:
    with pytest.raises(SettingsError, match="have no level size: expected one of num_terms"):
        questions_of_task(GYM, by="size")


@pytest.mark.parametrize(
    ("table", "by", "message"),
    [
        (DataTable(task="additon"), None, 'no task "additon": expected addition or'),
        (DataTable(task="addition"), "size", "addition has no levels"),
        (DataTable(task="addition", config={"size": 1}), None, "nothing to configure: size"),
        pytest.param(
            *(DataTable(task="reasoning_gym:chain_sun"), None, "chain_sum"), marks=pytest.mark.gym
        ),
        pytest.param(
            *(DataTable(task="reasoning_gym:chain_sum", config={"seed": 1}), None, "config.seed"),
            marks=pytest.mark.gym,
        ),
    ],
)
def test_tasks_that_cannot_be_asked(table: DataTable, by: str | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        questions_of_task(table, by=by)


def test_a_run_on_addition(tmp_path: Path) -> None:
    questions = questions_of_run(run_file(tmp_path, {"task": "addition"}))
    assert questions.prompts == tuple(question.prompt for question in split_questions(3).heldout)


@pytest.mark.gym
def test_a_run_on_a_task_is_asked_none_of_its_training_questions(tmp_path: Path) -> None:
    """One-digit sums of two or three terms are few enough that some come twice."""
    file = replace(run_file(tmp_path, {"task": GYM.task}), data=GYM)
    trained = questions_of_task(GYM, seed=3, num=40).prompts
    asked = questions_of_run(file, num=200)
    assert not set(asked.prompts) & set(trained)
    assert asked.num_seen > 0
    assert len(asked) + asked.num_seen == 200
    assert right(asked, [str(answer) for answer in asked.answers]) == [1.0] * len(asked)


def test_a_run_on_a_file_needs_other_questions(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS[:2])
    other = write(tmp_path / "other.jsonl", [*ROWS, {**ROWS[0], "prompt": "8+8=", "answer": "16"}])
    file = run_file(tmp_path, {"file": "train.jsonl"}, {"kind": "exact"})
    with pytest.raises(SettingsError, match=r"trains on train\.jsonl: give questions"):
        questions_of_run(file)
    questions = questions_of_run(file, data=other)
    assert questions.prompts == ("9+9=", "8+8=")
    assert questions.num_seen == 2
    assert questions.levels == (2, 1)
    with pytest.raises(SettingsError, match="no question is left"):
        questions_of_run(file, data=tmp_path / "train.jsonl")


def test_a_run_on_a_task_has_its_own_questions(tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", ROWS)
    with pytest.raises(SettingsError, match="task addition: leave --data out"):
        questions_of_run(run_file(tmp_path, {"task": "addition"}), data=other)


def test_a_reward_model_does_not_say_what_is_right(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS[:2])
    other = write(tmp_path / "other.jsonl", ROWS)
    file = run_file(tmp_path, {"file": "train.jsonl"}, {"model": "rm"})
    with pytest.raises(SettingsError, match="scores of a reward model do not say"):
        questions_of_run(file, data=other)
