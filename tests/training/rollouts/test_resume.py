"""A run that was stopped between two rounds ends in the same weights, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny
from tests.training.rollouts.trainers import BUILDERS, logged, ppo
from tests.training.tiny_trainers import arrays, assert_same_bits, train, weights
from trimtab.errors import CheckpointError
from trimtab.masks.mask import Mask
from trimtab.training import train_only

pytestmark = pytest.mark.train

Builder = Callable[..., Any]


@pytest.fixture(params=BUILDERS)
def build(request: pytest.FixtureRequest) -> Builder:
    builder: Builder = BUILDERS[request.param]
    return builder


def all_weights(trainer: Any) -> dict[str, Any]:
    models = {"policy": trainer.model, trainer.auxiliary.name: trainer.auxiliary.model}
    return {
        f"{item} {name}": w for item, model in models.items() for name, w in weights(model).items()
    }


@pytest.mark.parametrize(
    ("stop", "settings"),
    [
        (2, {"max_steps": 4}),
        (4, {"max_steps": 8, "num_mini_batches": 2}),
        # 16 rows are 4 rounds of 4: it stops within the second epoch, and between two epochs.
        (10, {"max_steps": 14}),
        (8, {"max_steps": 12}),
        (2, {"max_steps": 6, "gradient_accumulation_steps": 2, "warmup_steps": 2}),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_the_same_weights(
    stop: int, settings: dict[str, Any], masked: bool, build: Builder, tmp_path: Path
) -> None:
    import torch

    def made(**more: Any) -> Any:
        net = tiny.model().to(torch.bfloat16 if masked else torch.float32)
        trainer = build(net, tmp_path, **settings, **more)
        if masked:
            train_only(trainer, Mask.from_arrays(arrays(net)))
        return trainer

    whole = made(save_strategy="steps", save_steps=stop)
    train(whole)
    half = made()
    train(half, tmp_path / f"checkpoint-{stop}")
    assert half.state.global_step == settings["max_steps"]
    assert_same_bits(all_weights(whole), all_weights(half))
    assert logged(half, "reward") == logged(whole, "reward")


def test_within_a_round_it_goes_on_with_samples_of_its_own(build: Builder, tmp_path: Path) -> None:
    train(build(tiny.model(), tmp_path, max_steps=4, save_strategy="steps", save_steps=1))
    half = build(tiny.model(), tmp_path, max_steps=4)
    train(half, tmp_path / "checkpoint-1")
    assert half.state.global_step == 4
    assert [row["step"] for row in half.state.log_history if "reward" in row] == [1, 2, 3]


def test_an_interrupted_step_leaves_nothing_behind(tmp_path: Path) -> None:
    """As in a notebook: a cell is interrupted within a step, and run again."""
    import torch

    settings = {"max_steps": 4, "gradient_accumulation_steps": 2}
    whole, again = (ppo(tiny.model(), tmp_path, **settings) for _ in range(2))
    compute_loss, calls = again.compute_loss, iter(range(99))

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return compute_loss(*args, **kwargs)

    again.compute_loss = interrupted
    with pytest.raises(KeyboardInterrupt):
        train(again)
    for trainer in (again, whole):
        torch.manual_seed(0)
        train(trainer)
    assert next(calls) == 2 + 4 * 2
    assert_same_bits(all_weights(whole), all_weights(again))


def test_checkpoints_of_another_trainer_are_refused(build: Builder, tmp_path: Path) -> None:
    trainer = build(tiny.model(), tmp_path, save_strategy="steps", save_steps=2)
    train(trainer)
    for file in (tmp_path / "checkpoint-2").glob("*_optimizer.pt"):
        file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(build(tiny.model(), tmp_path), tmp_path / "checkpoint-2")


def test_a_checkpoint_without_optimizer_has_no_companion(build: Builder, tmp_path: Path) -> None:
    trainer = build(
        tiny.model(), tmp_path, save_strategy="steps", save_steps=2, save_only_model=True
    )
    train(trainer)
    names = {file.name for file in (tmp_path / "checkpoint-2").iterdir()}
    assert "model.safetensors" in names
    assert not any(name.startswith(trainer.auxiliary.name) for name in names)
