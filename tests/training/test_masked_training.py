"""Masked training through real trainers: what moves, by how much, and what is logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training import tiny_trainers
from tests.training.tiny_trainers import (
    LEFT_OUT,
    Arrays,
    arrays,
    assert_same_bits,
    before_each_step,
    build,
    column,
    model,
    moved,
    reward_model,
    start,
    train,
    weights,
)
from trimtab.errors import MaskError, MaskMismatchError, SettingsError
from trimtab.masks.mask import Mask
from trimtab.training import runtime, train_only
from trimtab.training.folders import WEIGHTS
from trimtab.training.masked_checkpoint import MASK_FILE, RECORD_FILE

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]
KINDS = list(tiny_trainers.BUILDERS)


def dense_reference(
    kind: str, base: Base, out: Path, selected: Arrays, **more: Any
) -> tuple[Any, list[float]]:
    """The same run by the trainer's own AdamW on masked gradients, and its norms of them."""
    import torch
    from transformers import TrainerCallback

    net = model(base[0], "float32")
    trainer = build(kind, net, base[0], out, **more)
    start_from = weights(net)
    kept = {name: torch.from_numpy(selected[name]) for name in start_from}
    for name, parameter in net.named_parameters():
        parameter.register_hook(lambda gradient, keep=kept[name]: gradient * keep)

    class OffMask(TrainerCallback):  # type: ignore[misc]
        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            with torch.no_grad():  # weight decay moves them
                for name, parameter in net.named_parameters():
                    parameter.copy_(torch.where(kept[name], parameter, start_from[name]))

    def clip(net: Any) -> Any:
        """As torch does, by the norm that the sparse optimizers define: summed in fp64."""
        gradients = [parameter.grad.double() for parameter in net.parameters()]
        norm = torch.stack([(gradient**2).sum() for gradient in gradients]).sum().sqrt().float()
        torch.nn.utils.clip_grads_with_norm_(net.parameters(), trainer.args.max_grad_norm, norm)
        return norm

    trainer._clip_grad_norm = clip
    trainer.add_callback(OffMask())
    train(trainer)
    return net, column(trainer, "grad_norm")


@pytest.mark.parametrize("kind", KINDS)
def test_every_trainer_moves_the_mask_and_nothing_else(
    kind: str, base: Base, tmp_path: Path
) -> None:
    net = reward_model(base[0]) if kind == "reward" else model(base[0])
    before, selected = weights(net), arrays(net)
    trainer, training = start(kind, net, base, tmp_path, selected)
    gradients = before_each_step(trainer, lambda: [p.grad for p in net.parameters()])
    train(trainer)
    changed = moved(before, weights(net))
    for name, mask in selected.items():
        assert not changed[name][~mask].any(), name
    count = sum(int(changed[name].sum()) for name in selected)
    assert count > 0.9 * sum(int(mask.sum()) for mask in selected.values())
    assert len(gradients) == 3 and all(grad is None for grads in gradients for grad in grads)
    norms = column(trainer, "grad_norm")
    assert len(norms) == 3 and all(norm > 0 for norm in norms)
    assert norms[-1] == training.optimizer.grad_norm


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("kind", ["plain", "sft"])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
def test_it_equals_dense_adamw_with_masked_gradients(
    kind: str, accumulate: int, max_grad_norm: float, base: Base, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "gradient_accumulation_steps": accumulate,
        "max_grad_norm": max_grad_norm,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-6,
        "max_steps": 4,
    }
    net = model(base[0], "float32")
    selected = arrays(net)
    trainer, _ = start(kind, net, base, tmp_path / "masked", selected, **settings)
    train(trainer)
    dense, norms = dense_reference(kind, base, tmp_path / "dense", selected, **settings)
    assert max_grad_norm < min(norms)
    assert column(trainer, "grad_norm") == pytest.approx(norms, rel=1e-6)
    assert_same_bits(weights(net), weights(dense))


def test_weight_decay_spares_what_the_trainer_spares(base: Base, tmp_path: Path) -> None:
    net = model(base[0], "float32")
    trainer, training = start("plain", net, base, tmp_path, weight_decay=0.3)
    train(trainer)
    names = {g["weight_decay"]: g["param_names"] for g in training.optimizer.param_groups}
    assert names.keys() == {0.0, 0.3}
    assert set(names[0.0]) == {name for name, _ in net.named_parameters() if "norm" in name}


