"""Held-out questions: those of a task, of a file, or those that a run was not trained on.

A task makes its held-out questions as it makes its training questions, by the same code, from other
seeds. What a run was trained on is left out by its text, too, and counted: a task with few
possible questions asks some of them again.
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
from trimtab.training.runs.rewards import Reward, comparison, load_function
from trimtab.training.runs.settings import ADDITION, REASONING_GYM, DataTable, RewardTable, Settings
from trimtab.training.runs.tasks import addition_reward, gym_questions, gym_reward, gym_rows

NUM_QUESTIONS = 100
"""That a task of reasoning-gym makes, unless told otherwise."""

Level = str | int | float


@dataclass(frozen=True)
class Questions:
    """What models are asked, and how their answers are judged.

    Attributes:
        rows: Each with `prompt` and what the reward looks at.
        reward: A completion is right if its reward is at least 1.
        answers: The right answer of each, as written; None where there is no single one.
        levels: The level of each; None if the questions have none.
        by: What the levels are.
        stop: A text that ends a completion, beside the end token.
        max_completion_length: Tokens of a completion, at most.
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
        """What is asked: texts, or lists of messages."""
        return tuple(row["prompt"] for row in self.rows.rows)

    def keep(self, places: Sequence[int]) -> Questions:
        """Some of the questions.

        Raises:
            SettingsError: None is left.
        """
        if not places:
            raise SettingsError(f"{self.rows.source}: no question is left to ask")
        rows = [self.rows.rows[place] for place in places]
        return replace(
            self,
            rows=replace(self.rows, rows=rows),
            answers=tuple(self.answers[place] for place in places),
            levels=None if self.levels is None else tuple(self.levels[p] for p in places),
        )

    def unseen(self, seen: Iterable[Any]) -> Questions:
        """The questions whose prompts are not among those that a run was trained on."""
        known = {_key(prompt) for prompt in seen}
        places = [place for place, of in enumerate(self.prompts) if _key(of) not in known]
        return replace(self.keep(places), num_seen=len(self) - len(places))

    def first(self, num: int | None) -> Questions:
        """The first so many; all for None."""
        return self if num is None else self.keep(range(min(num, len(self))))

    def check(self, model: BaseModel) -> None:
        """Check that a model can be asked.

        Raises:
            SettingsError: It takes no messages, or some questions do not fit its context.
        """
        if self.rows.has_messages and not model.has_chat_template:
            raise SettingsError(
                f"the questions are messages, and the tokenizer of {model.record.id} has no chat "
                "template"
            )
        check_lengths(self.rows, model, self.max_completion_length, None)

    def describe(self) -> dict[str, Any]:
        """What is recorded of them, beside what was asked and the right answers."""
        asked = json.dumps([self.prompts, self.answers], default=str).encode()
        return {
            "source": self.rows.source,
            "xxh3_128": xxhash.xxh3_128_hexdigest(asked),
            "num_seen": self.num_seen,
            "reward": dict(self.reward.record),
            "stop": self.stop,
            "max_completion_length": self.max_completion_length,
            **self.rows.details,
        }


