"""Sampling of completions, their log-probabilities, and the policy loss on them.

Completions are sampled with Transformers' `generate` and the settings of the run only. The
generation config of a checkpoint (Qwen's has top_k, top_p and a repetition penalty) would change
the distribution, so it is replaced during sampling; only its end tokens are used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import data

from trimtab.errors import SettingsError
from trimtab.training.runs.data import prompt_ids
from trimtab.words import first_few

Batch = TypeVar("Batch", bound=Any)


@dataclass(frozen=True)
class Samples:
    """Completions of prompts, one per row.

    Attributes:
        prompt_ids: Left-padded, int64 `[rows, prompt width]`.
        prompt_mask: False on padding; bool, same shape.
        completion_ids: Right-padded, int64 `[rows, completion width]`.
        completion_mask: True up to and including the end token; bool, same shape.
        has_ended: Whether a completion ended before the length limit, bool `[rows]`.
        engine_log_probs: Of each token by the engine that sampled it, NaN where it has none; fp32,
            as `completion_ids`. None if the policy itself sampled.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    has_ended: Tensor
    engine_log_probs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.completion_ids)

    @property
    def input_ids(self) -> Tensor:
        """Prompt and completion ids, concatenated."""
        return torch.cat([self.prompt_ids, self.completion_ids], dim=1)

    @property
    def attention_mask(self) -> Tensor:
        """False on padding."""
        return torch.cat([self.prompt_mask, self.completion_mask], dim=1)

    @property
    def position_ids(self) -> Tensor:
        """Positions, counted from the first token that is not padding, as in `generate`."""
        return (self.attention_mask.long().cumsum(1) - 1).clamp(min=0)

    @property
    def num_tokens(self) -> int:
        """Number of completion tokens of all rows."""
        return int(self.completion_mask.sum())


@dataclass(frozen=True)
class PolicyBatch:
    """Completions, with what the policy loss needs from the time of sampling.

    Attributes:
        samples: The completions.
        log_probs: Log-probabilities under the policy that sampled them, 0 where the completion mask
            is False; fp32 `[rows, tokens]`.
        advantages: Advantage of each token; same shape.
        num_tokens: Completion tokens of the mini-batch to which these rows belong; losses are
            averaged over them.
    """

    samples: Samples
    log_probs: Tensor
    advantages: Tensor
    num_tokens: int


def take_rows(batch: Batch, rows: Tensor) -> Batch:
    """Select rows of a dataclass of tensors, in the given order.

    Tensors are indexed along their first axis, nested dataclasses likewise; other fields are
    unchanged.
    """
    taken: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            taken[field.name] = value[rows]
        elif is_dataclass(value):
            taken[field.name] = take_rows(value, rows)
    return replace(batch, **taken)


