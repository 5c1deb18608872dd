"""Rewards of tokens, and advantages by generalised advantage estimation."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["advantages_and_returns", "token_rewards"]


def token_rewards(scores: Tensor, penalties: Tensor, mask: Tensor) -> Tensor:
    """Reward of each token: minus its penalty, and the score of the completion at the last.

    Args:
        scores: One for each completion. `[rows]`
        penalties: For each token; what is subtracted from its reward. `[rows, tokens]`
        mask: Tokens of the completions, which begin at the first column.

    Source:
        Ouyang et al. 2022 (arXiv 2203.02155), eq. 2, as one reward for each token.
    """
    last = torch.nn.functional.one_hot(mask.sum(1) - 1, mask.shape[1]).bool()
    rewards = -penalties.masked_fill(~mask, 0.0)
    return rewards + torch.where(last, scores.unsqueeze(1), 0.0)


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates, and the returns that the critic is to predict.

    With `delta_t = r_t + gamma V_{t+1} - V_t`, the advantage is `A_t = delta_t + gamma lam A_{t+1}`
    and the return `A_t + V_t`. Beyond the last token of a completion both are 0, also where the
    length limit cut it: the task ends there.

    Args:
        rewards: Of each token. `[rows, tokens]`
        values: What the critic expects before each token. `[rows, tokens]`
        mask: Tokens of the completions, which begin at the first column.
        gamma: Discount of what comes later.
        lam: 0 trusts the critic, 1 the rewards.

    Returns:
        Advantages and returns, 0 where the mask is False. `[rows, tokens]`

    Source:
        Schulman et al. 2016 (arXiv 1506.02438), sec. 3, eq. 16; truncated as in Schulman et al.
        2017 (arXiv 1707.06347), sec. 5, eqs. 11 and 12.
    """
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(rewards)
    following = following_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following = delta + gamma * lam * following
        following_value = values[:, t]
        advantages[:, t] = following
    return advantages, advantages + values
