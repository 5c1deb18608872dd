"""How the implicit reward model learns from outcomes: what it maximises on right completions.

Its reward of a token is `q_t = beta log(pi_rm / pi_ref)`, and of a completion the sum of these.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["cross_entropy", "dpo", "mean_of_opposites", "pair_accuracy"]


def cross_entropy(rewards: Tensor, outcomes: Tensor) -> Tensor:
    """Cross-entropy of the outcome, where the chance of a right completion is sigma(reward).

    Args:
        rewards: Of completions, with gradient. `[rows]`
        outcomes: From 0 to 1. `[rows]`

    Returns:
        The loss of each completion. `[rows]`

    Source:
        arXiv 2502.01456, the update of the implicit reward model.
    """
    return functional.binary_cross_entropy_with_logits(rewards, outcomes, reduction="none")


def dpo(rewards: Tensor, outcomes: Tensor, opposites: Tensor) -> Tensor:
    """Loss of preferring right completions to wrong ones of the same prompt, one side at a time.

    Of `-log sigma(reward of the right - reward of the wrong)`, the other side is held fixed, at
    the mean reward of the completions of the other outcome. So every completion has a loss of its
    own, in whatever batch it is.

    Args:
        rewards: Of completions, with gradient. `[rows]`
        outcomes: Right is above one half. `[rows]`
        opposites: From `mean_of_opposites`; NaN for completions that have none, whose loss is 0.

    Returns:
        The loss of each completion. `[rows]`

    Source:
        Rafailov et al. 2023 (arXiv 2305.18290), eq. 7, with its detached form in the authors' code
        of PRIME; arXiv 2502.01456 has cross-entropy alone.
    """
    signs = torch.where(outcomes > 0.5, 1.0, -1.0)
    losses = -functional.logsigmoid(signs * (rewards - opposites.nan_to_num()))
    return losses.masked_fill(opposites.isnan(), 0.0)


def mean_of_opposites(rewards: Tensor, outcomes: Tensor, num_generations: int) -> Tensor:
    """For each completion, the mean reward of those of its prompt with the other outcome.

    Args:
        rewards: Of completions; those of a prompt are rows after each other. `[rows]`
        outcomes: Right is above one half. `[rows]`
        num_generations: Completions of each prompt.

    Returns:
        `[rows]`; NaN where there is none.
    """
    rewards = rewards.detach().view(-1, num_generations)
    right = outcomes.view(-1, num_generations) > 0.5

    def mean(of: Tensor) -> Tensor:
        return (rewards * of).sum(1, keepdim=True) / of.sum(1, keepdim=True)

    return torch.where(right, mean(~right), mean(right)).reshape(-1)


def pair_accuracy(rewards: Tensor, outcomes: Tensor, num_generations: int) -> tuple[int, int]:
    """How often the right one of two completions of a prompt has the larger reward.

    Returns:
        Pairs that it is so for, and all pairs of a right and a wrong completion.
    """
    rewards = rewards.view(-1, num_generations)
    right = outcomes.view(-1, num_generations) > 0.5
    is_pair = right.unsqueeze(2) & ~right.unsqueeze(1)
    is_larger = rewards.unsqueeze(2) > rewards.unsqueeze(1)
    return int((is_pair & is_larger).sum()), int(is_pair.sum())
