"""The same tensors through the PPO of TRL 1.12.0, the last release that has one: its figures.

The completions fill the length limit. TRL puts the score of a shorter one on the position after
its last token, and lets the critic learn a value there; here it is on the last token.
"""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.train

TRL: dict[tuple[str, bool], dict[str, Any]] = {
    ("k1", False): {
        "rewards": [[-0.02, 0.01, 1.05], [0.0, 0.02, -0.54]],
        "advantages": [
            [0.38665567, 0.3438016, 1.53097515],
            [-0.72988974, -0.18145031, -1.35009237],
        ],
        "returns": [[0.5596, 0.73, 1.05], [-0.311616, -0.3328, -0.54]],
        "policy_loss": 0.08952152,
        "value_loss": 0.15126078,
    },
    ("k3", True): {
        "rewards": [
            [-0.08668442, -0.08390515, 1.93630923],
            [-0.0828453, -0.08723209, -1.12207685],
        ],
        "advantages": [
            [0.43342498, 0.57972608, 1.47702671],
            [-0.76973581, -0.5270552, -1.19338676],
        ],
        "returns": [
            [0.88476658, 1.2742375, 1.93630923],
            [-0.77341704, -0.85912742, -1.12207685],
        ],
        "policy_loss": 0.07019112,
        "value_loss": 0.59056259,
    },
}
"""KL estimator and whether rewards are whitened -> what TRL 1.12.0 computes."""


@pytest.mark.parametrize(("estimator", "whitened"), TRL)
def test_figures(estimator: Any, whitened: bool) -> None:
    import torch

    from trimtab.training.ppo import (
        advantages_and_returns,
        kl_estimate,
        token_rewards,
        value_loss,
    )
    from trimtab.training.rollouts.sampling import policy_loss, whiten

    def tensor(*rows: list[float]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    old = tensor([-1.0, -0.5, -2.0], [-0.3, -1.2, -0.7])
    reference = tensor([-1.2, -0.4, -1.5], [-0.3, -1.0, -1.1])
    values = tensor([0.1, 0.3, -0.2], [0.0, -0.4, 0.2])
    mask = torch.ones(2, 3, dtype=torch.bool)
    penalties = 0.1 * kl_estimate(old, reference, estimator)
    rewards = token_rewards(torch.tensor([1.0, -0.5], dtype=torch.float64), penalties, mask)
    if whitened:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = advantages_and_returns(rewards, values, mask, gamma=0.9, lam=0.8)
    advantages = whiten(advantages, mask)

    new = tensor([-0.7, -0.6, -2.1], [-0.3, -1.6, -0.4])
    new_values = tensor([0.5, 0.2, 0.4], [-0.1, -0.5, -0.3])
    policy_losses, is_clipped = policy_loss(new, old, advantages, 0.2)
    value_losses, is_value_clipped = value_loss(new_values, values, returns, 0.2)

    expected = TRL[estimator, whitened]
    for name, found in (("rewards", rewards), ("advantages", advantages), ("returns", returns)):
        assert found.tolist() == [pytest.approx(row, rel=1e-6) for row in expected[name]]
    assert policy_losses.mean().item() == pytest.approx(expected["policy_loss"], rel=1e-6)
    assert value_losses.mean().item() == pytest.approx(expected["value_loss"], rel=1e-6)
    assert is_clipped.double().mean().item() == pytest.approx(1 / 3)
    assert is_value_clipped.double().mean().item() == 0.5
