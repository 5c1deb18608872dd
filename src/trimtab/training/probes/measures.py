"""What is made of the gradients of an element: the formulas, on one tensor at a time.

Each adds up something of every gradient, and makes a score of the sum at the end; higher says that
training is more likely to move the element. Units do not matter, since only the order is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["FISHER", "SIGN_CONSISTENCY", "SNIP", "Measure"]


@dataclass(frozen=True)
class Measure:
    """How gradients become scores. Tensors are flat and fp32.

    Attributes:
        name: Of the measure, as the command line and the provenance have it.
        add: Adds a gradient, which it may overwrite, to the sums.
        finish: Turns sums into scores, in place, given the weights and how many were added.
    """

    name: str
    add: Callable[[Tensor, Tensor], None]
    finish: Callable[[Tensor, Tensor, int], None]


def _add_square(sums: Tensor, gradient: Tensor) -> None:
    sums.addcmul_(gradient, gradient)


def _add_sign(sums: Tensor, gradient: Tensor) -> None:
    sums.add_(gradient.sign_())


def _add(sums: Tensor, gradient: Tensor) -> None:
    sums.add_(gradient)


def _mean(sums: Tensor, weights: Tensor, num: int) -> None:
    sums.div_(num)


def _share_of_signs(sums: Tensor, weights: Tensor, num: int) -> None:
    sums.abs_().div_(num)


def _saliency(sums: Tensor, weights: Tensor, num: int) -> None:
    sums.div_(num).mul_(weights).abs_()


FISHER = Measure("fisher", _add_square, _mean)
"""The diagonal of the model Fisher: the mean of (∂ log p(y | x) / ∂w)² over prompts x and
completions y that the model itself gives them.

y is a whole completion. Its tokens one by one would give the same expectation, since the gradients
of different tokens of a sample of the model are uncorrelated.

Source:
    arXiv 2609.36262: a small diagonal of the model Fisher means small expected gradients.
"""

SIGN_CONSISTENCY = Measure("sign-consistency", _add_sign, _share_of_signs)
"""|sum of the signs of the gradient| / N over N batches: 1 if all push the element the same way.

A gradient of 0 has no sign and counts as a batch that does not push.
"""

SNIP = Measure("snip", _add, _saliency)
"""|w g| with g the mean gradient over all batches: how much the loss would change, to first order,
if the element were 0.

Source:
    Lee, Ajanthan and Torr, SNIP, ICLR 2019 (arXiv 1810.02340), section 4, without the division
    by the sum over all elements, which changes no order.
"""
