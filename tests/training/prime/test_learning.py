"""PRIME learns to write a given character."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny
from tests.training.rollouts.trainers import logged, prime
from tests.training.tiny_trainers import train

pytestmark = pytest.mark.train


def has_seven(completions: Sequence[str], **_: Any) -> list[float]:
    return [float("7" in text) for text in completions]


@pytest.mark.parametrize("reward_loss", ["ce", "dpo"])
def test_it_learns_over_seeds(reward_loss: str, tmp_path: Path) -> None:
    """From less than two fifths of the completions to more than four fifths."""
    good = 0
    for seed in range(5):
        trainer = prime(
            tiny.model(seed),
            tmp_path,
            reward_funcs=has_seven,
            seed=seed,
            max_steps=24,
            num_generations=4,
            per_device_train_batch_size=16,
            reward_loss=reward_loss,
        )
        train(trainer)
        rewards = logged(trainer, "reward")
        assert len(rewards) == 12
        good += rewards[0] < 0.4 and sum(rewards[-3:]) / 3 > 0.8
    assert good >= 4


def test_process_rewards_alone_teach_it(tmp_path: Path) -> None:
    """What the reward model says of tokens is enough, without the outcome in the advantage."""
    good = 0
    for seed in range(5):
        trainer = prime(
            tiny.model(seed),
            tmp_path,
            reward_funcs=has_seven,
            seed=seed,
            max_steps=30,
            num_generations=4,
            per_device_train_batch_size=16,
            outcome_coef=0.0,
        )
        train(trainer)
        rewards = logged(trainer, "reward")
        good += rewards[0] < 0.4 and sum(rewards[-3:]) / 3 > 0.8
    assert good >= 4
