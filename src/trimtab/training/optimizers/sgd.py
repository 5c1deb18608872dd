"""SGD, with or without momentum, whose state follows the mask."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from trimtab.errors import SettingsError
from trimtab.masks.mask import Mask
from trimtab.training.optimizers.binding import Parameters, SparseOptions
from trimtab.training.optimizers.sparse import SparseOptimizer


class SparseSGD(SparseOptimizer):
    """SGD on the elements that a mask selects; all others keep their bits.

    Equal, bit for bit, to `torch.optim.SGD(fused=True)` on fp32 masters of all weights with
    gradients that are set to 0 outside the mask, at every size. See `SparseOptimizer` for the
    order of operations. Without momentum the only state is that of the masters.

    Source:
        SGD in RL fine-tuning: arXiv 2602.07729.
    """

    def __init__(
        self,
        named_parameters: Parameters,
        mask: Mask,
        *,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        **options: Unpack[SparseOptions],
    ) -> None:
        """Bind the mask to the parameters; see `SparseOptimizer` for errors.

        Args:
            named_parameters: `model.named_parameters()`, the model, or parameter groups.
            mask: Which elements to train.
            lr: Learning rate.
            momentum: Decay of the running sum of gradients; 0 keeps none.
            weight_decay: L2 penalty, added to the gradient of the selected elements.
            **options: Clipping, precision, processes and so on: see `SparseOptions`.
        """
        if momentum < 0.0:
            raise SettingsError(f"momentum must not be negative, as {momentum} is")
        super().__init__(
            named_parameters,
            mask,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay},
            moments={"momentum_buffer": "signed"} if momentum > 0.0 else {},
            **options,
        )

    def _count(self, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Nothing."""

    def _apply(
        self,
        group: dict[str, Any],
        state: dict[str, Any],
        weights: Tensor,
        gradient: Tensor,
        *moments: Tensor,
        first: bool,
    ) -> None:
        torch._fused_sgd_(
            [weights],
            [gradient],
            list(moments),
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=first,
        )
