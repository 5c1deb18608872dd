"""Advantages from what completions of one prompt are worth beside each other.

Completions of a prompt are `num_generations` rows after each other.
"""

from __future__ import annotations

from torch import Tensor

from trimtab.training.rollouts.whitening import EPSILON

__all__ = ["leave_one_out", "outcome_advantages", "process_advantages", "scaled_to_returns"]


def leave_one_out(values: Tensor, num_generations: int) -> Tensor:
    """For each completion, the mean over the other completions of its prompt."""
    groups = values.view(-1, num_generations)
    others = (groups.sum(1, keepdim=True) - groups) / (num_generations - 1)
    return others.reshape(-1)


def outcome_advantages(outcomes: Tensor, num_generations: int) -> Tensor:
    """What each completion is worth beyond the mean of the others of its prompt.

    Source:
        arXiv 2502.01456, advantage estimation: the term of the outcome, the same for every token.
    """
    return outcomes - leave_one_out(outcomes, num_generations)


def process_advantages(
    rewards: Tensor, mask: Tensor, num_generations: int, *, gamma: float
) -> Tensor:
    """Discounted sums of what each token is worth beyond the tokens of the other completions.

    The baseline of a completion is the mean, over the other completions of its prompt, of their
    mean reward of a token. It is subtracted from every token, and what is left is summed from each
    token to the last.

    Args:
        rewards: Process rewards of tokens. `[rows, tokens]`
        mask: Tokens of the completions, which begin at the first column.
        num_generations: Completions of each prompt.
        gamma: Discount of what comes later.

    Returns:
        `[rows, tokens]`, 0 where the mask is False.

    Source:
        arXiv 2502.01456, advantage estimation: the term of the process rewards. The authors' code
        counts the reward of a token K / (K - 1) times, and has its own completion among those of
        the baseline, which is the same for outcomes only; it leaves out the last token.
    """
    rewards = rewards.masked_fill(~mask, 0.0)
    means = rewards.sum(1) / mask.sum(1)
    beyond = rewards - leave_one_out(means, num_generations).unsqueeze(1)
    return discounted_returns(beyond.masked_fill(~mask, 0.0), gamma)


def discounted_returns(rewards: Tensor, gamma: float) -> Tensor:
    """Sums from each token to the last; `[rows, tokens]`."""
    returns = rewards.clone()
    for t in reversed(range(rewards.shape[1] - 1)):
        returns[:, t] += gamma * returns[:, t + 1]
    return returns


def scaled_to_returns(rewards: Tensor) -> Tensor:
    """Rewards divided by the largest sum, in size, of any completion from any token to its last.

    Args:
        rewards: Process rewards of a round, 0 beyond the completions. `[rows, tokens]`

    Source:
        `prime_norm = batch_norm` of the authors' code; not in arXiv 2502.01456.
    """
    return rewards / (discounted_returns(rewards, 1.0).abs().max() + EPSILON)
