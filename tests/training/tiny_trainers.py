"""One real trainer of each kind on the tiny base, ready in 0.1 s, and ways to see what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.training import tiny
from trimtab.masks.mask import Mask
from trimtab.training import runtime, train_only
from trimtab.training.masked_training import MaskedTraining

Base = tuple[Path, dict[str, Any]]
Arrays = Mapping[str, NDArray[np.bool_]]

LEFT_OUT = "model.layers.1.mlp.up_proj.weight"
"""A tensor that `arrays` leaves without a selected element."""

SUMS = [(i, 1) for i in range(8)]


def arguments(out: Path, **more: Any) -> dict[str, Any]:
    """Settings that every trainer understands: fp32 arithmetic, 3 steps of 2 sequences."""
    return {
        "output_dir": str(out),
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch_fused",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        **more,
    }


def model(base: Path, dtype: str = "bfloat16") -> Any:
    """The tiny base as a user would load it."""
    from transformers import AutoModelForCausalLM

    with runtime.quiet():
        return AutoModelForCausalLM.from_pretrained(base, dtype=dtype)


def arrays(net: Any, density: float = 0.2, seed: int = 0) -> dict[str, NDArray[np.bool_]]:
    """Random bool arrays for the parameters of a model; nothing is selected of `LEFT_OUT`."""
    random = np.random.default_rng(seed)
    return {
        name: random.random(tuple(parameter.shape)) < (0 if name == LEFT_OUT else density)
        for name, parameter in net.named_parameters()
    }


def plain(net: Any, base: Path, out: Path, **more: Any) -> Any:
    """`transformers.Trainer` with next-token loss on prompt and answer."""
    from transformers import Trainer, TrainingArguments

    ids = [tiny.tokenizer()(f"{a}+{b}={a + b}\n")["input_ids"][:6] for a, b in SUMS]
    rows = [{"input_ids": row, "labels": row} for row in ids]
    args = TrainingArguments(**arguments(out, **more))
    return Trainer(net, args, train_dataset=rows, eval_dataset=rows)


def sft(net: Any, base: Path, out: Path, **more: Any) -> Any:
    """TRL's SFT on prompt and completion."""
    from trl import SFTConfig, SFTTrainer

    return _trl(SFTTrainer, SFTConfig, net, out, _answers("completion"), more)


def dpo(net: Any, base: Path, out: Path, **more: Any) -> Any:
    """TRL's DPO; the reference model is the base, loaded again."""
    from trl import DPOConfig, DPOTrainer

    return _trl(DPOTrainer, DPOConfig, net, out, _answers("chosen", "rejected"), more)


def kto(net: Any, base: Path, out: Path, **more: Any) -> Any:
    """TRL's KTO on right and wrong answers."""
    from trl import KTOConfig, KTOTrainer

    rows = _answers("completion")
    rows["label"] = [i % 2 == 0 for i in range(len(SUMS))]
    return _trl(KTOTrainer, KTOConfig, net, out, rows, more)


def orpo(net: Any, base: Path, out: Path, **more: Any) -> Any:
    """TRL's experimental ORPO."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    more = {"max_length": 16, "remove_unused_columns": False, **more}
    return _trl(ORPOTrainer, ORPOConfig, net, out, _answers("chosen", "rejected"), more)


def simpo(net: Any, base: Path, out: Path, **more: Any) -> Any:
    """SimPO: TRL's experimental CPO with SimPO's loss and no cloning term."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    more = {"max_length": 16, "remove_unused_columns": False, **more}
    more |= {"loss_type": "simpo", "cpo_alpha": 0.0}
    return _trl(CPOTrainer, CPOConfig, net, out, _answers("chosen", "rejected"), more)


def grpo(net: Any, base: Path, out: Path, **more: Any) -> Any:
    """TRL's GRPO."""
    from trl import GRPOConfig, GRPOTrainer

    more = {"num_generations": 2, "max_completion_length": 4, **more}
    return _trl(GRPOTrainer, GRPOConfig, net, out, _answers(), more, reward_funcs=_every_second)


