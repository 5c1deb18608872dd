"""Held-out questions of a task, of a file, or of a run.

A task generates held-out questions like its training questions, from other seeds. Questions whose
prompts a run was trained on are left out and counted, because a task with few possible questions
repeats some of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import xxhash

from trimtab.errors import SettingsError
from trimtab.training import addition
from trimtab.training.addition import ANSWER_END, split_questions
from trimtab.training.runs.base_model import BaseModel
from trimtab.training.runs.data import Rows, check_lengths, read_rows
from trimtab.training.runs.evaluate_table import QuestionsTable
from trimtab.training.runs.rewards import Reward, comparison, load_function
from trimtab.training.runs.settings import ADDITION, REASONING_GYM, DataTable, RewardTable, Settings
from trimtab.training.runs.tasks import addition_reward, gym_questions, gym_reward, gym_rows

NUM_QUESTIONS = 100
"""Default number of questions of a reasoning-gym task."""

Level = str | int | float


@dataclass(frozen=True)
class Questions:
    """Questions for models, and how their answers are judged.

    Attributes:
        rows: Rows with `prompt` and the columns of the reward.
        reward: A completion is correct if its reward is at least 1.
        answers: The correct answer of each question, as text; None if there is no single one.
        levels: The level of each question; None if there are none.
        by: Name of the levels.
        stop: A text that ends a completion, in addition to the end token.
        max_completion_length: Maximum number of tokens of a completion.
        num_seen: Questions left out because the run was trained on them.
    """

    rows: Rows
    reward: Reward
    answers: tuple[Any, ...]
    levels: tuple[Level, ...] | None = None
    by: str | None = None
    stop: str | None = None
    max_completion_length: int = 256
    num_seen: int = 0

    def __len__(self) -> int:
        return len(self.rows.rows)

    @property
    def prompts(self) -> tuple[Any, ...]:
        """The prompts: texts, or lists of messages."""
        return tuple(row["prompt"] for row in self.rows.rows)

    def select(self, indices: Sequence[int]) -> Questions:
        """Select some of the questions.

        Raises:
            SettingsError: No question is selected.
        """
        if not indices:
            raise SettingsError(f"{self.rows.source}: no question is left to ask")
        rows = [self.rows.rows[index] for index in indices]
        return replace(
            self,
            rows=replace(self.rows, rows=rows),
            answers=tuple(self.answers[index] for index in indices),
            levels=None if self.levels is None else tuple(self.levels[index] for index in indices),
        )

    def unseen(self, seen: Iterable[Any]) -> Questions:
        """The questions whose prompts are not among those that a run was trained on."""
        known = {_key(prompt) for prompt in seen}
        indices = [i for i, prompt in enumerate(self.prompts) if _key(prompt) not in known]
        return replace(self.select(indices), num_seen=len(self) - len(indices))

    def first(self, num: int | None) -> Questions:
        """The first `num` questions; None for all."""
        return self if num is None else self.select(range(min(num, len(self))))

    def check(self, model: BaseModel) -> None:
        """Check that the questions fit a model.

        Raises:
            SettingsError: It has no chat template, or some questions exceed its context.
        """
        if self.rows.has_messages and not model.has_chat_template:
            raise SettingsError(
                f"the questions are messages, and the tokenizer of {model.record.id} has no chat "
                "template"
            )
        check_lengths(self.rows, model, self.max_completion_length, None)

    def describe(self) -> dict[str, Any]:
        """The record of the questions, without prompts and answers."""
        content = json.dumps([self.prompts, self.answers], default=str).encode()
        return {
            "source": self.rows.source,
            "xxh3_128": xxhash.xxh3_128_hexdigest(content),
            "num_seen": self.num_seen,
            "reward": dict(self.reward.record),
            "stop": self.stop,
            "max_completion_length": self.max_completion_length,
            **self.rows.details,
        }


def addition_questions(heldout: Sequence[addition.Question], **details: Any) -> Questions:
    """Sums of two digits; a newline ends an answer.

    Args:
        heldout: The sums.
        **details: Entries to add to the record.
    """
    rows = [{"prompt": question.prompt, "answer": question.answer} for question in heldout]
    return Questions(
        Rows(ADDITION, rows, "", ends_with_line=True, details=details),
        addition_reward(),
        tuple(question.answer for question in heldout),
        stop=ANSWER_END,
        max_completion_length=3,
    )


def file_questions(
    path: Path, reward: Reward, *, column: str = "answer", by: str | None = None
) -> Questions:
    """The rows of a JSON Lines file.

    Args:
        path: File whose rows have `prompt`, the columns of the reward, and optionally a level.
        reward: Reward of the completions.
        column: Column of the correct answer, if it exists.
        by: Column of the level; None for `level`, if it exists.

    Raises:
        SettingsError: The file, or rows of it, cannot be used; or it has no such column.
    """
    rows = read_rows(path, ("prompt",), reward=reward)
    columns = rows.rows[0].keys()
    if by is not None and by not in columns:
        raise SettingsError(
            f"{path}: no column {by} for levels: it has {', '.join(sorted(columns))}"
        )
    levels = by or ("level" if "level" in columns else None)
    return Questions(
        rows,
        reward,
        tuple(_written(row.get(column)) for row in rows.rows),
        None if levels is None else tuple(_level(row[levels]) for row in rows.rows),
        levels,
    )


def questions_of_task(
    table: DataTable, *, seed: int = 0, num: int | None = None, by: str | None = None
) -> Questions:
    """Held-out questions of a task.

    Args:
        table: Name of the task, and the configuration of a reasoning-gym task.
        seed: Seed of the questions; for `addition` that of the split, equal to the seed of a run.
        num: Maximum number; None for all held-out sums, or 100 of a reasoning-gym task.
        by: Key of the metadata of a reasoning-gym question that is its level.

    Raises:
        SettingsError: There is no such task, or it does not support the settings.
        MissingExtraError: The package of the task is missing.
    """
    if table.is_gym:
        return _gym(replace(table, size=num or NUM_QUESTIONS), seed, by)
    if table.task != ADDITION:
        raise SettingsError(
            f'there is no task "{table.task}": expected {ADDITION} or {REASONING_GYM}NAME'
        )
    if by is not None:
        raise SettingsError(f"{ADDITION} has no levels {by}")
    if table.config:
        raise SettingsError(f"{ADDITION} has nothing to configure: {', '.join(table.config)}")
    return addition_questions(split_questions(seed).heldout, seed=seed).first(num)


def questions_of_run(
    file: Settings, *, data: Path | None = None, num: int | None = None, by: str | None = None
) -> Questions:
    """Questions like those of a run, without those that it was trained on.

    Args:
        file: The run.
        data: File of held-out questions, for a run that was trained on a file; judged by its
            reward.
        num: Maximum number; see `questions_of_task`.
        by: Name of the levels; see `questions_of_task` and `file_questions`.

    Raises:
        SettingsError: The run has no such questions, or no reward to judge answers by.
    """
    if file.data.file is not None:
        if data is None:
            raise SettingsError(
                f"{file.path} trains on {file.data.file}: give questions that are not in it "
                "as --data"
            )
        reward, column = _reward_of_run(file)
        seen = read_rows(file.resolve(file.data.file), ("prompt",)).rows
        questions = file_questions(data, reward, column=column, by=by)
        return questions.unseen(row["prompt"] for row in seen).first(num)
    if data is not None:
        raise SettingsError(f"{file.path} trains on the task {file.data.task}: leave --data out")
    if not file.data.is_gym:
        return questions_of_task(file.data, seed=file.task_seed, num=num, by=by)
    # Question i has the seed `seed + i`, and the training questions come first.
    seen = gym_questions(file.data, file.task_seed)
    seed = file.task_seed + file.data.size
    questions = questions_of_task(file.data, seed=seed, num=num, by=by)
    return questions.unseen(row["prompt"] for row in gym_rows(seen, file.data, ("prompt",)).rows)


def questions_of_table(table: QuestionsTable, file: Settings, folder: Path) -> Questions:
    """The questions of a table `[evaluate]`, without those that a run was trained on.

    Args:
        table: The table.
        file: The run.
        folder: Folder that paths of the table are relative to.

    Raises:
        SettingsError: There are no questions, or no reward to judge the answers.
    """
    if table.file is not None:
        path = folder / Path(table.file).expanduser()
        own = file.reward if table.kind is None else None
        if own is not None and own.model is None:
            reward, column = _reward_of_run(file)
        else:
            column = table.column
            judge = RewardTable(kind=table.kind or "exact", column=column, pattern=table.pattern)
            reward = reward_of(judge, folder)
        questions = file_questions(path, reward, column=column)
        if file.data.file is not None:
            seen = read_rows(file.resolve(file.data.file), ("prompt",)).rows
            questions = questions.unseen(row["prompt"] for row in seen)
        return questions.first(table.questions)
    if table.task is not None and table.task != file.data.task:
        task = DataTable(task=table.task)
        return questions_of_task(task, seed=file.task_seed, num=table.questions)
    if file.data.file is not None:
        raise SettingsError(
            f"evaluate: the run trains on {file.data.file}: set file, to questions that are not in "
            "it"
        )
    return questions_of_run(file, num=table.questions)


def _reward_of_run(file: Settings) -> tuple[Reward, str]:
    """The reward of a run, and the column of the correct answers."""
    table = file.reward
    if table is None:
        raise SettingsError(
            f"{file.path} has no [reward] to judge answers by: leave --run out, and give "
            "--verifier or --reward"
        )
    if table.model is not None:
        raise SettingsError(
            f"{file.path}: the scores of a reward model do not say whether an answer is correct: "
            "leave --run out, and give --verifier or --reward"
        )
    return reward_of(table, file.path.parent), table.column


def reward_of(table: RewardTable, folder: Path) -> Reward:
    """Build a reward: a user's function, or a comparison with the correct answer.

    Args:
        table: Table with a `function` or a `kind`.
        folder: Folder that the path of the function is relative to.

    Raises:
        SettingsError: The reward cannot be used.
    """
    if table.function is not None:
        return load_function(table.function, folder)
    assert table.kind is not None, "a table has one of the two"
    return comparison(table.kind, table.column, table.pattern)


def _gym(table: DataTable, seed: int, by: str | None) -> Questions:
    dataset = gym_questions(table, seed)
    entries = [dataset[index] for index in range(table.size)]
    return Questions(
        gym_rows(dataset, table, ("prompt", "item")),
        gym_reward(dataset, table),
        tuple(entry["answer"] if isinstance(entry["answer"], str) else None for entry in entries),
        None if by is None else tuple(_gym_level(entry, by, table.task) for entry in entries),
        by,
    )


def _gym_level(entry: Mapping[str, Any], by: str, task: str | None) -> Level:
    metadata = entry["metadata"]
    if by not in metadata:
        plain = [key for key, value in metadata.items() if isinstance(value, Level)]
        known = ", ".join(key for key in plain if not key.startswith("source_")) or "none"
        raise SettingsError(f"questions of {task} have no level {by}: expected one of {known}")
    return _level(metadata[by])


def _written(answer: Any) -> str | None:
    """An answer as text; None if there is none."""
    if answer is None or isinstance(answer, str):
        return answer
    is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
    return str(answer) if is_number else json.dumps(answer)


def _level(value: Any) -> Level:
    """A text or a finite number as it is; anything else as JSON."""
    is_plain = isinstance(value, str | int) or (isinstance(value, float) and isfinite(value))
    return value if is_plain else json.dumps(value, default=str)


def _key(prompt: Any) -> str:
    return json.dumps(prompt, sort_keys=True)
