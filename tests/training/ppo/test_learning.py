"""PPO learns to write a given character."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training import tiny
from tests.training.rollouts.trainers import logged, ppo, sevens
from tests.training.tiny_trainers import train

pytestmark = pytest.mark.train


def test_it_learns_over_seeds(tmp_path: Path) -> None:
    """From less than a fifth of the characters to more than three fifths."""
    good = 0
    for seed in range(5):
        trainer = ppo(
            tiny.model(seed),
            tmp_path,
            reward_funcs=sevens,
            seed=seed,
            max_steps=60,
            num_ppo_epochs=4,
            per_device_train_batch_size=16,
        )
        train(trainer)
        rewards = logged(trainer, "reward")
        assert len(rewards) == 15
        good += sum(rewards[:3]) / 3 < 0.2 and sum(rewards[-3:]) / 3 > 0.6
    assert good >= 4
