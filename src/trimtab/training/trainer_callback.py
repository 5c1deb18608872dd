"""Train only a mask through the Trainer's own `optimizers=` and a callback.

::

    trainer = Trainer(
        model,
        args,
        train_dataset=rows,
        optimizers=(sparse_adamw(model, "mask.safetensors", args), None),
        callbacks=[MaskedTrainingCallback()],
    )

This works where a Trainer accepts an optimizer and saves by `save_strategy`. For what only
`train_only` can do, see docs/train.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainerCallback

from trimtab.errors import SettingsError
from trimtab.masks.mask import Mask
from trimtab.training import runtime
from trimtab.training.layout import Layout
from trimtab.training.masked_checkpoint import converted_pieces, write_beside_weights
from trimtab.training.masked_training import (
    freeze_others,
    optimizer_settings,
    settings_of,
)
from trimtab.training.model_masks import base_of, mask_of
from trimtab.training.optimizers.adamw import SparseAdamW
from trimtab.training.optimizers.sparse import SparseOptimizer
from trimtab.training.tracker.gradients import unwrapped


def sparse_adamw(
    model: Any,
    mask: Mask | str | os.PathLike[str],
    args: Any = None,
    *,
    density: float | None = None,
    seed: int = 0,
    **options: Any,
) -> SparseAdamW:
    """Create the optimizer that a Trainer takes as `optimizers=(sparse_adamw(…), None)`.

    Args:
        model: The model; on the device where it is trained.
        mask: The mask; or its file; or a kind of mask to make from the model, as in `train_only`.
        args: A `TrainingArguments` with learning rate, betas, epsilon, weight decay (and which
            parameters have none) and `max_grad_norm`; None to pass them as `options`.
        density: Share of the elements of each tensor that a mask made here selects.
        seed: Decides a random mask, and which of equal weights a mask made here selects.
        **options: Arguments of `SparseAdamW`; they take precedence over `args`.

    Raises:
        SettingsError: `args` request an optimizer or option that is not supported with a mask; or
            the Trainer would clip the gradient a second time.
        MaskError: The mask cannot be read, or not be made; or it selects nothing, or everything.
        MaskMismatchError: The mask was made for another model, or for other weights.
        OptimizerError: Parameters that the mask selects cannot be trained this way.
    """
    mask, _ = mask_of(model, mask, density, seed)
    settings: dict[str, Any] = {}
    if args is not None:
        optimizer = optimizer_settings(args, model)
        if optimizer.algorithm != "adamw":
            raise SettingsError(f"optim={args.optim!r}: make a SparseSGD, with lr and momentum")
        decayed = set(Trainer.get_decay_parameter_names(Trainer, model))
        settings = {
            **optimizer.keywords,
            "weight_decay": optimizer.weight_decay,
            "no_decay": lambda name: name not in decayed,
            "max_grad_norm": optimizer.max_grad_norm,
        }
    if options.get("clip_by") == "full" and args is not None and args.max_grad_norm:
        raise SettingsError(
            'clip_by="full" leaves the gradients in place, and the Trainer clips them, too: use '
            "train_only, or set max_grad_norm=0 in its arguments and give it here"
        )
    return SparseAdamW(model, mask, **{**settings, **options})


class MaskedTrainingCallback(TrainerCallback):  # type: ignore[misc]
    """Callback for a Trainer with a sparse optimizer.

    During training, parameters without a masked element get no gradient (in one process), and
    `grad_norm` in the logs is the norm of the masked gradient. Each checkpoint gets mask and record
    next to the weights. At the end the optimizer is closed and the model is an ordinary one again.
    """

    def __init__(self) -> None:
        self._optimizer: SparseOptimizer | None = None
        self._mask: Mask | None = None
        self._frozen: list[Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the optimizer, and freeze the parameters that it does not train.

        Raises:
            SettingsError: The Trainer has another optimizer; or it resumes a model whose tensors
                are stored under other names or shapes, some of which it would not load.
        """
        model, optimizer = kwargs["model"], unwrapped(kwargs["optimizer"])
        if not isinstance(optimizer, SparseOptimizer):
            raise SettingsError(
                f"the Trainer has a {type(optimizer).__name__}, which trains every element: give "
                "it optimizers=(sparse_adamw(model, mask, args), None)"
            )
        if state.global_step and converted_pieces(model):
            raise SettingsError(
                "transformers stores tensors of this model under other names or shapes, and its "
                "Trainer skips them when it resumes: use train_only, which loads them"
            )
        optimizer.reopen()
        self._optimizer = optimizer
        self._mask = Layout.of(model).in_files(optimizer.mask)
        if args.world_size == 1 and optimizer.describe()["clip_by"] == "masked":
            self._frozen = freeze_others(model, optimizer)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Replace the Trainer's gradient norm by that of the masked gradient."""
        norm = None if self._optimizer is None else self._optimizer.grad_norm
        if logs is not None and "grad_norm" in logs and norm is not None:
            logs["grad_norm"] = norm
            if state.log_history and state.log_history[-1].get("step") == state.global_step:
                state.log_history[-1]["grad_norm"] = norm

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write mask and record into a checkpoint."""
        self._write(Path(args.output_dir) / f"checkpoint-{state.global_step}", args, state, kwargs)

    def on_push_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write mask and record beside the weights that are pushed to the hub."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for folder in (Path(args.output_dir), *([checkpoint] if checkpoint.exists() else [])):
            self._write(folder, args, state, kwargs)

    def _write(self, folder: Path, args: Any, state: Any, kwargs: dict[str, Any]) -> None:
        if args.should_save and self._optimizer is not None and self._mask is not None:
            record = {
                "settings": settings_of(self._optimizer),
                "optimizer": self._optimizer.describe(),
                "base": base_of(kwargs["model"]),
                "trainer": None,
                "step": state.global_step,
                "versions": runtime.versions(),
            }
            write_beside_weights(folder, self._mask, record)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore an ordinary model: remove hooks, and unfreeze parameters."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []
        if self._optimizer is not None:
            self._optimizer.close()
