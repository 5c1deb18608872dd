"""See every gradient as soon as autograd has it, and free it: only one is there at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import SettingsError
from trimtab.words import first_few

__all__ = ["Backward", "See", "each_gradient"]

See = Callable[[str, Tensor], None]
"""Called with the name of a parameter and its gradient, which it may overwrite."""

Backward = Callable[[Tensor], None]
"""Called with a loss."""


@contextmanager
def each_gradient(parameters: Mapping[str, Tensor], see: See) -> Iterator[Backward]:
    """Yield a function that shows the gradients of a loss, one after the other.

    The gradient of a parameter that the model uses twice, as it does tied embeddings, is the sum
    of both. A parameter that the loss does not depend on is not shown.

    Args:
        parameters: By name; their `grad` is None before and after.
        see: Sees the gradients of each loss.

    Raises:
        SettingsError: (by the function) A gradient has NaN or infinity; names the parameters.
    """
    broken: list[str] = []

    def looker(name: str) -> Callable[[Any], None]:
        def look(parameter: Any) -> None:
            gradient, parameter.grad = parameter.grad, None
            # The largest magnitude is NaN if any is, and takes one pass without a copy.
            if not isfinite(torch.linalg.vector_norm(gradient, torch.inf)):
                broken.append(name)
            elif not broken:
                see(name, gradient)

        return look

    def backward(loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        if broken:
            raise SettingsError(
                f"the gradient of {first_few(broken)} has NaN or infinity, so it says nothing of "
                "the elements: leave out the rows that make it so, or compute in another dtype"
            )

    hooks = [
        parameter.register_post_accumulate_grad_hook(looker(name))  # type: ignore[no-untyped-call]
        for name, parameter in parameters.items()
    ]
    try:
        yield backward
    finally:
        for hook in hooks:
            hook.remove()
