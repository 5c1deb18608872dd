"""AdamW in single operations of torch: what a step on CUDA equals, bit for bit.

torch's own AdamW kernels may contract a multiplication and an addition into one operation, which
rounds once where the two round twice, and where they do so is the compiler's choice: it differs
between CPU and CUDA, and on a CPU even within a tensor
(`trimtab.training.optimizers.vector_width`). Here every operation rounds once, to nearest, so the
result is the same on every device. The formula is torch's; the last bits of a result can differ.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Factors", "adamw_step"]


class Factors(NamedTuple):
    """What a step multiplies with, computed in fp64 and rounded to fp32 once.

    Attributes:
        clip: For the gradient: at most 1.
        decay: For the weights: what weight decay leaves of them.
        new_mean: For what the gradient is above its running mean.
        old_square: For the running mean of the squared gradient.
        new_square: For the squared gradient.
        root: For the root of the mean of the squared gradient: corrects its bias. Division by a
            number would do on one device and not on another, where torch multiplies instead.
        eps: Added to that root.
        size: For the quotient of the means, with the bias of the first corrected; negative.
    """

    clip: float
    decay: float
    new_mean: float
    old_square: float
    new_square: float
    root: float
    eps: float
    size: float

    @classmethod
    def of_step(
        cls,
        step: int,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        clip: float,
    ) -> Factors:
        """The factors of a step.

        Args:
            step: Number of the step; the first is 1.
            lr: Learning rate.
            betas: Decay of the running means.
            eps: Added to the denominator.
            weight_decay: Decoupled weight decay.
            clip: What to multiply the gradient with.
        """
        mean, square = betas
        factors = cls(
            clip=clip,
            decay=1.0 - lr * weight_decay,
            new_mean=1.0 - mean,
            old_square=square,
            new_square=1.0 - square,
            root=1.0 / math.sqrt(1.0 - square**step),
            eps=eps,
            size=-lr / (1.0 - mean**step),
        )
        return cls(*torch.tensor(factors, dtype=torch.float32).tolist())


def adamw_step(
    weights: Tensor, gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, factors: Factors
) -> None:
    """Step the weights and the running means, in place.

    Args:
        weights: Masters, fp32 `[n]`.
        gradient: fp32 `[n]`; is not changed.
        exp_avg: Running mean of the gradient, fp32 `[n]`.
        exp_avg_sq: Running mean of its square, fp32 `[n]`.
        factors: Numbers of the step.
    """
    gradient = gradient * factors.clip
    exp_avg += (gradient - exp_avg) * factors.new_mean
    exp_avg_sq *= factors.old_square
    exp_avg_sq += gradient * gradient * factors.new_square
    root = exp_avg_sq.double().sqrt().float()  # fp32 square roots of MKL are not all the nearest
    denominator = root * factors.root + factors.eps
    weights *= factors.decay
    weights += exp_avg / denominator * factors.size
