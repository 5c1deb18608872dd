"""SGD, with or without momentum, whose state follows the mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from trimtab.errors import SettingsError
from trimtab.masks import Mask
from trimtab.training.optimizers.masters import Master
from trimtab.training.optimizers.sparse import SparseOptimizer, Vectors

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["SparseSGD"]


class SparseSGD(SparseOptimizer):
    """SGD on the elements that a mask selects; all others keep their bits.

    Equal, bit for bit, to `torch.optim.SGD(fused=True)` on fp32 masters of all weights with
    gradients that are set to 0 outside the mask, at every size; `SparseOptimizer` says what is
    done in which order. Without momentum there is no state but the master's remainder.

    Source:
        SGD in RL fine-tuning: arXiv 2602.07729.
    """

    def __init__(
        self,
        named_parameters: nn.Module | Iterable[tuple[str, Tensor]],
        mask: Mask,
        *,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        also: str | Iterable[str] = (),
        max_grad_norm: float | None = None,
        clip_by: Literal["masked", "full"] = "masked",
        master: Master | None = None,
        state_dtype: torch.dtype = torch.float32,
        nonfinite: Literal["raise", "skip"] = "raise",
        check_base: bool = True,
        no_decay: Callable[[str], bool] | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        """Bind the mask to the parameters; see `SparseOptimizer` for the arguments it shares.

        Args:
            named_parameters: `model.named_parameters()`, or the model.
            mask: Which elements to train.
            lr: Learning rate.
            momentum: Decay of the running sum of gradients; 0 keeps none.
            weight_decay: L2 penalty, added to the gradient of the selected elements.
            also: Parameters to train whole, beside the mask.
            max_grad_norm: Clip the gradient to this norm.
            clip_by: Whose norm that is.
            master: Precision of the weights between steps.
            state_dtype: Dtype of the running sum between steps.
            nonfinite: What to do about NaN or infinity in the gradient.
            check_base: Compare the weights with the base that the mask was made against.
            no_decay: Names of the parameters that are exempt from weight decay.
            process_group: The processes that train copies of the model.
        """
        if momentum < 0.0:
            raise SettingsError(f"momentum must not be negative, as {momentum} is")
        self._has_momentum = momentum > 0.0
        super().__init__(
            named_parameters,
            mask,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay},
            also=also,
            max_grad_norm=max_grad_norm,
            clip_by=clip_by,
            master=master,
            state_dtype=state_dtype,
            nonfinite=nonfinite,
            check_base=check_base,
            no_decay=no_decay,
            process_group=process_group,
        )

    def _numbers(self) -> tuple[str, ...]:
        return ()

    def _moments(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self._has_momentum else ()

    def _apply(
        self, group: dict[str, Any], state: dict[str, Any], vectors: Vectors, *, first: bool
    ) -> None:
        torch._fused_sgd_(
            [vectors.weights],
            [vectors.gradient],
            vectors.moments,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=first,
        )
