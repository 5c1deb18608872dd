"""What a Trainer is set to do, in the words of the sparse optimizers; or why it cannot be done.

The Trainer's own arguments stay the one place where learning rate, betas, epsilon, weight decay,
momentum and `max_grad_norm` are set. Nothing that is set there is ignored: what a sparse optimizer
does not do is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.errors import SettingsError

__all__ = ["OptimizerSettings", "check_trainer", "optimizer_settings"]

NAMES = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw", "sgd": "sgd"}
"""Value of the Trainer's `optim` -> algorithm."""

ALGORITHMS = {"AdamW": "adamw", "SGD": "sgd"}
"""Class in `torch.optim` -> algorithm, for `optimizer_cls_and_kwargs`."""

HONOURED = {"adamw": {"lr", "betas", "eps"}, "sgd": {"lr", "momentum"}}
"""Keyword arguments that the sparse optimizer of an algorithm takes."""

WITHOUT_EFFECT = {"foreach", "fused", "weight_decay"}
"""Choices of a kernel; and the decay, which the Trainer sets for each parameter."""


@dataclass(frozen=True)
class OptimizerSettings:
    """Which optimizer the Trainer would make, and with what.

    Attributes:
        algorithm: `adamw` or `sgd`.
        keywords: `lr` and, by the algorithm, `betas` and `eps` or `momentum`.
        weight_decay: For the parameters that the Trainer decays.
        max_grad_norm: Norm at which gradients are clipped; None if they are not.
    """

    algorithm: str
    keywords: Mapping[str, Any]
    weight_decay: float
    max_grad_norm: float | None


def optimizer_settings(trainer: Any) -> OptimizerSettings:
    """Read the optimizer's settings as the Trainer's own `create_optimizer` would.

    Args:
        trainer: A transformers `Trainer`.

    Raises:
        SettingsError: They ask for something that the sparse optimizers do not do.
    """
    import torch

    args = trainer.args
    name = getattr(args.optim, "value", args.optim)
    if trainer.optimizer_cls_and_kwargs is None and name not in NAMES:
        raise SettingsError(
            f"optim={name!r} has no form that trains only a mask: "
            f"expected {', '.join(map(repr, NAMES))}"
        )
    cls, keywords = trainer.optimizer_cls_and_kwargs or trainer.get_optimizer_cls_and_kwargs(
        args, trainer.model
    )
    algorithm = ALGORITHMS.get(getattr(cls, "__name__", ""))
    if algorithm is None or cls is not getattr(torch.optim, cls.__name__):
        raise SettingsError(
            f"{getattr(cls, '__name__', cls)} has no form that trains only a mask: "
            "expected torch.optim.AdamW or torch.optim.SGD"
        )
    defaults = cls([torch.zeros(1)]).defaults
    unknown = {
        key: value
        for key, value in keywords.items()
        if key not in HONOURED[algorithm] | WITHOUT_EFFECT and value != defaults.get(key)
    }
    if unknown:
        given = ", ".join(f"{key}={value!r}" for key, value in unknown.items())
        raise SettingsError(
            f"{given}: an option of torch.optim.{cls.__name__} that its form for masks lacks"
        )
    chosen = {key: value for key, value in keywords.items() if key in HONOURED[algorithm]}
    return OptimizerSettings(
        algorithm,
        {"lr": args.learning_rate, **chosen},
        args.weight_decay,
        args.max_grad_norm or None,
    )


def check_trainer(trainer: Any) -> None:
    """Refuse trainers whose gradients or parameters are not where a sparse optimizer needs them.

    Args:
        trainer: A transformers `Trainer`, not yet training.

    Raises:
        SettingsError: One sentence for all that stands in the way.
    """
    from transformers import Trainer

    if not isinstance(trainer, Trainer):
        raise SettingsError(
            f"expected a transformers Trainer, found {type(trainer).__name__}: in a loop of your "
            "own, use SparseAdamW"
        )
    problems = list(_problems(trainer))
    if problems:
        raise SettingsError(f"{type(trainer).__name__}: {'; '.join(problems)}")


def _problems(trainer: Any) -> list[str]:
    from transformers import Trainer

    model, args = trainer.model, trainer.args
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    found = {
        "it trains only a mask already: close() what train_only returned first": (
            "create_optimizer" in vars(trainer)
        ),
        "it has an optimizer already: call train_only before train(), and pass no optimizers=": (
            trainer.optimizer is not None
        ),
        "its class has its own create_optimizer, which train_only would replace: make a "
        "SparseAdamW there instead": type(trainer).create_optimizer is not Trainer.create_optimizer,
        "it makes its model in model_init when training starts: pass the model itself": (
            trainer.model_init is not None
        ),
        "its model is a PEFT adapter, whose base is frozen: train the whole model, or merge the "
        "adapter first": hasattr(model, "peft_config")
        or getattr(model, "_hf_peft_config_loaded", False),
        "its model is quantised: load the weights as bf16 or fp32": (
            getattr(model, "is_quantized", False)
            or getattr(model, "hf_quantizer", None) is not None
        ),
        "DeepSpeed keeps weights and gradients in flat buffers: use FSDP2": (
            trainer.is_deepspeed_enabled
        ),
        "FSDP1 flattens the weights: set fsdp_version to 2": (
            trainer.is_fsdp_enabled and getattr(plugin, "fsdp_version", 1) != 2
        ),
        "its model was sharded when it was loaded: let accelerate shard it with FSDP2": (
            getattr(trainer, "is_distributed_loading_by_transformers", False)
        ),
        "several GPUs in one process (nn.DataParallel) are not supported: start it with "
        "torchrun or accelerate launch": args.n_gpu > 1,
        "fp16 scales its gradients by a moving factor: use bf16": args.fp16,
    }
    return [problem for problem, applies in found.items() if applies]
