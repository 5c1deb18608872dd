"""Sample completions with transformers' `generate`, by the settings of the run and no others.

What a checkpoint brings in its generation config (Qwen's has top_k, top_p and a repetition penalty)
would make the samples come from another distribution than the one that is trained. It is set aside
while sampling; only its end tokens are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import SettingsError
from trimtab.training.rollouts.samples import Samples

__all__ = ["Sampling", "end_tokens", "left_padded", "sample"]


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
