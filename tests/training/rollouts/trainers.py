"""PPO and PRIME on the tiny model: a small task, and how a trainer of it is made and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.training import tiny
from trimtab.training import runtime

ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in (5, 67, 891, 2345)]
"""Prompts of four lengths."""


def sevens(completions: Sequence[str], **_: Any) -> list[float]:
    """Share of four characters that are a seven."""
    return [text.count("7") / 4 for text in completions]


def high(completions: Sequence[str], **_: Any) -> list[float]:
    """Share of four characters that are a five or more: seldom the same twice, before training."""
    return [sum(character in "56789" for character in text) / 4 for text in completions]


def settings(out: Path, **more: Any) -> dict[str, Any]:
    """Two steps of four completions, two passes over them."""
    return {
        "output_dir": str(out),
        "max_steps": 2,
        "num_ppo_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_completion_length": 4,
        "use_cpu": True,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
        **more,
    }


def ppo(net: Any, out: Path, **more: Any) -> Any:
    """A `PPOTrainer`; arguments of its own are taken out of the settings."""
    from trimtab.training import PPOConfig, PPOTrainer

    return _made(PPOTrainer, PPOConfig, net, out, more)


def prime(net: Any, out: Path, **more: Any) -> Any:
    """A `PRIMETrainer` with two completions of each prompt, and a quick reward model."""
    from trimtab.training import PRIMEConfig, PRIMETrainer

    usual = {"num_generations": 2, "oversample_factor": 2.0, "reward_learning_rate": 1e-3}
    return _made(PRIMETrainer, PRIMEConfig, net, out, {**usual, **more})


def _made(trainer: Any, config: Any, net: Any, out: Path, more: dict[str, Any]) -> Any:
    from transformers import PrinterCallback

    names = ("train_dataset", "processing_class", "reward_funcs", "ref_model", "callbacks")
    own = {name: more.pop(name) for name in names if name in more}
    usual = {
        "train_dataset": ROWS,
        "processing_class": tiny.tokenizer(),
        "reward_funcs": high,
    }
    with runtime.quiet():
        made = trainer(model=net, args=config(**settings(out, **more)), **{**usual, **own})
    made.remove_callback(PrinterCallback)
    return made


def logged(trainer: Any, name: str) -> list[float]:
    """What was logged under a name, step by step."""
    return [row[name] for row in trainer.state.log_history if name in row]


BUILDERS: Mapping[str, Callable[..., Any]] = {"ppo": ppo, "prime": prime}
"""Name -> what makes a trainer that samples in rounds."""
