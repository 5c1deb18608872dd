"""What the implicit reward model is trained by: by hand, and by plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytestmark = pytest.mark.train

REWARDS = arrays.arrays(np.float64, 6, elements=st.floats(-5, 5))


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@given(rewards=REWARDS, outcomes=arrays.arrays(np.float64, 6, elements=st.floats(0, 1)))
def test_cross_entropy(rewards: np.ndarray, outcomes: np.ndarray) -> None:
    import torch

    from trimtab.training.prime import cross_entropy_loss

    found = cross_entropy_loss(torch.from_numpy(rewards), torch.from_numpy(outcomes))
    for loss, reward, outcome in zip(found.tolist(), rewards, outcomes, strict=True):
        chance = sigma(reward)
        expected = -(outcome * math.log(chance) + (1 - outcome) * math.log(1 - chance))
        assert loss == pytest.approx(expected, abs=1e-9)


def test_opposites_by_hand() -> None:
    import torch

    from trimtab.training.prime import mean_of_opposites

    rewards = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0], requires_grad=True)
    outcomes = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    found = mean_of_opposites(rewards, outcomes, 3)
    assert found[:3].tolist() == [4.0, 1.0, 1.0]
    assert found[3:].isnan().all()
    assert not found.requires_grad


@given(rewards=REWARDS, right=arrays.arrays(np.bool_, 6))
def test_dpo_on_one_side_at_a_time(rewards: np.ndarray, right: np.ndarray) -> None:
    """And its gradients: minus what is left to be sure of, for right ones; plus, for wrong ones."""
    import torch

    from trimtab.training.prime import dpo_loss, mean_of_opposites

    given_rewards = torch.tensor(rewards, requires_grad=True)
    outcomes = torch.tensor(right, dtype=torch.float64)
    losses = dpo_loss(given_rewards, outcomes, mean_of_opposites(given_rewards, outcomes, 3))
    torch.autograd.backward(losses.sum())
    assert given_rewards.grad is not None
    for row in range(6):
        group = range(row // 3 * 3, row // 3 * 3 + 3)
        others = [rewards[j] for j in group if right[j] != right[row]]
        if not others:
            assert losses[row].item() == given_rewards.grad[row].item() == 0.0
            continue
        sign = 1.0 if right[row] else -1.0
        lead = sign * (rewards[row] - np.mean(others))
        assert losses[row].item() == pytest.approx(-math.log(sigma(lead)), abs=1e-9)
        assert given_rewards.grad[row].item() == pytest.approx(-sign * sigma(-lead), abs=1e-9)


def test_with_one_of_each_it_is_the_gradient_of_dpo() -> None:
    """Rafailov et al. 2023, eq. 7, of one pair."""
    import torch

    from trimtab.training.prime import dpo_loss, mean_of_opposites

    outcomes = torch.tensor([0.0, 1.0])
    one, other = (torch.tensor([0.3, -0.4], requires_grad=True) for _ in range(2))
    torch.autograd.backward(dpo_loss(one, outcomes, mean_of_opposites(one, outcomes, 2)).sum())
    torch.autograd.backward(-torch.nn.functional.logsigmoid(other[1] - other[0]))
    torch.testing.assert_close(one.grad, other.grad)


@given(rewards=REWARDS, right=arrays.arrays(np.bool_, 6))
def test_pair_accuracy(rewards: np.ndarray, right: np.ndarray) -> None:
    import torch

    from trimtab.training.prime import pair_accuracy

    pairs = [
        rewards[i] > rewards[j]
        for first in (0, 3)
        for i in range(first, first + 3)
        for j in range(first, first + 3)
        if right[i] and not right[j]
    ]
    outcomes = torch.tensor(right, dtype=torch.float64)
    assert pair_accuracy(torch.tensor(rewards), outcomes, 3) == (sum(pairs), len(pairs))
