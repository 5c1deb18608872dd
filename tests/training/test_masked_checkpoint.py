"""What masked training saves, what goes on from it bit for bit, and what does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.tiny_trainers import (
    LEFT_OUT,
    arrays,
    assert_same_bits,
    model,
    moved,
    start,
    train,
    weights,
)
from trimtab.errors import CheckpointError, MaskMismatchError, OptimizerError, SettingsError
from trimtab.masks.mask import Mask
from trimtab.training.folders import WEIGHTS
from trimtab.training.masked_checkpoint import MASK_FILE, RECORD_FILE

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]

CHECKPOINTED: dict[str, Any] = {
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
}


@pytest.fixture(scope="module")
def checkpointed(base: Base, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """An uninterrupted bf16 run of 4 steps with a checkpoint at each: its folder and weights."""
    out = tmp_path_factory.mktemp("checkpointed")
    net = model(base[0])
    trainer, _ = start("sft", net, base, out, **CHECKPOINTED)
    train(trainer)
    trainer.save_model()
    return out, weights(net)


@pytest.mark.parametrize("step", [1, 3])
def test_resumed_run_ends_in_the_same_bits(
    step: int, checkpointed: tuple[Path, Any], base: Base, tmp_path: Path
) -> None:
    out, expected = checkpointed
    net = model(base[0])
    trainer, training = start("sft", net, base, tmp_path, **CHECKPOINTED)
    train(trainer, resume=out / f"checkpoint-{step}")
    assert training.optimizer.describe()["master"] == {"bfloat16": "lo16"}
    assert_same_bits(weights(net), expected)


def test_resuming_finds_the_last_checkpoint(base: Base, tmp_path: Path) -> None:
    trainer, _ = start("plain", model(base[0]), base, tmp_path, **CHECKPOINTED)
    train(trainer)
    other = {**arrays(trainer.model), LEFT_OUT: np.ones_like(arrays(trainer.model)[LEFT_OUT])}
    again, _ = start("plain", model(base[0]), base, tmp_path, other, **CHECKPOINTED)
    with pytest.raises(MaskMismatchError, match="checkpoint-4 was trained with the mask"):
        again.train(resume_from_checkpoint=True)


def test_every_checkpoint_says_what_was_trained(checkpointed: tuple[Path, Any], base: Base) -> None:
    out, _ = checkpointed
    mask = Mask.from_arrays(arrays(model(base[0])))
    for step in (1, 4):
        folder = out / f"checkpoint-{step}"
        assert Mask.load(folder / MASK_FILE) == mask
        record = json.loads((folder / RECORD_FILE).read_text())
        assert record["format"] == "trimtab.training"
        assert record["format_version"] == 1
        assert record["mask"]["digest"] == mask.digest
        assert record["mask"]["num_selected"] == mask.num_selected()
        assert record["base"]["id"] == str(base[0])
        assert record["trainer"] == "SFTTrainer"
        assert record["step"] == step
        assert record["settings"] == {
            "algorithm": "adamw",
            "lr": 1e-3,
            "betas": [0.9, 0.999],
            "eps": 1e-8,
            "weight_decay": 0.1,
            "max_grad_norm": 1.0,
            "master": {"bfloat16": "lo16"},
            "state_dtype": "float32",
            "clip_by": "masked",
            "nonfinite": "raise",
        }
        assert record["optimizer"]["mask"] == mask.digest
        assert set(record["versions"]) >= {"trimtab", "torch", "transformers", "trl"}


def test_saved_weights_are_those_of_the_base_outside_the_mask(
    checkpointed: tuple[Path, Any], base: Base
) -> None:
    from safetensors.torch import load_file

    out, _ = checkpointed
    selected = arrays(model(base[0]))
    before = load_file(base[0] / WEIGHTS)
    for folder in (out, out / "checkpoint-2"):
        after = load_file(folder / WEIGHTS)
        assert {n: (t.shape, t.dtype) for n, t in before.items()} == {
            n: (t.shape, t.dtype) for n, t in after.items()
        }
        changed = moved(before, after)
        assert not any(changed[name][~mask].any() for name, mask in selected.items())
        assert any(changed[name].any() for name in selected)
        assert (folder / MASK_FILE).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 2e-3}, r"checkpoint-2 belongs to a run with lr=0\.001 \(now 0\.002\)"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm=1\.0 \(now None\)"),
        ({"master": "none"}, r"master\.bfloat16='lo16' \(now 'none'\)"),
        ({"optim": "sgd"}, r"algorithm='adamw' \(now 'sgd'\).*betas=.* \(now None\)"),
    ],
)
def test_other_settings_do_not_resume(
    change: dict[str, Any],
    message: str,
    checkpointed: tuple[Path, Any],
    base: Base,
    tmp_path: Path,
) -> None:
    net = model(base[0])
    before = weights(net)
    trainer, _ = start("sft", net, base, tmp_path, **{**CHECKPOINTED, **change})
    with pytest.raises(SettingsError, match=message):
        train(trainer, resume=checkpointed[0] / "checkpoint-2")
    assert_same_bits(weights(net), before)


def test_another_mask_does_not_resume(
    checkpointed: tuple[Path, Any], base: Base, tmp_path: Path
) -> None:
    net = model(base[0])
    before = weights(net)
    trainer, _ = start("sft", net, base, tmp_path, arrays(net, seed=1), **CHECKPOINTED)
    with pytest.raises(MaskMismatchError, match=r"resume with .*trimtab_mask\.safetensors"):
        train(trainer, resume=checkpointed[0] / "checkpoint-2")
    assert_same_bits(weights(net), before)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no trimtab.json"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"settings": {}, "mask": {"digest": ""}, "format_version": 2}', "format version 2"),
    ],
)
def test_a_checkpoint_of_something_else_does_not_resume(
    content: str | None, message: str, base: Base, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / RECORD_FILE).write_text(content)
    trainer, _ = start("plain", model(base[0]), base, tmp_path / "out")
    with pytest.raises(CheckpointError, match=message):
        train(trainer, resume=tmp_path)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "trainer_state.json"])
def test_a_checkpoint_without_a_part_of_its_state_does_not_resume(
    name: str, checkpointed: tuple[Path, Any], base: Base, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(checkpointed[0] / "checkpoint-2", folder)
    (folder / name).unlink()
    net = model(base[0])
    before = weights(net)
    trainer, _ = start("sft", net, base, tmp_path, **CHECKPOINTED)
    with pytest.raises(CheckpointError, match=f"checkpoint-2 has no {name} .*save_only_model"):
        train(trainer, resume=folder)
    assert_same_bits(weights(net), before)


def test_save_only_model_does_not_resume(base: Base, tmp_path: Path) -> None:
    settings = {**CHECKPOINTED, "save_only_model": True, "max_steps": 1}
    trainer, _ = start("plain", model(base[0]), base, tmp_path, **settings)
    train(trainer)
    again, _ = start("plain", model(base[0]), base, tmp_path, **settings)
    with pytest.raises(CheckpointError, match=r"no optimizer\.pt, scheduler\.pt \("):
        again.train(resume_from_checkpoint=True)


def test_a_checkpoint_without_random_state_resumes_with_a_warning(
    checkpointed: tuple[Path, Any], base: Base, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint-3"
    shutil.copytree(checkpointed[0] / "checkpoint-3", folder)
    (folder / "rng_state.pth").unlink()
    trainer, _ = start("sft", model(base[0]), base, tmp_path, **CHECKPOINTED)
    with pytest.warns(UserWarning, match=r"checkpoint-3 has no rng_state.*\.pth"):
        train(trainer, resume=folder)


@pytest.mark.parametrize("state", ["of another optimizer", "of another mask"])
def test_a_state_of_something_else_does_not_resume(
    state: str, checkpointed: tuple[Path, Any], base: Base, tmp_path: Path
) -> None:
    import torch

    folder = tmp_path / "checkpoint-2"
    shutil.copytree(checkpointed[0] / "checkpoint-2", folder)
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    if state == "of another mask":
        saved["trimtab"]["mask"] = "0" * 32
    else:
        del saved["trimtab"]
    torch.save(saved, folder / "optimizer.pt")
    trainer, _ = start("sft", model(base[0]), base, tmp_path, **CHECKPOINTED)
    with pytest.raises(OptimizerError, match=r"its mask has the digest '000|it has no record"):
        train(trainer, resume=folder)


def test_the_record_beside_the_best_weights_is_theirs(base: Base, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import TrainerCallback

    settings = {**CHECKPOINTED, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    settings["greater_is_better"] = True  # so that the first are the best
    trainer, training = start("plain", model(base[0]), base, tmp_path, **settings)

    class SaveAtEnd(TrainerCallback):  # type: ignore[misc]
        def on_train_end(self, *_: Any, **__: Any) -> None:
            trainer.save_model(str(tmp_path / "by callback"))

    trainer.add_callback(SaveAtEnd())
    train(trainer)
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name != "checkpoint-4"  # else nothing is tested
    trainer.save_model(str(tmp_path / "final"))
    assert_same_bits(load_file(tmp_path / "final" / WEIGHTS), load_file(best / WEIGHTS))
    record = json.loads((tmp_path / "final" / RECORD_FILE).read_text())
    assert json.loads((tmp_path / "by callback" / RECORD_FILE).read_text()) == record
    assert record == json.loads((best / RECORD_FILE).read_text())
    assert f"checkpoint-{record['step']}" == best.name
    train(trainer)
    assert json.loads((tmp_path / "checkpoint-4" / RECORD_FILE).read_text())["step"] == 4
    assert training.describe()["step"] == trainer.state.best_global_step
