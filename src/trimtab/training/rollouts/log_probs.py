"""Log-probabilities of the tokens of completions, under a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trimtab.training.rollouts.samples import Samples, split, take

__all__ = ["in_chunks", "token_log_probs", "whole_inputs"]


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
        parts = split(torch.arange(len(samples)), rows)
        return torch.cat([function(take(samples, part)) for part in parts])
    finally:
        model.train(was_training)


def _takes(model: Any, argument: str) -> bool:
    """Whether the forward pass of a model's class has an argument."""
    return argument in inspect.signature(type(model).forward).parameters
