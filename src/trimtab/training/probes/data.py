"""What a probe looks at: the rows that a run would be trained on, and what judges them.

The same files, tasks and rewards as in a run file; the questions of a task are those that a run
with the same seed trains on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from trimtab.errors import SettingsError
from trimtab.training.addition import ANSWER_END
from trimtab.training.evaluation.questions import reward_of
from trimtab.training.runs.data import Rows, read_rows
from trimtab.training.runs.rewards import Reward
from trimtab.training.runs.settings import ADDITION, REASONING_GYM, DataTable, RewardTable
from trimtab.training.runs.tasks import (
    addition_reward,
    addition_rows,
    gym_questions,
    gym_reward,
    gym_rows,
)

__all__ = ["Needs", "ProbeData", "read_data", "row_order"]

Needs = Literal["prompts", "completions", "rewards"]
"""What of the data a probe needs beside its prompts: nothing, completions, or a reward."""

MAX_COMPLETION_LENGTH = 256
ADDITION_LENGTH = 3
"""Tokens of a sampled completion, at most, unless told otherwise: two digits and a line end."""


@dataclass(frozen=True)
class ProbeData:
    """What gradients are taken on.

    Attributes:
        rows: Each with `prompt`, and `completion` or what the reward looks at where needed.
        reward: Judges sampled completions; None where nothing is judged.
        stop: A text that ends a completion, beside the end token.
        max_completion_length: Tokens of a sampled completion, at most.
    """

    rows: Rows
    reward: Reward | None
    stop: str | None
    max_completion_length: int

    def describe(self) -> dict[str, Any]:
        """What is recorded of it."""
        return {
            **self.rows.describe(),
            "reward": None if self.reward is None else dict(self.reward.record),
            "stop": self.stop,
            "max_completion_length": self.max_completion_length,
        }


def read_data(
    table: DataTable,
    needs: Needs,
    *,
    reward: RewardTable | None = None,
    stop: str | None = None,
    max_completion_length: int | None = None,
    seed: int = 0,
) -> ProbeData:
    """Read what a probe looks at.

    Args:
        table: A file, or a task.
        needs: What it must have.
        reward: Judges sampled completions, for a file; a task brings its own.
        stop: A text that ends a completion; None for the task's own.
        max_completion_length: None for 256, or what an answer of the task takes.
        seed: Of the questions of a task.

    Raises:
        SettingsError: The data or the reward cannot be used, or do not have what is needed.
        MissingExtraError: The package of the task is missing.
    """
    if table.file is not None:
        judged = None
        if needs == "rewards":
            if reward is None:
                raise SettingsError(
                    f"{table.file}: nothing says which completions are good: give a reward"
                )
            judged = reward_of(reward, Path())
        rows = read_rows(Path(table.file), _columns(needs, None), reward=judged)
        return ProbeData(rows, judged, stop, max_completion_length or MAX_COMPLETION_LENGTH)
    if table.is_gym:
        questions = gym_questions(table, seed)
        judged = gym_reward(questions, table) if needs == "rewards" else None
        rows = gym_rows(questions, table, _columns(needs, judged))
        return ProbeData(rows, judged, stop, max_completion_length or MAX_COMPLETION_LENGTH)
    if table.task != ADDITION:
        raise SettingsError(
            f'there is no task "{table.task}": expected {ADDITION} or {REASONING_GYM}NAME'
        )
    judged = addition_reward() if needs == "rewards" else None
    rows = addition_rows(_columns(needs, judged), seed)
    return ProbeData(rows, judged, stop or ANSWER_END, max_completion_length or ADDITION_LENGTH)


def row_order(num_rows: int, seed: int) -> Iterator[int]:
    """The places of all rows in a random order, again and again, each time in another one."""
    epoch = 0
    while True:
        order = list(range(num_rows))
        Random(f"{seed}/{epoch}").shuffle(order)
        yield from order
        epoch += 1


def _columns(needs: Needs, reward: Reward | None) -> tuple[str, ...]:
    more = {"prompts": (), "completions": ("completion",)}
    return ("prompt", *(reward.columns if reward is not None else more.get(needs, ())))
