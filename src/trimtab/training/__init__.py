"""Train a model, or only what a mask selects of it; the only place that imports TRL.

Needs the train extra. Nothing here imports torch, transformers or TRL before it is called; the
public names below are imported when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.training.masked_training import train_only
    from trimtab.training.optimizers.adamw import SparseAdamW
    from trimtab.training.optimizers.sgd import SparseSGD
    from trimtab.training.ppo import PPOConfig, PPOTrainer
    from trimtab.training.prime import PRIMEConfig, PRIMETrainer

__all__ = [
    "PPOConfig",
    "PPOTrainer",
    "PRIMEConfig",
    "PRIMETrainer",
    "SparseAdamW",
    "SparseSGD",
    "train_only",
]

_MODULES = {
    "PPOConfig": "trimtab.training.ppo",
    "PPOTrainer": "trimtab.training.ppo",
    "PRIMEConfig": "trimtab.training.prime",
    "PRIMETrainer": "trimtab.training.prime",
    "SparseAdamW": "trimtab.training.optimizers.adamw",
    "SparseSGD": "trimtab.training.optimizers.sgd",
    "train_only": "trimtab.training.masked_training",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