def addition_questions(heldout: Sequence[addition.Question], **details: Any) -> Questions:
    """Sums of two digits; the end of a line ends an answer.

    Args:
        heldout: The sums.
        **details: Recorded with them.
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
        path: Each row has `prompt`, what the reward looks at, and perhaps a level.
        reward: Judges the completions.
        column: Has the right answer, if there is such a column.
        by: The column with the level; None takes `level` if there is one.

    Raises:
        SettingsError: The file, or rows of it, cannot be used; or it has no such column.
    """
    rows = read_rows(path, ("prompt",), reward=reward)
    columns = rows.rows[0].keys()
    if by is not None and by not in columns:
        raise SettingsError(
            f"{path}: no column {by} to tell levels by: it has {', '.join(sorted(columns))}"
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
        table: Names the task, and has the configuration of one of reasoning-gym.
        seed: Decides the questions: for `addition` the split, the same as the seed of a run.
        num: How many, at most; None for all held-out sums, or 100 of a task of reasoning-gym.
        by: Key of the metadata of a reasoning-gym question that is its level.

    Raises:
        SettingsError: There is no such task, or it cannot be asked so.
        MissingExtraError: The package of the task is missing.
    """
    if table.is_gym:
        return _gym(replace(table, size=num or NUM_QUESTIONS), seed, by)
    if table.task != ADDITION:
        raise SettingsError(
            f'there is no task "{table.task}": expected {ADDITION} or {REASONING_GYM}NAME'
        )
    if by is not None:
        raise SettingsError(f"{ADDITION} has no levels to tell apart by {by}")
    if table.config:
        raise SettingsError(f"{ADDITION} has nothing to configure: {', '.join(table.config)}")
    return addition_questions(split_questions(seed).heldout, seed=seed).first(num)


def questions_of_run(
    file: Settings, *, data: Path | None = None, num: int | None = None, by: str | None = None
) -> Questions:
    """Questions like those of a run, that it was not trained on.

    Args:
        file: The run.
        data: Held-out questions, for a run that was trained on a file: judged by its reward.
        num: How many, at most; see `questions_of_task`.
        by: What the levels are; see `questions_of_task` and `file_questions`.

    Raises:
        SettingsError: The run has no questions like this, or nothing that judges answers.
    """
    if file.data.file is not None:
        if data is None:
            raise SettingsError(
                f"{file.path} trains on {file.data.file}: give questions that are not in it "
                "as --data"
            )
        reward, column = _reward_of_run(file)
        seen = read_rows(file.resolve(file.data.file), ("prompt",)).rows
        asked = file_questions(data, reward, column=column, by=by)
        return asked.unseen(row["prompt"] for row in seen).first(num)
    if data is not None:
        raise SettingsError(f"{file.path} trains on the task {file.data.task}: leave --data out")
    if not file.data.is_gym:
        return questions_of_task(file.data, seed=file.task_seed, num=num, by=by)
    # The tasks seed question i with seed + i: the training questions are the first ones.
    seen = gym_questions(file.data, file.task_seed)
    asked = questions_of_task(file.data, seed=file.task_seed + file.data.size, num=num, by=by)
    return asked.unseen(row["prompt"] for row in gym_rows(seen, file.data, ("prompt",)).rows)


def _reward_of_run(file: Settings) -> tuple[Reward, str]:
    """What judges the answers of a run, and the column of the right ones."""
    table = file.reward
    if table is None:
        raise SettingsError(
            f"{file.path} has no [reward], so nothing in it tells right answers from wrong ones: "
            "leave --run out, and say how with --verifier or --reward"
        )
    if table.model is not None:
        raise SettingsError(
            f"{file.path}: the scores of a reward model are not right or wrong: leave --run out, "
            "and say how to judge answers with --verifier or --reward"
        )
    return reward_of(table, file.path.parent), table.column


def reward_of(table: RewardTable, folder: Path) -> Reward:
    """A function of the user's, or a comparison with the right answer.

    Args:
        table: Has a `function` or a `kind`.
        folder: What the file of the function is relative to.

    Raises:
        SettingsError: It cannot be used.
    """
    if table.function is not None:
        return load_function(table.function, folder)
    assert table.kind is not None, "there is one of the two"
    return comparison(table.kind, table.column, table.pattern)


def _gym(table: DataTable, seed: int, by: str | None) -> Questions:
    made = gym_questions(table, seed)
    entries = [made[place] for place in range(table.size)]
    return Questions(
        gym_rows(made, table, ("prompt", "item")),
        gym_reward(made, table),
        tuple(entry["answer"] if isinstance(entry["answer"], str) else None for entry in entries),
        None if by is None else tuple(_gym_level(entry, by, table.task) for entry in entries),
        by,
    )


def _gym_level(entry: Mapping[str, Any], by: str, task: str | None) -> Level:
    metadata = entry["metadata"]
    if by not in metadata:
        plain = [key for key, value in metadata.items() if isinstance(value, Level)]
        told = ", ".join(key for key in plain if not key.startswith("source_")) or "nothing"
        raise SettingsError(f"{task} does not tell {by} of a question: it tells {told}")
    return _level(metadata[by])


def _written(answer: Any) -> str | None:
    """An answer as text; None where there is none."""
    if answer is None or isinstance(answer, str):
        return answer
    is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
    return str(answer) if is_number else json.dumps(answer)


def _level(value: Any) -> Level:
    """A text or a finite number; anything else as JSON writes it."""
    is_plain = isinstance(value, str | int) or (isinstance(value, float) and isfinite(value))
    return value if is_plain else json.dumps(value, default=str)


def _key(prompt: Any) -> str:
    return json.dumps(prompt, sort_keys=True)
