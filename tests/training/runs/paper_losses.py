"""The losses of the papers in plain torch: one sequence at a time, no padding, no batch.

Every function takes log-probabilities as `log_probs` gives them: one for each token of a
completion, its end token included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Completions = Sequence[Tensor]


def log_probs(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """Log-probability of each token of a completion after a prompt."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(1)[range(len(completion)), list(completion)]


def sft(policy: Completions) -> Tensor:
    """Mean negative log-likelihood of all completion tokens of the batch."""
    return -torch.cat(list(policy)).mean()


def dpo(
    chosen: Completions,
    rejected: Completions,
    chosen_reference: Completions,
    rejected_reference: Completions,
    beta: float,
) -> Tensor:
    """Rafailov et al., arXiv 2305.18290, Eq. 7."""
    losses = [
        -logsigmoid(beta * ((w.sum() - w_ref.sum()) - (r.sum() - r_ref.sum())))
        for w, r, w_ref, r_ref in zip(
            chosen, rejected, chosen_reference, rejected_reference, strict=True
        )
    ]
    return torch.stack(losses).mean()


def kto(
    policy: Completions,
    reference: Completions,
    labels: Sequence[bool],
    policy_mismatched: Completions,
    reference_mismatched: Completions,
    beta: float,
    desirable: float,
    undesirable: float,
) -> Tensor:
    """Ethayarajh et al., arXiv 2402.01306, section 4.1, with its estimate of z_0 from a batch."""
    pairs = zip(policy_mismatched, reference_mismatched, strict=True)
    z0 = torch.stack([p.sum() - r.sum() for p, r in pairs]).mean().clamp(min=0)
    losses = []
    for p, r, is_good in zip(policy, reference, labels, strict=True):
        reward = p.sum() - r.sum()
        if is_good:
            losses.append(desirable * (1 - torch.sigmoid(beta * (reward - z0))))
        else:
            losses.append(undesirable * (1 - torch.sigmoid(beta * (z0 - reward))))
    return torch.stack(losses).mean()


def orpo(
    whole_chosen: Completions, chosen: Completions, rejected: Completions, weight: float
) -> Tensor:
    """Hong et al., arXiv 2403.07691, Eqs. 3 to 7; the first term is that of the whole text in TRL.

    Args:
        whole_chosen: Of prompt and chosen completion, all tokens but the first.
        chosen: Of the chosen completions.
        rejected: Of the rejected ones.
        weight: Lambda.
    """

    def log_odds(tokens: Tensor) -> Tensor:
        probability = tokens.mean().exp()
        return (probability / (1 - probability)).log()

    pairs = zip(chosen, rejected, strict=True)
    ratios = torch.stack([logsigmoid(log_odds(w) - log_odds(r)) for w, r in pairs])
    return sft(whole_chosen) - weight * ratios.mean()


def simpo(chosen: Completions, rejected: Completions, beta: float, gamma: float) -> Tensor:
    """Meng et al., arXiv 2405.14734, Eq. 6."""
    losses = [
        -logsigmoid(beta / len(w) * w.sum() - beta / len(r) * r.sum() - gamma)
        for w, r in zip(chosen, rejected, strict=True)
    ]
    return torch.stack(losses).mean()


def group_advantages(rewards: Tensor, size: int) -> Tensor:
    """Shao et al., arXiv 2402.03300, section 4.1.2: centred and scaled within each group."""
    groups = rewards.view(-1, size)
    scaled = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    return scaled.flatten()


def grpo(
    policy: Completions,
    old: Completions,
    reference: Completions,
    advantages: Tensor,
    clip: float,
    beta: float,
    mean_over: str,
    corrects_divergence: bool,
) -> Tensor:
    """Shao et al., arXiv 2402.03300, Eqs. 3 and 4.

    Args:
        policy: Now.
        old: When it sampled.
        reference: Of the KL term.
        advantages: One for each sample.
        clip: Epsilon.
        beta: Of the KL term.
        mean_over: `sequences`, as in the paper, or `tokens`, as in Eq. 8 of DAPO (2503.14476).
        corrects_divergence: Multiply the KL term by the ratio, as DeepSeek-V3.2 (2512.02556) does.
    """
    terms = []
    for p, o, r, advantage in zip(policy, old, reference, advantages, strict=True):
        ratio = (p - o).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        divergence = ((r - p).exp() - (r - p) - 1) * (ratio if corrects_divergence else 1)
        terms.append(-(gain - beta * divergence))
    if mean_over == "tokens":
        return torch.cat(terms).mean()
    return torch.stack([term.mean() for term in terms]).mean()


def leave_one_out(rewards: Tensor, size: int) -> Tensor:
    """Ahmadian et al., arXiv 2402.14740, section 3: each reward less the mean of the others."""
    advantages = []
    for place, reward in enumerate(rewards):
        start = place - place % size
        others = [rewards[i] for i in range(start, start + size) if i != place]
        advantages.append(reward - torch.stack(others).mean())
    return torch.stack(advantages)


def rloo(policy: Completions, advantages: Tensor) -> Tensor:
    """A loss whose gradient is the estimator of arXiv 2402.14740, section 3: REINFORCE."""
    pairs = zip(policy, advantages, strict=True)
    return -torch.stack([advantage * p.sum() for p, advantage in pairs]).mean()
