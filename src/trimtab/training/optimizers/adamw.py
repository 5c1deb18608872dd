"""AdamW whose state follows the mask."""

from __future__ import annotations

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from trimtab.errors import SettingsError
from trimtab.masks.mask import Mask
from trimtab.training.optimizers.binding import Parameters, SparseOptions
from trimtab.training.optimizers.elements import Elements, Scratch
from trimtab.training.optimizers.kernels import AdamWFactors, adamw_step, has_kernel
from trimtab.training.optimizers.sparse import SparseOptimizer

SINGLE_OPERATIONS = ("cuda",)
"""Types of devices on which each operation rounds once; see `kernels.adamw_step`."""


class SparseAdamW(SparseOptimizer):
    """AdamW on the elements that a mask selects; all others keep their bits.

    On a CPU equal, bit for bit, to `torch.optim.AdamW(fused=True)` on fp32 masters of all weights
    with gradients that are set to 0 outside the mask, at every size. See `SparseOptimizer` for the
    order of operations.

    There a step is one compiled kernel per parameter if that gives torch's bits on this machine,
    which is compared once (see `trimtab.training.optimizers.cpu_adamw`); if not, torch's kernel
    steps some elements after the others.

    On CUDA the formula is the same, but each operation rounds once, which torch's kernels leave to
    the compiler (see `trimtab.training.optimizers.kernels`). With Triton a step is one kernel per
    parameter; without, torch operations give the same bits. The host waits for the GPU once per
    step, to check the norm of the gradient before anything is changed.
    """

    def __init__(
        self,
        named_parameters: Parameters,
        mask: Mask,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Unpack[SparseOptions],
    ) -> None:
        """Bind the mask to the parameters; see `SparseOptimizer` for errors.

        Args:
            named_parameters: `model.named_parameters()`, the model, or parameter groups.
            mask: Which elements to train.
            lr: Learning rate.
            betas: Decay rates of the running means of the gradient and of its square.
            eps: Added to the denominator.
            weight_decay: Decoupled weight decay, of the selected elements only.
            **options: Clipping, precision, processes and so on: see `SparseOptions`.
        """
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise SettingsError(f"betas must lie in [0, 1), not {betas}")
        if eps < 0.0:
            raise SettingsError(f"eps must not be negative, as {eps} is")
        super().__init__(
            named_parameters,
            mask,
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay},
            numbers=("step",),
            moments={"exp_avg": "signed", "exp_avg_sq": "squares"},
            **options,
        )

    def _step_elements(
        self,
        group: dict[str, Any],
        elements: Elements,
        gradient: Tensor,
        clip: float,
        scratch: Scratch,
    ) -> None:
        state = self.state[elements.parameter]
        if not state:
            state.update(self._form.new(elements, self._binding.masters[elements.name]))
        weights, kernels = elements.weights, elements.kernels
        if has_kernel(gradient.device):
            from trimtab.training.optimizers import cuda_kernels

            self._count(group, state)
            factors = _factors(group, state, clip)
            cuda_kernels.fused_adamw_step(weights, kernels.positions, gradient, state, factors)
            return
        if gradient.device.type == "cpu":
            from trimtab.training.optimizers import cpu_adamw

            if cpu_adamw.can_step(kernels, weights, state, gradient):
                self._count(group, state)
                factors = _factors(group, state, clip)
                root = math.sqrt(1.0 - group["betas"][1] ** int(state["step"]))
                num_whole = elements.num_selected - elements.tail.num_scalar
                cpu_adamw.fused_adamw_step(
                    weights, kernels, num_whole, gradient, state, factors, root
                )
                return
        super()._step_elements(group, elements, gradient, clip, scratch)

    def _count(self, group: dict[str, Any], state: dict[str, Any]) -> None:
        # On the CPU: the host needs the number, and would have to wait for a GPU.
        state["step"] = state["step"].cpu().add_(1.0)

    def _apply(
        self,
        group: dict[str, Any],
        state: dict[str, Any],
        weights: Tensor,
        gradient: Tensor,
        *moments: Tensor,
        first: bool,
    ) -> None:
        exp_avg, exp_avg_sq = moments
        if weights.device.type in SINGLE_OPERATIONS:
            factors = _factors(group, state, clip=1.0)
            adamw_step(weights, gradient, exp_avg, exp_avg_sq, factors)
            return
        beta1, beta2 = group["betas"]
        torch._fused_adamw_(
            [weights],
            [gradient],
            [exp_avg],
            [exp_avg_sq],
            [],
            [state["step"]],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def _factors(group: dict[str, Any], state: dict[str, Any], clip: float) -> AdamWFactors:
    return AdamWFactors.of_step(
        int(state["step"]),
        lr=float(group["lr"]),
        betas=group["betas"],
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        clip=clip,
    )
