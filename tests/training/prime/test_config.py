"""Settings that PRIME refuses, and what is asked of rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny
from tests.training.rollouts.trainers import ROWS, prime, settings
from trimtab.errors import SettingsError

pytestmark = pytest.mark.train


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_generations": 1}, "num_generations is 1, expected at least 2"),
        ({"num_generations": 3}, "a round has 4 completions"),
        ({"cliprange": 0.0}, "cliprange is 0.0, expected a number above 0"),
        ({"beta": 0.0}, "beta is 0.0, expected a number above 0"),
        ({"gamma": 2.0}, "gamma is 2.0, expected a number from 0 to 1"),
        ({"outcome_coef": -1.0}, "outcome_coef is -1.0, expected a number that is not negative"),
        ({"outcome_coef": 0.0, "process_coef": 0.0}, "nothing would be learnt"),
        ({"reward_learning_rate": -1.0}, "reward_learning_rate is -1.0"),
        ({"reward_max_grad_norm": -1.0}, "reward_max_grad_norm is -1.0"),
        ({"reward_loss": "mse"}, "reward_loss is 'mse', expected 'ce' or 'dpo'"),
        ({"reward_update": "never"}, "reward_update is 'never', expected 'before' or 'after'"),
        ({"accuracy_lower_bound": 0.9}, "accuracy_lower_bound is 0.9 and accuracy_upper_bound 0.8"),
        ({"accuracy_upper_bound": 1.5}, "expected 0 <= lower <= upper <= 1"),
        ({"oversample_factor": 0.5}, "oversample_factor is 0.5, expected at least 1"),
    ],
)
def test_settings_that_cannot_be_used(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    from trimtab.training import PRIMEConfig

    with pytest.raises(SettingsError) as error:
        PRIMEConfig(**settings(tmp_path, **given))
    assert message in str(error.value)


def test_sizes(tmp_path: Path) -> None:
    from trimtab.training import PRIMEConfig

    args = PRIMEConfig(
        **settings(
            tmp_path,
            per_device_train_batch_size=6,
            num_mini_batches=4,
            num_generations=3,
            oversample_factor=1.3,
        )
    )
    assert (args.round_size, args.rows_per_round) == (24, 11)  # 10.4, rounded up


def test_too_few_prompts_for_a_round(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="has 3 rows, expected at least the 4 of a round"):
        prime(tiny.model(), tmp_path, train_dataset=ROWS[:3])


@pytest.mark.parametrize("reward", [-0.5, 1.5])
def test_outcomes_are_from_0_to_1(reward: float, tmp_path: Path) -> None:
    trainer = prime(
        tiny.model(), tmp_path, reward_funcs=lambda completions, **_: [reward] * len(completions)
    )
    with pytest.raises(
        SettingsError, match=f"a reward is {reward}, and PRIME learns from outcomes"
    ):
        trainer.train()
