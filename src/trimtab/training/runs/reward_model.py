"""A reward model of a run: checked and hashed before it starts, loaded when first asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.stream import Source, new_buffer
from trimtab.errors import SettingsError
from trimtab.results.records import record_of
from trimtab.training import runtime
from trimtab.training.rollouts.checked_reward import checked
from trimtab.training.runs.base_model import loading, refuse_adapter
from trimtab.training.runs.rewards import Reward

__all__ = ["model_reward"]


def model_reward(named: str, folder: Path) -> Reward:
    """The reward of a sequence classifier with one output: its logit.

    Args:
        named: The folder of the model.
        folder: What a relative path is relative to.

    Raises:
        SettingsError: There is no such folder, or it holds no such model with its tokenizer.
        CheckpointError: Its weights cannot be read, or an adapter lies beside them.
    """
    from transformers import AutoConfig, AutoTokenizer

    path = folder / Path(named).expanduser()
    if not path.is_dir():
        raise SettingsError(f"reward.model: {path}: expected the folder of a model")
    refuse_adapter("reward.model", path)
    problem = f"reward.model: {path}: its config or tokenizer cannot be loaded"
    with loading(problem, SettingsError):
        config = AutoConfig.from_pretrained(path)
        AutoTokenizer.from_pretrained(path)
        made_for = ", ".join(config.architectures or ["nothing"])
    if "ForSequenceClassification" not in made_for or config.num_labels != 1:
        raise SettingsError(
            f"reward.model: {path} is a {made_for} with {config.num_labels} outputs, expected a "
            "sequence classifier with one (…ForSequenceClassification, num_labels = 1)"
        )
    return Reward(checked(_LoadedLater(path), "model"), (), {"model": _content_hash(path)})


class _LoadedLater:
    """A reward model that takes no memory before it is asked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._model: Any = None

    def __call__(self, **given: Any) -> list[float]:
        if self._model is None:
            from trimtab.training.rollouts.rewards import RewardModel

            self._model = RewardModel(str(self._path), None, runtime.accelerator())
        scores: list[float] = self._model(**given)
        return scores


def _content_hash(path: Path) -> str:
    """One hash over all tensors of a checkpoint."""
    with open_checkpoint(path) as checkpoint:
        buffer = new_buffer()
        digests = {
            name: Source(tensor, tensor.dtype, None, buffer).finish()
            for name, tensor in checkpoint.tensors.items()
        }
        return record_of(checkpoint, digests).content_hash
