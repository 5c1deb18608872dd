"""The built-in tasks: questions with verifiable answers, and their rewards.

A task of the package reasoning-gym is named `reasoning_gym:NAME`; it generates its own questions
and has its own verifier.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from random import Random
from typing import Any

import xxhash

from trimtab.errors import SettingsError
from trimtab.extras import require
from trimtab.results.tables import check_table, unknown_key
from trimtab.training import addition
from trimtab.training.addition import ANSWER_END, Question, split_questions
from trimtab.training.rollouts.rewards import checked_reward
from trimtab.training.runs.data import Rows
from trimtab.training.runs.rewards import Reward, text_of
from trimtab.training.runs.settings import ADDITION, REASONING_GYM, DataTable

INSTALL = "pip install 'trimtab[tasks]'"


def addition_rows(columns: Sequence[str], seed: int) -> Rows:
    """The training questions of one-digit addition, with any of the columns in `_OF_ADDITION`."""
    random = Random(seed)
    rows = [
        {column: _OF_ADDITION[column](question, random) for column in columns}
        for question in split_questions(seed).train
    ]
    return Rows(ADDITION, rows, _digest(rows), ends_with_line=True)


def addition_reward() -> Reward:
    """A reward of 1 for a correct completion, 0 otherwise."""
    return Reward(checked_reward(addition.reward, ADDITION), ("answer",), {"task": ADDITION})


def _wrong(question: Question, random: Random) -> str:
    """A sum of two digits that is not the answer."""
    answer = random.choice([number for number in range(19) if number != question.answer])
    return f"{answer}{ANSWER_END}"


_OF_ADDITION: Mapping[str, Callable[[Question, Random], Any]] = {
    "prompt": lambda question, random: question.prompt,
    "completion": lambda question, random: question.gold,
    "chosen": lambda question, random: question.gold,
    "rejected": _wrong,
    "answer": lambda question, random: question.answer,
}
"""Column -> its value for a question."""


def gym_questions(table: DataTable, seed: int) -> Any:
    """Generate the questions of a reasoning-gym task from the seed.

    Raises:
        SettingsError: The task does not exist, or its configuration is invalid.
        MissingExtraError: The package is missing.
    """
    factory = require("reasoning_gym.factory", INSTALL)
    assert table.task is not None
    name = table.task.removeprefix(REASONING_GYM)
    if name not in factory.DATASETS:
        problem = unknown_key(name, factory.DATASETS).removeprefix("there is no key ")
        raise SettingsError(f"data.task: reasoning-gym has no task {problem}")
    problems = [
        f"data.config.{key} is set by {setter}"
        for key, setter in (("seed", "seed"), ("size", "size in [data]"))
        if key in (table.config or {})
    ]
    _, config = factory.DATASETS[name]
    given = check_table(config, table.config or {}, "data.config.", problems)
    if problems:
        raise SettingsError("; ".join(problems))
    try:
        return factory.create_dataset(name, **given, size=table.size, seed=seed)
    except (AssertionError, ValueError, TypeError) as error:
        raise SettingsError(f"data.config: {' '.join(str(error).split())}") from error


def gym_rows(questions: Any, table: DataTable, columns: Iterable[str]) -> Rows:
    """Questions as rows: `prompt`, `completion` (the answer) and `item`, the index of the question.

    Raises:
        SettingsError: `completion` is needed, and the task has no single correct answer.
    """
    rows = []
    for item, question in enumerate(questions):
        answer = question["answer"]
        if "completion" in columns and not isinstance(answer, str):
            raise SettingsError(
                f"data.task: {table.task} has no written answers to learn: sample them "
                '(algorithm = "rft"), or train on its reward'
            )
        values = {
            "prompt": _message("user", question["question"], table.chat),
            "completion": _message("assistant", answer, table.chat),
            "item": item,
        }
        rows.append({column: values[column] for column in columns})
    assert table.task is not None
    details = {"config": asdict(questions.config)}
    return Rows(
        table.task, rows, _digest(rows), details=json.loads(json.dumps(details, default=str))
    )


def gym_reward(questions: Any, table: DataTable) -> Reward:
    """The score of the task's own verifier, from 0 to 1.

    The answer is the content of the last `<answer>` tags of a completion, or else all of it.
    """
    extract_answer = require("reasoning_gym.utils", INSTALL).extract_answer

    def reward(completions: Sequence[Any], item: Sequence[int], **_: Any) -> list[float]:
        scores = []
        for completion, number in zip(completions, item, strict=True):
            text = text_of(completion)
            tagged = extract_answer(text)
            answer = text.strip() if tagged is None else tagged
            scores.append(float(questions.score_answer(answer, questions[number])))
        return scores

    assert table.task is not None
    record = {"task": table.task, "reasoning-gym": version("reasoning-gym")}
    return Reward(checked_reward(reward, table.task), ("item",), record)


def _message(role: str, text: Any, chat: bool) -> Any:
    return [{"role": role, "content": text}] if chat else text


def _digest(rows: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(rows).encode())
