"""The losses of PPO, token by token, and the estimators of the KL divergence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["KLEstimator", "kl_estimate", "policy_loss", "value_loss"]

KLEstimator = Literal["k1", "k2", "k3"]


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


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error of each value, the larger with and without clipping.

    Args:
        values: Of the critic, with gradient.
        old_values: Of the critic when the completions were sampled. Same shape.
        returns: What it is to predict. Same shape.
        cliprange: How far a value can move from the old one before there is no gain in more.

    Returns:
        The loss, and where it is clipped.

    Source:
        The squared error is L^VF of Schulman et al. 2017 (arXiv 1707.06347), sec. 5, eq. 9. The
        clip is not in that paper, but in its code: Engstrom et al. 2020 (arXiv 2005.12729), sec. 3.
        The half is as in that code.
    """
    clipped_values = old_values + (values - old_values).clamp(-cliprange, cliprange)
    unclipped = 0.5 * (values - returns) ** 2
    clipped = 0.5 * (clipped_values - returns) ** 2
    return torch.maximum(unclipped, clipped), clipped > unclipped


def kl_estimate(log_probs: Tensor, ref_log_probs: Tensor, estimator: KLEstimator) -> Tensor:
    """An estimate of KL(policy || reference) from one sampled token, for each token.

    With `d = log_probs - ref_log_probs`: k1 is `d`, unbiased and of either sign; k2 is `d^2 / 2`,
    biased, never negative; k3 is `exp(-d) - 1 + d`, unbiased and never negative. As a loss, k1 has
    a gradient of expectation zero, and that of k2 is the gradient of the KL divergence.

    Args:
        log_probs: Under the policy that sampled the tokens.
        ref_log_probs: Under the reference. Same shape.
        estimator: Which.

    Source:
        J. Schulman, "Approximating KL Divergence", 2020 (joschu.net/blog/kl-approx.html).
    """
    difference = log_probs - ref_log_probs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference**2
    return (-difference).expm1() + difference