def test_sgd_with_momentum(base: Base, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optim": "sgd", "optim_args": "momentum=0.9", "max_grad_norm": 0.0}
    net = model(base[0], "float32")
    selected = arrays(net)
    trainer, training = start("plain", net, base, tmp_path / "masked", selected, **settings)
    train(trainer)
    dense, _ = dense_reference("plain", base, tmp_path / "dense", selected, **settings)
    assert training.settings()["momentum"] == 0.9
    assert_same_bits(weights(net), weights(dense))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_of_activations_changes_nothing(
    reentrant: bool, base: Base, tmp_path: Path
) -> None:
    found = []
    for checkpointing in (False, True):
        net = model(base[0], "float32")
        selected = arrays(net)
        selected["model.embed_tokens.weight"][:] = False  # no gradient enters at the bottom
        trainer, _ = start(
            "sft",
            net,
            base,
            tmp_path,
            selected,
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        )
        train(trainer)
        found.append(weights(net))
    assert_same_bits(*found)


def test_what_is_not_masked_needs_no_gradient_while_it_trains(base: Base, tmp_path: Path) -> None:
    net = model(base[0])
    trainer, training = start("plain", net, base, tmp_path, max_grad_norm=0.5)
    parameters = dict(net.named_parameters())
    frozen = before_each_step(
        trainer, lambda: [n for n, p in parameters.items() if not p.requires_grad]
    )
    train(trainer)
    assert frozen == [[LEFT_OUT]] * 3
    assert all(p.requires_grad for p in parameters.values())
    training.close()
    training.close()  # twice is once
    assert trainer.args.max_grad_norm == 0.5
    assert trainer.optimizer is None
    before = weights(net)
    train(trainer)  # an ordinary run, without a trace of the mask
    assert moved(before, weights(net))[LEFT_OUT].any()
    assert not (tmp_path / RECORD_FILE).exists()


@pytest.mark.parametrize("clip_by", ["masked", "full"])
def test_a_control_with_the_same_arguments_and_model_is_an_ordinary_run(
    clip_by: str, base: Base, tmp_path: Path
) -> None:
    import torch
    from transformers import Trainer

    settings: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 1e-3}
    fresh = build("plain", model(base[0], "float32"), base[0], tmp_path / "control", **settings)
    train(fresh)
    net = model(base[0], "float32")
    start_from = weights(net)
    trainer, _ = start("plain", net, base, tmp_path, clip_by=clip_by, **settings)
    asked = trainer.args.to_dict()
    train(trainer)
    trainer.save_model()
    saved = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert saved.to_dict() == trainer.args.to_dict() == asked
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(start_from[name])
    control = Trainer(net, trainer.args, train_dataset=trainer.train_dataset)  # close() forgotten
    train(control)
    assert_same_bits(weights(net), weights(fresh.model))


