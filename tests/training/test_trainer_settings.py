"""Trainers and settings that cannot be combined with a mask, each refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.training.tiny_trainers import arrays, build, model
from trimtab.errors import SettingsError
from trimtab.masks.mask import Mask
from trimtab.training import train_only

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]


@pytest.mark.parametrize("optim", ["adafactor", "adamw_bnb_8bit", "lomo", "rmsprop"])
def test_other_optimizers_are_refused(optim: str, base: Base, tmp_path: Path) -> None:
    trainer = build("plain", model(base[0]), base[0], tmp_path, optim=optim)
    with pytest.raises(SettingsError, match=f"optim='{optim}'.*expected 'adamw_torch'"):
        train_only(trainer, Mask.from_arrays(arrays(trainer.model)))


def test_options_that_would_be_lost_are_refused(base: Base, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=true"}
    trainer = build("plain", model(base[0]), base[0], tmp_path, **settings)
    with pytest.raises(SettingsError, match=r"nesterov=True: torch\.optim\.SGD has this option"):
        train_only(trainer, Mask.from_arrays(arrays(trainer.model)))


def test_an_optimizer_class_given_to_the_trainer(base: Base, tmp_path: Path) -> None:
    import torch

    trainer = build("plain", model(base[0]), base[0], tmp_path)
    mask = Mask.from_arrays(arrays(trainer.model))
    trainer.optimizer_cls_and_kwargs = (torch.optim.Adagrad, {"lr": 1e-3})
    with pytest.raises(SettingsError, match="Adagrad cannot train only a mask"):
        train_only(trainer, mask)
    trainer.optimizer_cls_and_kwargs = (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.5})
    settings = train_only(trainer, mask).settings()
    assert (settings["algorithm"], settings["lr"], settings["momentum"]) == ("sgd", 1e-3, 0.5)


def pass_an_optimizer(trainer: Any) -> None:
    import torch

    trainer.optimizer = torch.optim.AdamW(trainer.model.parameters())


def give_its_class_a_create_optimizer(trainer: Any) -> None:
    class Own(type(trainer)):  # type: ignore[misc]
        def create_optimizer(self, model: Any = None) -> None: ...

    trainer.__class__ = Own


def shard_by_fsdp1(trainer: Any) -> None:
    trainer.is_fsdp_enabled = True
    trainer.accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1))
    )


STAND_INS: Mapping[str, Callable[[Any], None]] = {
    "has an optimizer already": pass_an_optimizer,
    "own create_optimizer": give_its_class_a_create_optimizer,
    "makes its model in model_init": lambda t: setattr(t, "model_init", lambda: t.model),
    "is a PEFT adapter": lambda t: setattr(t.model, "peft_config", {"default": None}),
    "is quantised": lambda t: setattr(t.model, "is_quantized", True),
    "use FSDP2": lambda t: setattr(t, "is_deepspeed_enabled", True),
    "set fsdp_version to 2": shard_by_fsdp1,
    "sharded when it was loaded": lambda t: setattr(
        t, "is_distributed_loading_by_transformers", True
    ),
    "nn.DataParallel": lambda t: setattr(t.args, "_n_gpu", 2),
    "use bf16": lambda t: setattr(t.args, "fp16", True),
}
"""What the message says -> what makes a trainer look so."""


@pytest.mark.parametrize("message", STAND_INS)
def test_trainers_that_a_mask_cannot_train_are_refused(
    message: str, base: Base, tmp_path: Path
) -> None:
    trainer = build("plain", model(base[0]), base[0], tmp_path)
    STAND_INS[message](trainer)
    with pytest.raises(SettingsError, match=message):
        train_only(trainer, Mask.from_arrays(arrays(trainer.model)))
    assert trainer.args.max_grad_norm == 1.0
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_only_a_trainer_is_taken(base: Base) -> None:
    net = model(base[0])
    with pytest.raises(SettingsError, match=r"found LlamaForCausalLM.*use SparseAdamW"):
        train_only(net, Mask.from_arrays(arrays(net)))


def test_all_obstacles_are_told_together(base: Base, tmp_path: Path) -> None:
    trainer = build("plain", model(base[0]), base[0], tmp_path)
    trainer.model.is_quantized = True
    trainer.args.fp16 = True
    with pytest.raises(SettingsError, match=r"quantised.*fp16"):
        train_only(trainer, Mask.from_arrays(arrays(trainer.model)))
