"""The Trainer's own means, `optimizers=` and a callback, beside `train_only`: the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny
from tests.training.tiny_trainers import (
    LEFT_OUT,
    SUMS,
    Base,
    arguments,
    arrays,
    assert_same_bits,
    column,
    model,
    moved,
    plain,
    train,
    weights,
)
from trimtab.errors import MaskError, SettingsError
from trimtab.masks.mask import Mask
from trimtab.training import MaskedTrainingCallback, runtime, sparse_adamw, train_only
from trimtab.training.masked_checkpoint import MASK_FILE, RECORD_FILE

pytestmark = pytest.mark.train

SETTINGS: dict[str, Any] = {"weight_decay": 0.1, "max_grad_norm": 0.05, "adam_beta2": 0.95}


def training_arguments(out: Path, **more: Any) -> Any:
    from transformers import TrainingArguments

    with runtime.quiet():
        return TrainingArguments(**arguments(out, **more))


def rows() -> Any:
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "prompt": [f"{a}+{b}=" for a, b in SUMS],
            "completion": [f"{a + b}\n" for a, b in SUMS],
        }
    )


def native(kind: str, net: Any, mask: Any, out: Path, **more: Any) -> Any:
    """A Trainer that is given its optimizer, and the callback."""
    import torch
    from transformers import PrinterCallback, Trainer
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(0)
    with runtime.quiet():
        if kind == "plain":
            args = training_arguments(out, **more)
            data = plain(net, out, out / "unused").train_dataset
            trainer = Trainer(
                net,
                args,
                train_dataset=data,
                optimizers=(sparse_adamw(net, mask, args), None),
                callbacks=[MaskedTrainingCallback()],
            )
        else:
            args = SFTConfig(**arguments(out, **more))
            trainer = SFTTrainer(
                net,
                args,
                train_dataset=rows(),
                processing_class=tiny.tokenizer(),
                optimizers=(sparse_adamw(net, mask, args), None),
                callbacks=[MaskedTrainingCallback()],
            )
    trainer.remove_callback(PrinterCallback)
    return trainer


def masked(kind: str, net: Any, mask: Any, out: Path, **more: Any) -> Any:
    """The same run by `train_only`."""
    import torch
    from transformers import PrinterCallback, Trainer
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(0)
    with runtime.quiet():
        if kind == "plain":
            data = plain(net, out, out / "unused").train_dataset
            args = training_arguments(out, **more)
            trainer = Trainer(net, args, train_dataset=data)
        else:
            trainer = SFTTrainer(
                net,
                SFTConfig(**arguments(out, **more)),
                train_dataset=rows(),
                processing_class=tiny.tokenizer(),
            )
    trainer.remove_callback(PrinterCallback)
    train_only(trainer, mask)
    return trainer


@pytest.mark.parametrize("kind", ["plain", "sft"])
@pytest.mark.parametrize("more", [{}, {"gradient_accumulation_steps": 2}], ids=["1", "2"])
def test_the_same_bits_as_train_only(
    kind: str, more: dict[str, Any], base: Base, tmp_path: Path
) -> None:
    one, two = model(base[0]), model(base[0])
    mask, before = Mask.from_arrays(arrays(one)), weights(one)
    first = native(kind, one, mask, tmp_path / "native", **SETTINGS, **more)
    train(first)
    second = masked(kind, two, mask, tmp_path / "masked", **SETTINGS, **more)
    train(second)
    assert_same_bits(weights(one), weights(two))
    for name, has_moved in moved(before, weights(one)).items():
        assert not (has_moved & ~mask.array(name)).any()
    assert column(first, "grad_norm") == column(second, "grad_norm")
    assert column(first, "grad_norm")[0] > 0
    assert column(first, "loss") == column(second, "loss")


def test_afterwards_the_model_is_an_ordinary_one(base: Base, tmp_path: Path) -> None:
    net = model(base[0])
    trainer = native("plain", net, Mask.from_arrays(arrays(net)), tmp_path)
    seen = []
    body = dict(net.named_parameters())[LEFT_OUT]
    net.register_forward_pre_hook(lambda *_: seen.append(body.requires_grad))
    train(trainer)
    assert set(seen) == {False}  # nothing of it is trained
    assert all(parameter.requires_grad for parameter in net.parameters())
    net(input_ids=net.dummy_inputs["input_ids"] % 8).logits.sum().backward()
    assert body.grad is not None
    again = native("plain", net, Mask.from_arrays(arrays(net)), tmp_path)  # no optimizer has it
    train(again)
    train(again)  # the second time by the same optimizer, opened again


def test_a_run_is_resumed_to_the_same_bits(base: Base, tmp_path: Path) -> None:
    saves: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    mask = Mask.from_arrays(arrays(model(base[0])))
    mask.save(tmp_path / "mask.safetensors")
    whole = model(base[0])
    train(native("plain", whole, tmp_path / "mask.safetensors", tmp_path / "out", **saves))
    folder = tmp_path / "out" / "checkpoint-2"
    assert Mask.load(folder / MASK_FILE).digest == mask.digest
    record = json.loads((folder / RECORD_FILE).read_text())
    assert record["step"] == 2
    assert record["optimizer"]["optimizer"] == "SparseAdamW"
    rest = model(base[0])
    train(native("plain", rest, mask, tmp_path / "rest", **saves), resume=folder)
    assert_same_bits(weights(rest), weights(whole))
    # `train_only` finds in the record what it writes itself, and resumes from it, too.
    other = model(base[0])
    train(masked("plain", other, mask, tmp_path / "other", **saves), resume=folder)
    assert_same_bits(weights(other), weights(whole))
    again = model(base[0])
    folder = tmp_path / "other" / "checkpoint-3"
    train(native("plain", again, mask, tmp_path / "again", **saves), resume=folder)
    assert_same_bits(weights(again), weights(whole))


def test_settings_by_hand_take_precedence(base: Base) -> None:
    net = model(base[0])
    mask = Mask.from_arrays(arrays(net))
    args = training_arguments(Path("out"), **SETTINGS)
    optimizer = sparse_adamw(net, mask, args, lr=0.5, master="fp32")
    decayed, exempt = optimizer.param_groups
    assert (decayed["lr"], decayed["betas"], decayed["eps"]) == (0.5, (0.9, 0.95), 1e-8)
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)
    assert all("norm" in name for name in exempt["param_names"])
    assert optimizer.describe()["max_grad_norm"] == 0.05
    assert set(optimizer.describe()["master"].values()) == {"fp32"}
    optimizer.close()
    assert sparse_adamw(net, mask, lr=1e-3).defaults["weight_decay"] == 0.0


def test_what_does_not_fit_is_refused(base: Base, tmp_path: Path) -> None:
    from transformers import Trainer

    net = model(base[0])
    mask = Mask.from_arrays(arrays(net))
    with pytest.raises(SettingsError, match=r"optim=.*sgd.*SparseSGD"):
        sparse_adamw(net, mask, training_arguments(tmp_path, optim="sgd"))
    with pytest.raises(SettingsError, match="optim='adafactor' cannot train only a mask"):
        sparse_adamw(net, mask, training_arguments(tmp_path, optim="adafactor"))
    args = training_arguments(tmp_path)
    with pytest.raises(SettingsError, match="the Trainer clips them, too: use train_only"):
        sparse_adamw(net, mask, args, clip_by="full")
    with pytest.raises(MaskError, match=r"nothing\.safetensors"):
        sparse_adamw(net, tmp_path / "nothing.safetensors", args)
    with runtime.quiet():
        data = plain(net, base[0], tmp_path).train_dataset
    trainer = Trainer(net, args, train_dataset=data, callbacks=[MaskedTrainingCallback()])
    with pytest.raises(SettingsError, match="AdamW, which trains every element"):
        train(trainer)
