"""Settings that PPO refuses, before a model is there; and what is asked of data and model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny
from tests.training.rollouts.trainers import ROWS, ppo, settings
from trimtab.errors import SettingsError

pytestmark = pytest.mark.train


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_ppo_epochs": 0}, "num_ppo_epochs is 0, expected at least 1"),
        ({"num_mini_batches": -1}, "num_mini_batches is -1, expected at least 1"),
        ({"max_completion_length": 0}, "max_completion_length is 0, expected at least 1"),
        ({"cliprange": 0.0}, "cliprange is 0.0, expected a number above 0"),
        ({"cliprange_value": -0.2}, "cliprange_value is -0.2, expected a number above 0"),
        ({"temperature": 0.0}, "temperature is 0.0, expected a number above 0"),
        ({"temperature": float("nan")}, "temperature is nan, expected a number above 0"),
        ({"top_p": 1.5}, "top_p is 1.5, expected a number above 0 and at most 1"),
        ({"gamma": 1.1}, "gamma is 1.1, expected a number from 0 to 1"),
        ({"lam": -0.1}, "lam is -0.1, expected a number from 0 to 1"),
        ({"kl_coef": -1.0}, "kl_coef is -1.0, expected a number that is not negative"),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty is -1.0"),
        ({"kl_in": "rewards"}, "kl_in is 'rewards', expected 'reward' or 'loss'"),
        ({"kl_estimator": "k4"}, "kl_estimator is 'k4', expected 'k1', 'k2' or 'k3'"),
        ({"kl_in": "loss", "kl_estimator": "k1"}, "has no effect on average in the loss"),
    ],
)
def test_settings_that_cannot_be_used(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    from trimtab.training import PPOConfig

    with pytest.raises(SettingsError) as error:
        PPOConfig(**settings(tmp_path, **given))
    assert message in str(error.value)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    from trimtab.training import PPOConfig

    with pytest.raises(SettingsError, match=r"cliprange is 0.*lam is 2.*kl_coef is -1"):
        PPOConfig(**settings(tmp_path, cliprange=0.0, lam=2.0, kl_coef=-1.0))


@pytest.mark.parametrize(
    ("kl_in", "given", "chosen"),
    [("reward", None, "k1"), ("loss", None, "k3"), ("loss", "k2", "k2"), ("reward", "k3", "k3")],
)
def test_the_estimator_follows_the_place(
    kl_in: str, given: str | None, chosen: str, tmp_path: Path
) -> None:
    from trimtab.training import PPOConfig

    args = PPOConfig(**settings(tmp_path, kl_in=kl_in, kl_estimator=given))
    assert args.kl_estimator == chosen


def test_sizes(tmp_path: Path) -> None:
    from trimtab.training import PPOConfig

    args = PPOConfig(
        **settings(
            tmp_path,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
            num_mini_batches=5,
            num_ppo_epochs=4,
        )
    )
    assert (args.mini_batch_size, args.round_size, args.steps_per_round) == (6, 30, 20)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_dataset": []}, "train_dataset has no rows"),
        ({"train_dataset": ROWS[:3]}, "has 3 rows, expected at least the 4 of a round"),
        ({"train_dataset": iter(ROWS)}, "expected a data set with a length"),
        ({"train_dataset": [{"question": "1"}] * 4}, "row 0 has no column prompt"),
        ({"train_dataset": [{"prompt": "1" * 2046}] * 4}, "leaves room for 2044 before"),
        ({"processing_class": None}, "processing_class is missing"),
        ({"reward_funcs": []}, "reward_funcs is empty"),
        ({"reward_funcs": [1.0]}, "reward_funcs has a float"),
    ],
)
def test_what_can_be_known_before_a_run(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as error:
        ppo(tiny.model(), tmp_path, **given)
    assert str(error.value).startswith("PPOTrainer: ")
    assert message in str(error.value)


def test_models_that_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="model is a LlamaModel, expected a causal language"):
        ppo(tiny.model().model, tmp_path)


@pytest.mark.parametrize("name", ["world_size", "n_gpu"])
def test_several_processes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trimtab.training import PPOConfig

    monkeypatch.setattr(PPOConfig, name, 2)
    with pytest.raises(SettingsError, match="it runs in one process on one device"):
        ppo(tiny.model(), tmp_path)


def test_a_reward_that_fails_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    trainer = ppo(tiny.model(), tmp_path, reward_funcs=lambda completions, **_: [0.0])
    with pytest.raises(SettingsError, match="returned 1 rewards for 4 completions"):
        trainer.train()
