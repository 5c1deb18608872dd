"""What a probe looks at: the rows that a run would be trained on, what judges them, their tokens.

The same files, tasks and rewards as in a run file; the questions of a task are those that a run
with the same seed trains on. Completions are given ones, or samples of the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
import xxhash

from trimtab.errors import SettingsError
from trimtab.training.addition import ANSWER_END
from trimtab.training.evaluation.questions import reward_of
from trimtab.training.rollouts.batches import Samples
from trimtab.training.rollouts.sampling import Sampler, ids_of, left_padded, seeded
from trimtab.training.runs.data import Rows, prompt_ids, read_rows
from trimtab.training.runs.rewards import Reward
from trimtab.training.runs.settings import ADDITION, REASONING_GYM, DataTable, RewardTable
from trimtab.training.runs.tasks import (
    addition_reward,
    addition_rows,
    gym_questions,
    gym_reward,
    gym_rows,
)
from trimtab.words import first_few

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


Tokens = tuple[list[int], list[int]]
"""Token ids of a prompt, and of its completion."""


class JudgedSampler:
    """A model that completes prompts, and the judge of what it says."""

    def __init__(self, model: Any, tokenizer: Any, data: ProbeData, seed: int) -> None:
        """Prepare to sample at temperature 1 from the whole distribution.

        Args:
            model: A causal language model of transformers.
            tokenizer: Of the model.
            data: What ends a completion, and what judges it.
            seed: With the number of a batch it decides what is drawn.

        Raises:
            SettingsError: Nothing ends a completion, or what does is no single token.
        """
        if data.stop is not None:
            _check_stop(tokenizer, data.stop)
        self._sampler = Sampler(model, tokenizer, data.max_completion_length, stop=data.stop)
        self._device = model.device
        self._tokenizer = tokenizer
        self._data = data
        self._seed = seed

    def draw(self, rows: Sequence[Mapping[str, Any]], number: int) -> Samples:
        """A completion of each row's prompt. The random state is left as it was.

        Args:
            rows: A row counts as often as it is there.
            number: Of the batch.
        """
        ids = [prompt_ids(self._tokenizer, row["prompt"]) for row in rows]
        seed = xxhash.xxh3_64_intdigest(f"{self._seed}/{number}".encode())
        with seeded(self._device, seed):
            return self._sampler.sample(ids)

    def rewards(self, rows: Sequence[Mapping[str, Any]], samples: Samples) -> list[float]:
        """What the completions are worth.

        Args:
            rows: Those that were completed.
            samples: Their completions.

        Raises:
            SettingsError: The reward fails.
        """
        assert self._data.reward is not None, "the data was read with a reward"
        return self._data.reward.of(rows, self._sampler.texts(ids_of(samples)))


def given_completions(tokenizer: Any, data: ProbeData) -> list[Tokens]:
    """Prompts and completions of all rows as tokens.

    What ends a text is learned, too: the tokenizer's end token, unless the end of a line ends it.

    Raises:
        SettingsError: Some rows cannot be written as tokens; the first few are named.
    """
    problems = []
    pairs = []
    for number, row in enumerate(data.rows.rows, start=1):
        prompt = prompt_ids(tokenizer, row["prompt"])
        if isinstance(row["prompt"], str):
            completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
            if not data.rows.ends_with_line and tokenizer.eos_token_id is not None:
                completion = [*completion, tokenizer.eos_token_id]
        else:
            written = tokenizer.apply_chat_template(
                [*row["prompt"], *row["completion"]], tokenize=True, return_dict=True
            )["input_ids"]
            completion = written[len(prompt) :]
            if written[: len(prompt)] != prompt:
                problems.append(f"row {number}: the chat template alters a prompt that is answered")
        if not completion:
            problems.append(f"row {number}: the completion has no token")
        pairs.append((prompt, list(completion)))
    if problems:
        raise SettingsError(f"{data.rows.source}: {first_few(problems, '; ')}")
    return pairs


def padded_samples(pairs: Sequence[Tokens], device: Any) -> Samples:
    """Prompts and completions side by side in tensors, as the model takes them."""
    prompts, prompt_mask = left_padded([prompt for prompt, _ in pairs], 0)
    # Padding on the right is padding on the left, read backwards.
    backwards, mask = left_padded([completion[::-1] for _, completion in pairs], 0)
    return Samples(
        prompt_ids=prompts.to(device),
        prompt_mask=prompt_mask.to(device),
        completion_ids=backwards.flip(1).to(device),
        completion_mask=mask.flip(1).to(device),
        has_ended=torch.ones(len(pairs), dtype=torch.bool, device=device),
    )


def one_by_one(samples: Samples) -> Iterator[Samples]:
    """Each row by itself, without padding."""
    for row in range(len(samples)):
        prompt = samples.prompt_ids[row][samples.prompt_mask[row]]
        completion = samples.completion_ids[row][samples.completion_mask[row]]
        yield padded_samples([(prompt.tolist(), completion.tolist())], samples.prompt_ids.device)


def _check_stop(tokenizer: Any, stop: str) -> None:
    ids = tokenizer(stop, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise SettingsError(
            f"the text {stop!r} that ends a completion has {len(ids)} tokens: give one of a single "
            "token, or none"
        )
