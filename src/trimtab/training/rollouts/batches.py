"""Completions as tensors: some of their rows, their log-probabilities, means over their tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch", bound=Any)


@dataclass(frozen=True)
class Samples:
    """Completions of prompts; one row for each.

    Attributes:
        prompt_ids: Padded on the left. `[rows, prompt width]`, int64.
        prompt_mask: False on the padding. Bool.
        completion_ids: Padded on the right. `[rows, completion width]`, int64.
        completion_mask: True up to and with the token that ended the completion. Bool.
        has_ended: Whether a completion ended by itself, before the length limit. `[rows]`, bool.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    has_ended: Tensor

    def __len__(self) -> int:
        return len(self.completion_ids)

    @property
    def input_ids(self) -> Tensor:
        """Prompt and completion."""
        return torch.cat([self.prompt_ids, self.completion_ids], dim=1)

    @property
    def attention_mask(self) -> Tensor:
        """False on the padding at both ends."""
        return torch.cat([self.prompt_mask, self.completion_mask], dim=1)

    @property
    def position_ids(self) -> Tensor:
        """Positions counted from the first token that is no padding, as `generate` counts them."""
        return (self.attention_mask.long().cumsum(1) - 1).clamp(min=0)

    @property
    def num_tokens(self) -> int:
        """Completion tokens of all rows."""
        return int(self.completion_mask.sum())


@dataclass(frozen=True)
class PolicyBatch:
    """Completions, and what the policy's loss needs of when they were sampled.

    Attributes:
        samples: The completions.
        log_probs: Under the policy that sampled them, 0 where the completion mask is False.
            `[rows, tokens]`, fp32.
        advantages: Of each token, likewise.
        num_tokens: Completion tokens of the mini-batch that these rows are a part of; losses are
            averaged over them.
    """

    samples: Samples
    log_probs: Tensor
    advantages: Tensor
    num_tokens: int


def take_rows(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a dataclass of tensors, in the order asked for.

    Args:
        batch: Fields that are tensors have rows as their first axis; fields that are dataclasses
            are such as this one; all others are kept.
        rows: Indices.
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
    """Rows in parts of one size; the last may be smaller."""
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def token_log_probs(model: Any, samples: Samples, temperature: float) -> Tensor:
    """Log-probability of each completion token, given all that precedes it.

    Of the whole distribution at this temperature: `top_p` leaves tokens out when they are sampled,
    and is not part of the policy.

    Args:
        model: A causal language model of transformers; with its gradient, unless that is off.
        samples: The completions.
        temperature: Logits are divided by it.

    Returns:
        `[rows, completion width]`, fp32; 0 where the completion mask is False.
    """
    width = samples.completion_ids.shape[1]
    inputs = whole_inputs(model, samples)
    if _takes(model, "logits_to_keep"):
        inputs["logits_to_keep"] = width + 1
    # The logits before a token are those that it was sampled from.
    logits = model(**inputs).logits[:, -width - 1 : -1].float() / temperature
    chosen = logits.gather(2, samples.completion_ids.unsqueeze(2)).squeeze(2)
    return (chosen - logits.logsumexp(2)).masked_fill(~samples.completion_mask, 0.0)


def whole_inputs(model: Any, samples: Samples) -> dict[str, Any]:
    """Arguments of a model's forward pass over prompts and completions."""
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
    """What a function gives for samples, some rows at a time, with the model in evaluation mode.

    Args:
        function: Calls the model.
        model: Its mode is put back.
        samples: All samples.
        rows: Rows for each call.
    """
    was_training = model.training
    model.eval()
    try:
        parts = split_rows(torch.arange(len(samples)), rows)
        return torch.cat([function(take_rows(samples, part)) for part in parts])
    finally:
        model.train(was_training)


def _takes(model: Any, argument: str) -> bool:
    """Whether the forward pass of a model's class has an argument."""
    return argument in inspect.signature(type(model).forward).parameters


EPSILON = 1e-8
"""Added to the variance, so that equal values stay finite."""


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask is True, over all rows together."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum()


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale values to variance 1, over all tokens of all rows together.

    Args:
        values: Any shape.
        mask: Which of them count; bool, of the same shape.
        shift_mean: Whether their mean becomes 0, or stays.

    Returns:
        The whitened values; 0 where the mask is False. One value alone has no variance and is
        returned as it is, or as 0 if the mean is shifted.
    """
    mean = masked_mean(values, mask)
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
        log_probs: Under the policy, with gradient.
        old_log_probs: Under the policy that sampled. Same shape.
        advantages: Same shape.
        cliprange: eps.

    Returns:
        The loss, and where it is clipped: the other term is smaller, so there is no gradient.

    Source:
        Schulman et al. 2017 (arXiv 1707.06347), sec. 3, eq. 7, as a loss.
    """
    ratio = (log_probs - old_log_probs).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(unclipped, clipped), clipped > unclipped
