"""The critic: a copy of the policy's transformer with one number for every token."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.training.rollouts.log_probs import whole_inputs
from trimtab.training.rollouts.samples import Samples

__all__ = ["Critic"]


class Critic(nn.Module):
    """A transformer with a linear value head on its last hidden states.

    The head starts at zero, so every value is 0 before the first step, whatever the seed; and the
    transformer moves from the second step on.

    Args:
        policy: A causal language model of transformers; its transformer is copied.
    """

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.body = copy.deepcopy(policy.base_model)
        self.head = nn.Linear(policy.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def activation_checkpointing_enable(self) -> None:
        """Compute activations twice, and keep few of them."""
        self.body.activation_checkpointing_enable()

    def forward(self, samples: Samples) -> Tensor:
        """What is expected from each completion token on, before that token is known.

        Returns:
            `[rows, completion width]`, fp32; 0 where the completion mask is False.
        """
        width = samples.completion_ids.shape[1]
        hidden = self.body(**whole_inputs(self.body, samples)).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):
            values = self.head(hidden[:, -width - 1 : -1].float()).squeeze(2)
        return values.masked_fill(~samples.completion_mask, 0.0)
