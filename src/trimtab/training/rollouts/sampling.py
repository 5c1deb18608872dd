"""Prompts in, sampled completions out.

Completions are sampled with transformers' `generate`, by the settings of the run and no others.
What a checkpoint brings in its generation config (Qwen's has top_k, top_p and a repetition penalty)
would make the samples come from another distribution than the one that is trained. It is set aside
while sampling; only its end tokens are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import data

from trimtab.errors import SettingsError
from trimtab.training.rollouts.batches import Samples
from trimtab.training.runs.data import prompt_ids
from trimtab.words import first_few


def prompt_problems(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, room: int | None
) -> Iterator[str]:
    """Say what is wrong with the prompts of a data set.

    Args:
        rows: The data.
        tokenizer: Of the policy.
        room: Tokens that a prompt may have; None for any number.
    """
    if not len(rows):
        yield "train_dataset has no rows"
        return
    lacking = [number for number, row in enumerate(rows) if "prompt" not in row]
    if lacking:
        yield f"train_dataset: row {lacking[0]} has no column prompt"
        return
    kinds = {type(row["prompt"]) for row in rows}
    if strange := sorted(kind.__name__ for kind in kinds - {str, list}):
        yield f"train_dataset has a prompt of type {strange[0]}: expected a text or messages"
        return
    if list in kinds and not tokenizer.chat_template:
        yield "train_dataset has messages as prompts, and the tokenizer has no chat template"
        return
    wrong = []
    for number, row in enumerate(rows):
        length = len(prompt_ids(tokenizer, row["prompt"]))
        if not length:
            wrong.append(f"the prompt of row {number} has no tokens")
        elif room is not None and length > room:
            wrong.append(
                f"the prompt of row {number} has {length} tokens, and the context of the model "
                f"leaves room for {room} before a completion"
            )
    if wrong:
        yield f"train_dataset: {first_few(wrong, '; ')}"


class RoundSampler(data.Sampler[int]):
    """Order of the rows of a data set: round by round, in an order of its own in every epoch.

    The rows of a round are repeated, because the Trainer fetches them anew for each of the batches
    that the round serves. Rows that are too few for a whole round are left out of an epoch.

    Args:
        num_rows: Rows of the data set.
        rows_per_round: Rows that a round takes.
        num_repeats: How often they are repeated, as a whole.
        seed: Of the order.
    """

    def __init__(self, num_rows: int, rows_per_round: int, num_repeats: int, seed: int) -> None:
        self.num_rows = num_rows
        self.rows_per_round = rows_per_round
        self.num_repeats = num_repeats
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; the Trainer calls it, also when it goes on in the midst of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows // self.rows_per_round * self.rows_per_round * self.num_repeats

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.num_rows, generator=generator).tolist()
        for first in range(0, len(self) // self.num_repeats, self.rows_per_round):
            for _ in range(self.num_repeats):
                yield from order[first : first + self.rows_per_round]


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled.

    Attributes:
        max_completion_length: Tokens of a completion, at most.
        temperature: Logits are divided by it; 0 takes the likeliest token, and draws none.
        top_p: Share of the probability that tokens are drawn from; 1 for all of it.
        end_tokens: Ids that end a completion.
        pad_token: Id that fills up rows.
    """

    max_completion_length: int
    temperature: float
    top_p: float
    end_tokens: tuple[int, ...]
    pad_token: int


class Sampler:
    """A model with its tokenizer, ready to complete prompts.

    Args:
        model: A causal language model of transformers.
        tokenizer: Of the model.
        max_completion_length: Tokens of a completion, at most.
        temperature: Logits are divided by it; 0 takes the likeliest token, and draws none.
        top_p: Share of the probability that tokens are drawn from; 1 for all of it.
        stop: A text that ends a completion, too, where it is a single token.

    Raises:
        SettingsError: Nothing ends a completion.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_completion_length: int,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        stop: str | None = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        ends = end_tokens(model, tokenizer)
        if stop is not None:
            ids = tokenizer(stop, add_special_tokens=False)["input_ids"]
            ends = (*ends, *ids) if len(ids) == 1 else ends
        pad = tokenizer.pad_token_id
        self._sampling = Sampling(
            max_completion_length, temperature, top_p, ends, ends[0] if pad is None else pad
        )

    def sample(
        self, prompts: Sequence[Sequence[int]], *, temperature: float | None = None
    ) -> Samples:
        """Sample a completion of each prompt, with torch's random state.

        Args:
            prompts: Token ids of each prompt.
            temperature: In place of that of the sampler.
        """
        sampling = self._sampling
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        return sample(self._model, prompts, sampling)

    def texts(self, completions: Sequence[Any]) -> list[str]:
        """Completions as text, without special tokens.

        Args:
            completions: Token ids of each, as `ids_of` gives them.
        """
        texts: list[str] = self._tokenizer.batch_decode(completions, skip_special_tokens=True)
        return texts


def ids_of(samples: Samples) -> list[list[int]]:
    """Token ids of each completion, with the one that ended it."""
    pairs = zip(samples.completion_ids, samples.completion_mask, strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Draw by a seed while the block runs; the random state is left as it was."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield


def end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end a completion: those of the model's generation config, and the tokenizer's.

    Raises:
        SettingsError: There is none.
    """
    of_model = getattr(model.generation_config, "eos_token_id", None)
    several = of_model if isinstance(of_model, list | tuple) else [of_model]
    found = {token for token in (*several, tokenizer.eos_token_id) if token is not None}
    if not found:
        raise SettingsError(
            "neither the model nor the tokenizer has an end token: set "
            "model.generation_config.eos_token_id to the id of the token that ends a completion"
        )
    return tuple(sorted(found))


def left_padded(prompts: Sequence[Sequence[int]], pad_token: int) -> tuple[Tensor, Tensor]:
    """Token ids of prompts in one tensor, and its mask: False on the padding, which comes first."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_token] * (width - len(row)) + list(row) for row in prompts])
    lengths = torch.tensor([[len(row)] for row in prompts])
    return ids, torch.arange(width) >= width - lengths


@torch.no_grad()
def sample(model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Samples:
    """Sample a completion of each prompt, with torch's random state.

    Args:
        model: A causal language model of transformers.
        prompts: Token ids of each prompt; at least one token.
        sampling: How.
    """
    prompt_ids, prompt_mask = (
        tensor.to(model.device) for tensor in left_padded(prompts, sampling.pad_token)
    )
    was_training = model.training
    model.eval()
    try:
        with _generation_of(model, sampling):
            ids = model.generate(input_ids=prompt_ids, attention_mask=prompt_mask.long())
    finally:
        model.train(was_training)
    completion_ids = ids[:, prompt_ids.shape[1] :]
    ends = torch.isin(completion_ids, torch.tensor(sampling.end_tokens, device=ids.device))
    ended_before = ends.long().cumsum(1) - ends.long()
    mask = ended_before == 0
    return Samples(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=completion_ids.masked_fill(~mask, sampling.pad_token),
        completion_mask=mask,
        has_ended=ends.any(1),
    )


@contextmanager
def _generation_of(model: Any, sampling: Sampling) -> Iterator[None]:
    """Have the model sample as asked, and by nothing that its own generation config says."""
    from transformers import GenerationConfig

    drawing: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        drawing = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
        }
    own = model.generation_config
    model.generation_config = GenerationConfig(
        **drawing,
        max_new_tokens=sampling.max_completion_length,
        eos_token_id=list(sampling.end_tokens),
        pad_token_id=sampling.pad_token,
    )
    try:
        yield
    finally:
        model.generation_config = own
