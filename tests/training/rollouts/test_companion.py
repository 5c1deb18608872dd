"""A companion steps as torch's AdamW with a schedule does, and goes on where it was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny_trainers import assert_same_bits, weights
from trimtab.errors import CheckpointError

pytestmark = pytest.mark.train


def network() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))


def companion(out: Path, max_grad_norm: float = 0.0, **more: Any) -> Any:
    from transformers import TrainingArguments

    from trimtab.training.rollouts.auxiliary_model import AuxiliaryModel

    settings = {"weight_decay": 0.1, "adam_beta2": 0.9, "warmup_steps": 2, **more}
    args = TrainingArguments(str(out), use_cpu=True, **settings)
    made = AuxiliaryModel("critic", network(), args, learning_rate=0.1, max_grad_norm=max_grad_norm)
    made.start(6, ["0.weight", "1.weight"])
    return made


def learn(model: Any, step: int) -> None:
    import torch

    inputs = torch.arange(6.0).view(2, 3) + step
    torch.autograd.backward((model(inputs) ** 2).mean())


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
def test_it_steps_as_adamw_with_its_schedule(tmp_path: Path, max_grad_norm: float) -> None:
    import torch
    from transformers import get_linear_schedule_with_warmup

    one, model = companion(tmp_path, max_grad_norm), network()
    optimizer = torch.optim.AdamW(
        [
            {"params": [model[0].weight, model[1].weight], "weight_decay": 0.1},
            {"params": [model[0].bias, model[1].bias], "weight_decay": 0.0},
        ],
        lr=0.1,
        betas=(0.9, 0.9),
        fused=True,
    )
    schedule = get_linear_schedule_with_warmup(optimizer, 2, 6)
    for step in range(4):
        learn(one.model, step)
        learn(model, step)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm or float("inf"))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        assert one.step() == float(norm) > 0.5
        assert_same_bits(weights(one.model), weights(model))
        assert all(parameter.grad is None for parameter in one.model.parameters())


def test_its_weights_are_fp32_and_trained(tmp_path: Path) -> None:
    import torch
    from transformers import TrainingArguments

    from trimtab.training.rollouts.auxiliary_model import AuxiliaryModel

    model = network().to(torch.bfloat16).requires_grad_(False)
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    net = AuxiliaryModel("critic", model, args, learning_rate=0.1, max_grad_norm=0.0)
    assert {(p.dtype, p.requires_grad) for p in net.model.parameters()} == {(torch.float32, True)}


def test_it_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    whole = companion(tmp_path)
    for step in range(4):
        learn(whole.model, step)
        whole.step()
        if step == 1:
            whole.save(tmp_path)
    half = companion(tmp_path)
    half.load(tmp_path)
    for step in (2, 3):
        learn(half.model, step)
        half.step()
    assert_same_bits(weights(whole.model), weights(half.model))


def test_gradients_that_were_gathered_are_dropped(tmp_path: Path) -> None:
    one = companion(tmp_path)
    learn(one.model, 0)
    one.forget_gradients()
    assert one.step() == 0.0


@pytest.mark.parametrize("damage", ["none", "weights", "optimizer", "other"])
def test_checkpoints_of_another_run(tmp_path: Path, damage: str) -> None:
    import torch
    from safetensors.torch import save_file

    one = companion(tmp_path)
    if damage != "none":
        one.save(tmp_path)
    if damage == "weights":
        (tmp_path / "critic.safetensors").write_bytes(b"\0" * 20)
    if damage == "optimizer":
        torch.save({}, tmp_path / "critic_optimizer.pt")
    if damage == "other":
        save_file({"weight": torch.zeros(3)}, tmp_path / "critic.safetensors")
    with pytest.raises(CheckpointError, match="its critic cannot be read"):
        companion(tmp_path).load(tmp_path)