def test_an_interrupted_run_leaves_an_ordinary_model(base: Base, tmp_path: Path) -> None:
    net = model(base[0])
    trainer, _ = start("plain", net, base, tmp_path)

    def interrupt() -> None:
        raise KeyboardInterrupt

    before_each_step(trainer, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(trainer)
    net(**trainer.data_collator([trainer.train_dataset[0]])).loss.backward()
    assert all(p.grad is not None for p in net.parameters())


def test_the_accelerator_still_clips_what_is_not_the_model(base: Base, tmp_path: Path) -> None:
    import torch

    trainer, _ = start("plain", model(base[0]), base, tmp_path)
    other = torch.nn.Parameter(torch.zeros(4))
    other.grad = torch.full((4,), 3.0)
    assert trainer.accelerator.clip_grad_norm_(iter([other]), 1.0) == 6.0
    assert float(other.grad.norm()) == pytest.approx(1.0)


def test_the_full_norm_counts_every_parameter(base: Base, tmp_path: Path) -> None:
    net = model(base[0], "float32")
    everything = {name: np.ones(p.shape, bool) for name, p in net.named_parameters()}
    settings: dict[str, Any] = {"max_grad_norm": 0.0, "max_steps": 1}
    trainer, _ = start("sft", net, base, tmp_path / "masked", clip_by="full", **settings)
    graded = before_each_step(trainer, lambda: all(p.requires_grad for p in net.parameters()))
    train(trainer)
    assert graded == [True]
    _, norms = dense_reference("sft", base, tmp_path / "dense", everything, **settings)
    assert column(trainer, "grad_norm") == pytest.approx(norms, rel=1e-6)


def test_training_goes_on_in_a_second_call(base: Base, tmp_path: Path) -> None:
    net = model(base[0])
    trainer, training = start("plain", net, base, tmp_path)
    before, selected = weights(net), arrays(net)
    train(trainer)
    first = training.optimizer
    train(trainer)
    assert training.optimizer is first
    changed = moved(before, weights(net))
    assert not any(changed[name][~mask].any() for name, mask in selected.items())


def test_what_an_interrupted_step_gathered_is_forgotten(base: Base, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Interrupt(TrainerCallback):  # type: ignore[misc]
        def on_substep_end(self, *_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

    found = []
    for interrupted in (False, True):
        net = model(base[0])
        trainer, _ = start("plain", net, base, tmp_path, gradient_accumulation_steps=2)
        if interrupted:
            trainer.add_callback(Interrupt)
            with pytest.raises(KeyboardInterrupt):
                train(trainer)
            trainer.remove_callback(Interrupt)
        train(trainer)
        found.append(weights(net))
    assert_same_bits(*found)


def test_after_the_best_weights_are_loaded_training_starts_afresh(
    base: Base, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps"}
    settings |= {"eval_steps": 1, "load_best_model_at_end": True, "master": "fp32"}
    net = model(base[0])
    trainer, _ = start("plain", net, base, tmp_path / "one", **settings)
    train(trainer)
    best = model(base[0])
    best.load_state_dict(net.state_dict())
    train(trainer)
    fresh, _ = start("plain", best, base, tmp_path / "other", **settings)
    train(fresh)
    assert_same_bits(weights(net), weights(best))


def test_skipped_steps_are_logged(base: Base, tmp_path: Path) -> None:
    net = model(base[0])
    trainer, _ = start("plain", net, base, tmp_path, nonfinite="skip")
    calls: list[int] = []

    def spoil(gradient: Any) -> Any:
        calls.append(1)
        return gradient * float("nan") if len(calls) == 2 else gradient

    net.model.norm.weight.register_hook(spoil)
    train(trainer)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row.get("num_skipped_steps", 0) for row in rows] == [0, 1, 1]
    assert [np.isfinite(row["grad_norm"]) for row in rows] == [True, False, True]
    assert all(np.isfinite(p.detach().float().numpy()).all() for p in net.parameters())


def test_a_mask_file_is_loaded(base: Base, tmp_path: Path) -> None:
    net = model(base[0])
    Mask.from_arrays(arrays(net)).save(tmp_path / "mask.safetensors")
    trainer = build("plain", net, base[0], tmp_path)
    training = train_only(trainer, tmp_path / "mask.safetensors")
    assert training.mask == Mask.from_arrays(arrays(net))


def test_a_mask_of_another_model_is_refused_at_once(base: Base, tmp_path: Path) -> None:
    net = model(base[0])
    trainer = build("plain", net, base[0], tmp_path)
    with pytest.raises(MaskMismatchError, match=r"other\.weight is not in the model"):
        train_only(trainer, Mask.from_arrays({"other.weight": np.ones(3, bool)}))
    assert all(parameter.requires_grad for parameter in net.parameters())
    train(trainer)  # nothing was left behind


def test_weights_other_than_those_of_the_mask_are_refused_at_once(
    base: Base, tmp_path: Path
) -> None:
    from trimtab.masks.header import BaseTensor

    net = model(base[0])
    name = "model.norm.weight"
    mask = Mask.from_arrays(
        {name: np.ones(net.get_parameter(name).shape, bool)},
        base={name: BaseTensor("BF16", "0" * 32)},
    )
    trainer = build("plain", net, base[0], tmp_path)
    with pytest.raises(MaskMismatchError, match=name):
        train_only(trainer, mask)
    train_only(trainer, mask, check_base=False)


def test_a_damaged_mask_file_is_refused(base: Base, tmp_path: Path) -> None:
    (tmp_path / "mask.safetensors").write_bytes(b"no mask")
    trainer = build("plain", model(base[0]), base[0], tmp_path)
    with pytest.raises(MaskError, match=r"mask\.safetensors"):
        train_only(trainer, tmp_path / "mask.safetensors")


def test_a_second_mask_is_refused_until_the_first_is_closed(base: Base, tmp_path: Path) -> None:
    net = model(base[0])
    trainer, training = start("plain", net, base, tmp_path)
    with pytest.raises(SettingsError, match="trains only a mask already"):
        train_only(trainer, training.mask)
    training.close()
    train_only(trainer, training.mask)


def test_the_script_of_the_guide(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from safetensors.torch import load_file

    guide = (Path(__file__).parents[2] / "docs" / "train.md").read_text("utf-8")
    diff = guide.partition("```diff\n")[2].partition("```")[0].splitlines()
    assert len([line for line in diff if line.startswith("+")]) == 3
    assert {line[:1] for line in diff} == {"+", " ", ""}
    script = "\n".join(line[1:] for line in diff)
    settings = tiny_trainers.arguments(Path("out"), max_completion_length=4, num_generations=2)
    for shown, run in (
        ("Qwen/Qwen2.5-0.5B", str(base[0])),
        ('output_dir="out",', f"**{settings!r},"),
        ("learning_rate=1e-6,", ""),  # no bf16 weight would round to another in 3 steps
    ):
        assert shown in script
        script = script.replace(shown, run)
    selected = arrays(model(base[0]))
    Mask.from_arrays(selected).save(tmp_path / "mask.safetensors")
    monkeypatch.chdir(tmp_path)
    prompts = datasets.Dataset.from_dict({"prompt": ["1+1=", "2+1="]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: prompts)
    with runtime.quiet():
        exec(script, {})
    changed = moved(load_file(base[0] / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS))
    assert all(not changed[name][~mask].any() for name, mask in selected.items())
    assert any(changed[name].any() for name in selected)
    assert Mask.load(tmp_path / "out" / MASK_FILE) == Mask.from_arrays(selected)
