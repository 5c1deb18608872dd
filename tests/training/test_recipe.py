"""Settings that are out of range are refused; what decides a result is recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.errors import SettingsError
from trimtab.training.recipe import Recipe, trainer_arguments


@pytest.mark.parametrize(
    ("recipe", "message"),
    [({"steps": 0}, "steps is 0"), ({"seed": -1}, "seed is -1"), ({"seed": 2**32}, "seed is 429")],
)
def test_out_of_range(recipe: dict[str, int], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Recipe(**recipe)


def test_settings_name_only_what_an_algorithm_uses() -> None:
    grpo = Recipe(steps=7).settings("grpo", {"kl_beta": 0.0})
    sft = Recipe(steps=7).settings("sft", {"loss_type": "nll"})
    assert grpo["steps"] == sft["steps"] == 7
    assert grpo["shots"] == ["3+4=7", "2+9=11"]
    assert set(grpo) - set(sft) == {"num_generations", "max_completion_tokens", "kl_beta"}
    assert set(sft) - set(grpo) == {"loss_type"}


def test_every_setting_reaches_the_trainer(tmp_path: Path) -> None:
    recipe = Recipe(
        steps=3,
        seed=5,
        sequences_per_step=16,
        learning_rate=2e-5,
        beta1=0.8,
        beta2=0.99,
        epsilon=1e-7,
        weight_decay=0.1,
        max_grad_norm=0.5,
    )
    arguments = trainer_arguments(recipe, tmp_path)
    expected = {
        "max_steps": 3,
        "seed": 5,
        "per_device_train_batch_size": 16,
        "learning_rate": 2e-5,
        "adam_beta1": 0.8,
        "adam_beta2": 0.99,
        "adam_epsilon": 1e-7,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
    }
    assert {name: arguments[name] for name in expected} == expected