def rloo(net: Any, base: Path, out: Path, **more: Any) -> Any:
    """TRL's RLOO."""
    from trl import RLOOConfig, RLOOTrainer

    more = {"num_generations": 2, "max_completion_length": 4, **more}
    return _trl(RLOOTrainer, RLOOConfig, net, out, _answers(), more, reward_funcs=_every_second)


def reward(net: Any, base: Path, out: Path, **more: Any) -> Any:
    """TRL's reward modelling; the head starts from its seed."""
    from trl import RewardConfig, RewardTrainer

    return _trl(RewardTrainer, RewardConfig, net, out, _answers("chosen", "rejected"), more)


def reward_model(base: Path) -> Any:
    """The tiny base with a head of one output."""
    from transformers import AutoModelForSequenceClassification

    with runtime.quiet():
        return AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=1, dtype="bfloat16"
        )


BUILDERS: Mapping[str, Callable[..., Any]] = {
    "plain": plain,
    "sft": sft,
    "dpo": dpo,
    "kto": kto,
    "orpo": orpo,
    "simpo": simpo,
    "grpo": grpo,
    "rloo": rloo,
    "reward": reward,
}


def build(kind: str, net: Any, base: Path, out: Path, **more: Any) -> Any:
    """A trainer of a kind; the model's random state does not depend on what ran before."""
    import torch
    from transformers import PrinterCallback

    torch.manual_seed(0)
    with runtime.quiet():
        trainer = BUILDERS[kind](net, base, out, **more)
    trainer.remove_callback(PrinterCallback)
    return trainer


def train(trainer: Any, resume: Path | None = None) -> Any:
    """Train without the noise of the libraries."""
    with runtime.quiet():
        return trainer.train(resume_from_checkpoint=None if resume is None else str(resume))


def weights(net: Any) -> dict[str, Any]:
    """A copy of a model's parameters."""
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def bits(tensor: Any) -> NDArray[np.uint8]:
    """The stored bytes of a tensor, one row for each element."""
    import torch

    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return flat.view(-1, tensor.element_size()).numpy()


def moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, NDArray[np.bool_]]:
    """Which elements have other bits."""
    return {
        name: (bits(before[name]) != bits(after[name])).any(1).reshape(before[name].shape)
        for name in before
    }


def assert_same_bits(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if (bits(one[name]) != bits(other[name])).any()] == []


def column(trainer: Any, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if "loss" in row]


def before_each_step(trainer: Any, look: Callable[[], Any]) -> list[Any]:
    """Have a look each time the gradients are there and the step is not."""
    from transformers import TrainerCallback

    seen: list[Any] = []

    class Look(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            seen.append(look())

    trainer.add_callback(Look())
    return seen


def start(
    kind: str, net: Any, base: Base, out: Path, selected: Arrays | None = None, **settings: Any
) -> tuple[Any, MaskedTraining]:
    """A trainer that trains only a mask, and its arrangement."""
    options = {k: settings.pop(k) for k in ("master", "clip_by", "nonfinite") if k in settings}
    trainer = build(kind, net, base[0], out, **settings)
    mask = Mask.from_arrays(arrays(net) if selected is None else selected)
    return trainer, train_only(trainer, mask, **options)


def _answers(*columns: str) -> dict[str, list[Any]]:
    """Sums and their answers, right in the first column and wrong in the second."""
    rows: dict[str, list[Any]] = {"prompt": [f"{a}+{b}=" for a, b in SUMS]}
    for wrong, column in enumerate(columns):
        rows[column] = [f"{a + b + wrong}\n" for a, b in SUMS]
    return rows


def _every_second(completions: list[str], **_: Any) -> list[float]:
    """Rewards that differ in every group of two."""
    return [float(i % 2) for i in range(len(completions))]


def _trl(
    trainer: Any,
    config: Any,
    net: Any,
    out: Path,
    rows: Mapping[str, list[Any]],
    settings: Mapping[str, Any],
    **more: Any,
) -> Any:
    from datasets import Dataset

    return trainer(
        model=net,
        args=config(**arguments(out, **settings)),
        train_dataset=Dataset.from_dict(dict(rows)),
        processing_class=tiny.tokenizer(),
        **more,
    )
