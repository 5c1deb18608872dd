"""Rewards and advantages of tokens: by hand, and by the sum that defines them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytestmark = pytest.mark.train

NUMBERS = arrays.arrays(np.float64, (3, 5), elements=st.floats(-5, 5))
LENGTHS = st.tuples(*[st.integers(1, 5)] * 3)


def test_rewards_by_hand() -> None:
    import torch

    from trimtab.training.ppo import token_rewards

    rewards = token_rewards(
        scores=torch.tensor([2.0, -1.0, 0.5]),
        penalties=torch.tensor([[0.25, 0.5, 1.0], [0.25, 9.0, 9.0], [-1.0, 0.25, 9.0]]),
        mask=torch.tensor([[True, True, True], [True, False, False], [True, True, False]]),
    )
    assert rewards.tolist() == [[-0.25, -0.5, 1.0], [-1.25, 0.0, 0.0], [1.0, 0.25, 0.0]]


def test_advantages_by_hand() -> None:
    """Two tokens after each other: rewards 1 and 2, values 0.5 and 4, gamma 1/2, lambda 1/2."""
    import torch

    from trimtab.training.ppo import advantages_and_returns

    advantages, returns = advantages_and_returns(
        torch.tensor([[1.0, 2.0, 7.0]]),
        torch.tensor([[0.5, 4.0, 7.0]]),
        torch.tensor([[True, True, False]]),
        gamma=0.5,
        lam=0.5,
    )
    # delta_2 = 2 - 4 = -2; delta_1 = 1 + 4 / 2 - 0.5 = 2.5; A_1 = 2.5 - 2 / 4
    assert advantages.tolist() == [[2.0, -2.0, 0.0]]
    assert returns.tolist() == [[2.5, 2.0, 0.0]]


@given(rewards=NUMBERS, values=NUMBERS, lengths=LENGTHS, gamma=st.floats(0, 1), lam=st.floats(0, 1))
def test_advantages_are_the_sum_that_defines_them(
    rewards: np.ndarray, values: np.ndarray, lengths: tuple[int, ...], gamma: float, lam: float
) -> None:
    """Eq. 16 of arXiv 1506.02438: sum over l of (gamma lambda)^l delta_{t+l}."""
    import torch

    from trimtab.training.ppo import advantages_and_returns

    expected = np.zeros_like(rewards)
    for row, length in enumerate(lengths):
        deltas = [
            rewards[row, t]
            + gamma * (values[row, t + 1] if t + 1 < length else 0.0)
            - values[row, t]
            for t in range(length)
        ]
        for t in range(length):
            expected[row, t] = sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, length))
    mask = np.arange(5) < np.array(lengths)[:, None]
    advantages, returns = advantages_and_returns(
        torch.from_numpy(rewards),
        torch.from_numpy(values),
        torch.from_numpy(mask),
        gamma=gamma,
        lam=lam,
    )
    np.testing.assert_allclose(advantages.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(returns.numpy(), expected + values * mask, atol=1e-12)


@given(rewards=NUMBERS, values=NUMBERS, lengths=LENGTHS)
def test_lambda_1_and_gamma_1_is_what_comes_less_what_was_expected(
    rewards: np.ndarray, values: np.ndarray, lengths: tuple[int, ...]
) -> None:
    import torch

    from trimtab.training.ppo import advantages_and_returns

    mask = np.arange(5) < np.array(lengths)[:, None]
    _, returns = advantages_and_returns(
        torch.from_numpy(rewards),
        torch.from_numpy(values),
        torch.from_numpy(mask),
        gamma=1.0,
        lam=1.0,
    )
    to_come = np.cumsum((rewards * mask)[:, ::-1], 1)[:, ::-1] * mask
    np.testing.assert_allclose(returns.numpy(), to_come, atol=1e-12)
