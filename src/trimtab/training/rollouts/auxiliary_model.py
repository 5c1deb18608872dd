"""`AuxiliaryModel`: a second model that is trained with the policy, by its own optimizer.

It is used for the critic of PPO and the reward model of PRIME. Its weights are fp32, because at the
learning rates of RL most updates are lost in bf16. It uses the Trainer's arguments except for
learning rate and clipping, and is saved in the Trainer's checkpoints: `NAME.safetensors` and
`NAME_optimizer.pt`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from trimtab.errors import CheckpointError


class AuxiliaryModel:
    """A model with its AdamW and its learning rate schedule.

    Attributes:
        name: Prefix of its files.
        model: The model, with fp32 weights.

    Args:
        name: Prefix of its files.
        model: A Transformers model, or one with the same method for activation checkpointing. Its
            weights are converted to fp32.
        args: The Trainer's arguments: betas, epsilon, weight decay, schedule, warmup, and
            activation checkpointing.
        learning_rate: Peak learning rate of the schedule.
        max_grad_norm: Norm to clip its gradient to; 0 for no clipping.
    """

    def __init__(
        self, name: str, model: Any, args: Any, *, learning_rate: float, max_grad_norm: float
    ) -> None:
        self.name = name
        self.model = model.to(device=args.device, dtype=torch.float32).requires_grad_(True).train()
        if args.activation_checkpointing:
            model.activation_checkpointing_enable()
        self._args = args
        self._learning_rate = learning_rate
        self._max_grad_norm = max_grad_norm
        self._optimizer: Any = None
        self._schedule: Any = None

    def start(self, num_steps: int, decayed: Collection[str]) -> None:
        """Create the schedule for `num_steps`, and the optimizer if there is none yet."""
        from transformers import get_scheduler

        args = self._args
        if self._optimizer is None:
            named = list(self.model.named_parameters())
            self._optimizer = torch.optim.AdamW(
                [
                    {
                        "params": [p for name, p in named if (name in decayed) == is_decayed],
                        "weight_decay": args.weight_decay if is_decayed else 0.0,
                    }
                    for is_decayed in (True, False)
                ],
                lr=self._learning_rate,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
                fused=True,
            )
        self._schedule = get_scheduler(
            args.lr_scheduler_type,
            self._optimizer,
            num_warmup_steps=args.get_warmup_steps(num_steps),
            num_training_steps=num_steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )

    def step(self) -> float:
        """Take an optimizer step, free the gradients, and return their norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self._max_grad_norm or float("inf")
        )
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        return float(norm)

    def forget_gradients(self) -> None:
        """Drop the gradients of an interrupted step."""
        self.model.zero_grad()

    def save(self, folder: Path) -> None:
        """Save weights, optimizer and schedule in a checkpoint folder."""
        from safetensors.torch import save_model

        save_model(self.model, str(folder / f"{self.name}.safetensors"))
        state = {
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        torch.save(state, folder / f"{self.name}_optimizer.pt")

    def load(self, folder: Path) -> None:
        """Load what `save` wrote; CheckpointError if it is missing or belongs to another model."""
        from safetensors import SafetensorError
        from safetensors.torch import load_model

        try:
            load_model(self.model, folder / f"{self.name}.safetensors")
            state = torch.load(folder / f"{self.name}_optimizer.pt", weights_only=True)
            self._optimizer.load_state_dict(state["optimizer"])
            self._schedule.load_state_dict(state["schedule"])
        except (OSError, LookupError, ValueError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"this run cannot be resumed from {folder}: its {self.name} cannot be read "
                f"({reason})"
            ) from None
