"""The data and losses of a probe: on samples of the model, on given completions, or on rewards.

Data are the files, tasks and rewards of run files; a task has the questions that a run with the
same seed trains on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple, Protocol

import torch
import xxhash
from torch import Tensor

from trimtab.errors import SettingsError
from trimtab.training.addition import ANSWER_END
from trimtab.training.evaluation.questions import reward_of
from trimtab.training.rollouts.sampling import (
    Sampler,
    Samples,
    ids_of,
    left_padded,
    seeded,
    token_log_probs,
)
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
"""What a probe needs of the data: prompts alone, completions, or rewards as well."""

MAX_COMPLETION_LENGTH = 256
ADDITION_LENGTH = 3
"""Default maximum number of tokens of a sampled completion: two digits and a newline."""


@dataclass(frozen=True)
class ProbeData:
    """The data of a probe.

    Attributes:
        rows: Rows with `prompt`, and `completion` or the columns of the reward where needed.
        reward: The reward of sampled completions; None if not needed.
        stop: A text that ends a completion, in addition to the end token.
        max_completion_length: Maximum number of tokens of a sampled completion.
    """

    rows: Rows
    reward: Reward | None
    stop: str | None
    max_completion_length: int

    def describe(self) -> dict[str, Any]:
        """The data, for the provenance."""
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
    """Read the data of a probe.

    Args:
        table: A file, or a task.
        needs: What the data must have.
        reward: The reward of sampled completions, for a file; tasks have their own.
        stop: A text that ends a completion; None for that of the task.
        max_completion_length: None for 256, or the length of an answer of the task.
        seed: Seed of the questions of a task.

    Raises:
        SettingsError: The data or the reward cannot be used, or lack something that is needed.
        MissingExtraError: The package of the task is missing.
    """
    if table.file is not None:
        judged = None
        if needs == "rewards":
            if reward is None:
                raise SettingsError(
                    f"{table.file}: there is no reward to judge completions by: give one"
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
    """Yield the indices of all rows in random order, reshuffled in each pass, without end."""
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
    """Samples completions from a model, and computes their rewards."""

    def __init__(self, model: Any, tokenizer: Any, data: ProbeData, seed: int) -> None:
        """Prepare to sample at temperature 1 from the full distribution.

        `seed` and the number of a batch determine its samples.

        Raises:
            SettingsError: There is no end token, or the stop is not a single token.
        """
        if data.stop is not None:
            _check_stop(tokenizer, data.stop)
        self._sampler = Sampler(model, tokenizer, data.max_completion_length, stop=data.stop)
        self._device = model.device
        self._tokenizer = tokenizer
        self._data = data
        self._seed = seed

    def draw(self, rows: Sequence[Mapping[str, Any]], number: int) -> Samples:
        """Sample a completion for each row of a batch. The random state is restored."""
        ids = [prompt_ids(self._tokenizer, row["prompt"]) for row in rows]
        seed = xxhash.xxh3_64_intdigest(f"{self._seed}/{number}".encode())
        with seeded(self._device, seed):
            return self._sampler.sample(ids)

    def rewards(self, rows: Sequence[Mapping[str, Any]], samples: Samples) -> list[float]:
        """The rewards of completions; SettingsError if the reward fails."""
        assert self._data.reward is not None, "the data was read with a reward"
        return self._data.reward.of(rows, self._sampler.texts(ids_of(samples)))


def given_completions(tokenizer: Any, data: ProbeData) -> list[Tokens]:
    """Token ids of the prompts and completions of all rows.

    Texts end with the tokenizer's end token, unless the rows end with a newline.

    Raises:
        SettingsError: Some rows cannot be tokenised; names the first few.
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
                problems.append(f"row {number}: the chat template changes a prompt if answered")
        if not completion:
            problems.append(f"row {number}: the completion has no token")
        pairs.append((prompt, list(completion)))
    if problems:
        raise SettingsError(f"{data.rows.source}: {first_few(problems, '; ')}")
    return pairs


