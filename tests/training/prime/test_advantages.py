"""Advantages of PRIME: by hand, and by plain loops over completions and tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytestmark = pytest.mark.train


def test_outcomes_by_hand() -> None:
    import torch

    from trimtab.training.prime import outcome_advantages

    outcomes = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    assert outcome_advantages(outcomes, 3).tolist() == [1.0, -0.5, -0.5, 0.0, 0.0, 0.0]


def test_process_rewards_by_hand() -> None:
    """Two completions of one prompt, of 3 and 2 tokens, and a discount of 1/2."""
    import torch

    from trimtab.training.prime import process_advantages

    advantages = process_advantages(
        torch.tensor([[1.0, 2.0, 3.0], [4.0, 2.0, 9.0]]),
        torch.tensor([[True, True, True], [True, True, False]]),
        2,
        gamma=0.5,
    )
    # Baselines: 3, the mean of the other's 4 and 2; and 2, the mean of 1, 2 and 3.
    # What is beyond them: -2 -1 0, and 2 0. Summed from the end: 0, -1, -2.5, and 0, 2.
    assert advantages.tolist() == [[-2.5, -1.0, 0.0], [2.0, 0.0, 0.0]]


@given(
    rewards=arrays.arrays(np.float64, (6, 4), elements=st.floats(-5, 5)),
    lengths=st.tuples(*[st.integers(1, 4)] * 6),
    num_generations=st.sampled_from([2, 3, 6]),
    gamma=st.floats(0, 1),
)
def test_process_rewards_are_the_sum_that_defines_them(
    rewards: np.ndarray, lengths: tuple[int, ...], num_generations: int, gamma: float
) -> None:
    import torch

    from trimtab.training.prime import process_advantages

    expected = np.zeros_like(rewards)
    for row, length in enumerate(lengths):
        first = row // num_generations * num_generations
        others = [j for j in range(first, first + num_generations) if j != row]
        baseline = np.mean([rewards[j, : lengths[j]].mean() for j in others])
        for t in range(length):
            expected[row, t] = sum(
                gamma ** (s - t) * (rewards[row, s] - baseline) for s in range(t, length)
            )
    mask = np.arange(4) < np.array(lengths)[:, None]
    found = process_advantages(
        torch.from_numpy(rewards), torch.from_numpy(mask), num_generations, gamma=gamma
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_scaled_to_the_largest_sum_to_the_end() -> None:
    import torch

    from trimtab.training.prime import scaled_to_returns

    rewards = torch.tensor([[3.0, -5.0, 1.0], [1.0, 1.0, 0.0]])  # sums: -1, -4, 1 and 2, 1, 0
    assert scaled_to_returns(rewards).tolist() == [[0.75, -1.25, 0.25], [0.25, 0.25, 0.0]]
    assert scaled_to_returns(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2