def split_rows(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Split rows into chunks of a size; the last may be smaller."""
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def token_log_probs(model: Any, samples: Samples, temperature: float) -> Tensor:
    """Log-probability of each completion token, given all previous tokens.

    These are of the full distribution at this temperature: `top_p` restricts sampling only, and is
    not part of the policy.

    Args:
        model: A causal language model of Transformers.
        samples: The completions.
        temperature: Logits are divided by it.

    Returns:
        fp32 `[rows, completion width]`, with gradient; 0 where the completion mask is False.
    """
    width = samples.completion_ids.shape[1]
    inputs = whole_inputs(model, samples)
    if _takes(model, "logits_to_keep"):
        inputs["logits_to_keep"] = width + 1
    # A token was sampled from the logits at the position before it.
    logits = model(**inputs).logits[:, -width - 1 : -1].float() / temperature
    chosen = logits.gather(2, samples.completion_ids.unsqueeze(2)).squeeze(2)
    return (chosen - logits.logsumexp(2)).masked_fill(~samples.completion_mask, 0.0)


def whole_inputs(model: Any, samples: Samples) -> dict[str, Any]:
    """The arguments of a forward pass over prompts and completions."""
    inputs = {
        "input_ids": samples.input_ids,
        "attention_mask": samples.attention_mask.long(),
        "use_cache": False,
    }
    if _takes(model, "position_ids"):
        inputs["position_ids"] = samples.position_ids
    return inputs


@torch.no_grad()
def in_chunks(
    function: Callable[[Samples], Tensor], model: Any, samples: Samples, rows: int
) -> Tensor:
    """Call a function on chunks of samples, with the model in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        parts = split_rows(torch.arange(len(samples)), rows)
        return torch.cat([function(take_rows(samples, part)) for part in parts])
    finally:
        model.train(was_training)


def _takes(model: Any, argument: str) -> bool:
    """Whether the forward method of a model has an argument."""
    return argument in inspect.signature(type(model).forward).parameters


EPSILON = 1e-8
"""Added to the variance, for values that are all equal."""


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale values to variance 1, over all tokens of all rows together.

    Args:
        values: Tensor of any shape.
        mask: Which values count; bool, same shape.
        shift_mean: Whether to shift the mean to 0.

    Returns:
        The whitened values; 0 where the mask is False. A single value has no variance and is
        unchanged, or 0 if the mean is shifted.
    """
    mean = values.masked_fill(~mask, 0.0).sum() / mask.sum()
    centred = values - mean
    # The unbiased estimate, over n - 1.
    variance = (centred.masked_fill(~mask, 0.0) ** 2).sum() / (mask.sum() - 1).clamp(min=1)
    if mask.sum() > 1:
        centred = centred * (variance + EPSILON).rsqrt()
    return (centred if shift_mean else centred + mean).masked_fill(~mask, 0.0)


def policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """The clipped loss of each token: `-min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)`.

    Args:
        log_probs: Log-probabilities under the policy, with gradient.
        old_log_probs: Log-probabilities under the policy that sampled; same shape.
        advantages: Advantages; same shape.
        cliprange: The clip range eps.

    Returns:
        The loss, and a bool mask of where it is clipped, so that there is no gradient.

    Source:
        Schulman et al. 2017 (arXiv 1707.06347), sec. 3, eq. 7, negated.
    """
    ratio = (log_probs - old_log_probs).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(unclipped, clipped), clipped > unclipped


def prompt_problems(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, room: int | None
) -> Iterator[str]:
    """Yield what is wrong with the prompts of a data set.

    `room` is the maximum number of tokens of a prompt; None for no limit.
    """
    if not len(rows):
        yield "train_dataset has no rows"
        return
    missing = [number for number, row in enumerate(rows) if "prompt" not in row]
    if missing:
        yield f"train_dataset: row {missing[0]} has no column prompt"
        return
    kinds = {type(row["prompt"]) for row in rows}
    if others := sorted(kind.__name__ for kind in kinds - {str, list}):
        yield f"train_dataset has a prompt of type {others[0]}: expected a text or messages"
        return
    if list in kinds and not tokenizer.chat_template:
        yield "train_dataset has messages as prompts, and the tokenizer has no chat template"
        return
    problems = []
    for number, row in enumerate(rows):
        length = len(prompt_ids(tokenizer, row["prompt"]))
        if not length:
            problems.append(f"the prompt of row {number} has no tokens")
        elif room is not None and length > room:
            problems.append(
                f"the prompt of row {number} has {length} tokens, and the context of the model "
                f"leaves room for {room} before a completion"
            )
    if problems:
        yield f"train_dataset: {first_few(problems, '; ')}"


class RoundSampler(data.Sampler[int]):
    """Samples the rows of a data set round by round, reshuffled in every epoch.

    The rows of a round are repeated, because the Trainer fetches them for each of the batches of
    the round. An incomplete last round is dropped.

    Args:
        num_rows: Rows of the data set.
        rows_per_round: Rows of a round.
        num_repeats: How often the rows of a round are repeated.
        seed: Seed of the order.
    """

    def __init__(self, num_rows: int, rows_per_round: int, num_repeats: int, seed: int) -> None:
        self.num_rows = num_rows
        self.rows_per_round = rows_per_round
        self.num_repeats = num_repeats
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called by the Trainer, also when it resumes within an epoch."""
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
        max_completion_length: Maximum number of tokens of a completion.
        temperature: Logits are divided by it; 0 for greedy decoding.
        top_p: Probability mass to sample from; 1 for all of it.
        end_tokens: Token ids that end a completion.
        pad_token: Token id of padding.
    """

    max_completion_length: int
    temperature: float
    top_p: float
    end_tokens: tuple[int, ...]
    pad_token: int


class Sampler:
    """Completes prompts with a model and its tokenizer.

    Args:
        model: A causal language model of Transformers.
        tokenizer: Tokenizer of the model.
        max_completion_length: See `Sampling`.
        temperature: See `Sampling`.
        top_p: See `Sampling`.
        stop: A text that also ends a completion, if it is a single token.

    Raises:
        SettingsError: There is no end token.
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
        self.sampling = Sampling(
            max_completion_length, temperature, top_p, ends, ends[0] if pad is None else pad
        )

    def sample(
        self, prompts: Sequence[Sequence[int]], *, temperature: float | None = None
    ) -> Samples:
        """Sample a completion of each prompt, given as token ids, with torch's random state.

        `temperature` overrides the sampler's.
        """
        sampling = self.sampling
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        return sample(self._model, prompts, sampling)

    def texts(self, completions: Sequence[Any]) -> list[str]:
        """Decode the token ids of completions, without special tokens."""
        texts: list[str] = self._tokenizer.batch_decode(completions, skip_special_tokens=True)
        return texts


def ids_of(samples: Samples) -> list[list[int]]:
    """Token ids of each completion, including the end token."""
    pairs = zip(samples.completion_ids, samples.completion_mask, strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch within the block, and restore the random state afterwards."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield


def end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The end tokens of the model's generation config and of the tokenizer, as ids.

    Raises:
        SettingsError: There is none.
    """
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list | tuple) else [configured]
    tokens = {token for token in (*ids, tokenizer.eos_token_id) if token is not None}
    if not tokens:
        raise SettingsError(
            "neither the model nor the tokenizer has an end token: set "
            "model.generation_config.eos_token_id to the id of the token that ends a completion"
        )
    return tuple(sorted(tokens))


def left_padded(prompts: Sequence[Sequence[int]], pad_token: int) -> tuple[Tensor, Tensor]:
    """Left-pad token ids of prompts; returns the ids and a mask that is False on padding."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_token] * (width - len(row)) + list(row) for row in prompts])
    lengths = torch.tensor([[len(row)] for row in prompts])
    return ids, torch.arange(width) >= width - lengths


@torch.no_grad()
def sample(model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Samples:
    """Sample a completion of at least one token per prompt, with torch's random state."""
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
    """Replace the generation config of a model within the block."""
    from transformers import GenerationConfig

    options: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        options = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
        }
    own = model.generation_config
    model.generation_config = GenerationConfig(
        **options,
        max_new_tokens=sampling.max_completion_length,
        eos_token_id=list(sampling.end_tokens),
        pad_token_id=sampling.pad_token,
    )
    try:
        yield
    finally:
        model.generation_config = own