def padded_samples(pairs: Sequence[Tokens], device: Any) -> Samples:
    """Pad prompts and completions, as inputs of a model."""
    prompts, prompt_mask = left_padded([prompt for prompt, _ in pairs], 0)
    # Right padding is left padding of the reversed sequence.
    backwards, mask = left_padded([completion[::-1] for _, completion in pairs], 0)
    return Samples(
        prompt_ids=prompts.to(device),
        prompt_mask=prompt_mask.to(device),
        completion_ids=backwards.flip(1).to(device),
        completion_mask=mask.flip(1).to(device),
        has_ended=torch.ones(len(pairs), dtype=torch.bool, device=device),
    )


def one_by_one(samples: Samples) -> Iterator[Samples]:
    """Yield each row separately, without padding."""
    for row in range(len(samples)):
        prompt = samples.prompt_ids[row][samples.prompt_mask[row]]
        completion = samples.completion_ids[row][samples.completion_mask[row]]
        yield padded_samples([(prompt.tolist(), completion.tolist())], samples.prompt_ids.device)


def _check_stop(tokenizer: Any, stop: str) -> None:
    ids = tokenizer(stop, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise SettingsError(
            f"the stop {stop!r} has {len(ids)} tokens: give a text of a single token, or none"
        )


EPSILON = 1e-4
"""Added to the standard deviation of the rewards of a prompt, as TRL's GRPO does."""


class Term(NamedTuple):
    """One loss.

    Attributes:
        loss: The loss; None if its gradient is known to be 0.
        num_sequences: Number of its completions.
        num_tokens: Number of their tokens.
        num_groups: Number of prompts whose samples are compared with each other.
        num_groups_told: Those whose rewards differ, so that they have a gradient.
    """

    loss: Tensor | None
    num_sequences: int
    num_tokens: int
    num_groups: int = 0
    num_groups_told: int = 0


class Losses(Protocol):
    """The losses that a probe differentiates."""

    @property
    def needs(self) -> Needs:
        """What the data must have."""

    def check(self, data: ProbeData) -> None:
        """Check that the settings fit the data.

        Raises:
            SettingsError: They do not.
        """

    def num_terms(self, data: ProbeData) -> int:
        """Number of losses."""

    def terms(self, model: Any, tokenizer: Any, data: ProbeData, seed: int) -> Iterator[Term]:
        """Yield the losses; each must be differentiated before the next is requested."""

    def describe(self) -> dict[str, Any]:
        """The settings, for the provenance."""


@dataclass(frozen=True)
class OwnSamples:
    """The log-probability of each completion sampled from the model.

    Attributes:
        num_prompts: Maximum number of prompts; None for all.
        num_samples: Completions of each prompt.
        batch_size: Completions sampled at a time.
    """

    num_prompts: int | None = None
    num_samples: int = 4
    batch_size: int = 32

    needs: Needs = "prompts"

    def check(self, data: ProbeData) -> None:
        """Check the settings; any data fits."""
        _refuse_below_one(
            num_prompts=1 if self.num_prompts is None else self.num_prompts,
            num_samples=self.num_samples,
            batch_size=self.batch_size,
        )

    def num_terms(self, data: ProbeData) -> int:
        """One for each completion."""
        return self._num_prompts(data) * self.num_samples

    def terms(self, model: Any, tokenizer: Any, data: ProbeData, seed: int) -> Iterator[Term]:
        """One for each completion, prompt by prompt."""
        sampler = JudgedSampler(model, tokenizer, data, seed)
        order = islice(row_order(len(data.rows.rows), seed), self._num_prompts(data))
        rows = [data.rows.rows[index] for index in order for _ in range(self.num_samples)]
        for start in range(0, len(rows), self.batch_size):
            for samples in one_by_one(sampler.draw(rows[start : start + self.batch_size], start)):
                loss = token_log_probs(model, samples, 1.0).sum()
                yield Term(loss, 1, samples.num_tokens)

    def describe(self) -> dict[str, Any]:
        """Settings."""
        return {"loss": "own", "per": "sequence", **_settings(self)}

    def _num_prompts(self, data: ProbeData) -> int:
        num_rows = len(data.rows.rows)
        return num_rows if self.num_prompts is None else min(self.num_prompts, num_rows)


@dataclass(frozen=True)
class AnswerLoss:
    """The mean negative log-likelihood of the tokens of given completions, as in SFT.

    Attributes:
        num_batches: Number of losses.
        batch_size: Completions of each.
    """

    num_batches: int = 16
    batch_size: int = 32

    needs: Needs = "completions"

    def check(self, data: ProbeData) -> None:
        """Check the settings; any data fits."""
        _refuse_below_one(num_batches=self.num_batches, batch_size=self.batch_size)

    def num_terms(self, data: ProbeData) -> int:
        """One for each batch."""
        return self.num_batches

    def terms(self, model: Any, tokenizer: Any, data: ProbeData, seed: int) -> Iterator[Term]:
        """One for each batch, in several passes over the rows if needed."""
        pairs = given_completions(tokenizer, data)
        order = row_order(len(pairs), seed)
        for _ in range(self.num_batches):
            batch = [pairs[index] for index in islice(order, self.batch_size)]
            samples = padded_samples(batch, model.device)
            loss = -token_log_probs(model, samples, 1.0).sum() / samples.num_tokens
            yield Term(loss, len(samples), samples.num_tokens)

    def describe(self) -> dict[str, Any]:
        """Settings."""
        return {"loss": "sft", **_settings(self)}


@dataclass(frozen=True)
class RewardLoss:
    """The policy gradient on samples of the model, as in the first step of GRPO.

    The advantage of a completion is its reward minus the mean over its prompt's completions,
    divided by their standard deviation; the loss is the mean over all completion tokens of the
    batch. Clipping and KL term have no gradient at the model that sampled, and are left out.

    Attributes:
        num_batches: Number of losses.
        batch_size: Completions of each.
        num_samples: Completions of each prompt.
    """

    num_batches: int = 16
    batch_size: int = 32
    num_samples: int = 8

    needs: Needs = "rewards"

    def check(self, data: ProbeData) -> None:
        """Check the settings: advantages need at least two samples of a prompt."""
        _refuse_below_one(num_batches=self.num_batches, batch_size=self.batch_size)
        if self.num_samples < 2:
            raise SettingsError(f"num_samples is {self.num_samples}, expected at least 2")
        if self.batch_size % self.num_samples:
            raise SettingsError(
                f"batch_size is {self.batch_size}, expected a multiple of the {self.num_samples} "
                "samples of a prompt"
            )

    def num_terms(self, data: ProbeData) -> int:
        """One for each batch."""
        return self.num_batches

    def terms(self, model: Any, tokenizer: Any, data: ProbeData, seed: int) -> Iterator[Term]:
        """One for each batch, in several passes over the prompts if needed."""
        sampler = JudgedSampler(model, tokenizer, data, seed)
        order = row_order(len(data.rows.rows), seed)
        num_groups = self.batch_size // self.num_samples
        for number in range(self.num_batches):
            indices = islice(order, num_groups)
            rows = [data.rows.rows[index] for index in indices for _ in range(self.num_samples)]
            samples = sampler.draw(rows, number)
            rewards = torch.tensor(sampler.rewards(rows, samples))
            advantages = group_advantages(rewards, self.num_samples)
            num_useful = int(advantages.view(num_groups, -1).any(1).sum())
            loss = _policy_loss(model, samples, advantages) if num_useful else None
            yield Term(loss, len(samples), samples.num_tokens, num_groups, num_useful)

    def describe(self) -> dict[str, Any]:
        """Settings."""
        return {"loss": "reward", **_settings(self)}


def group_advantages(rewards: Tensor, num_samples: int) -> Tensor:
    """Rewards minus the mean of their group, divided by its standard deviation.

    Consecutive rewards form a group. Returns `[rows]`, exactly 0 in a group of equal rewards.
    """
    groups = rewards.view(-1, num_samples)
    centred = groups - groups.mean(1, keepdim=True)
    differs = (groups != groups[:, :1]).any(1, keepdim=True)
    scaled = centred / (groups.std(1, keepdim=True) + EPSILON)
    return torch.where(differs, scaled, 0.0).reshape(-1)


def _policy_loss(model: Any, samples: Samples, advantages: Tensor) -> Tensor:
    log_probs = token_log_probs(model, samples, 1.0)
    weighted = advantages.to(log_probs.device).unsqueeze(1) * log_probs
    return -weighted.sum() / samples.num_tokens


def _settings(losses: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(losses).items() if name != "needs"}


def _refuse_below_one(**settings: int) -> None:
    if bad := [f"{name} is {value}" for name, value in settings.items() if value < 1]:
        raise SettingsError(f"{', '.join(bad)}: expected at least 1")
