"""From a model's parameters and a mask to the elements that an optimizer trains."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from trimtab.masks import Mask
from trimtab.training.optimizers.compact import CompactElements
from trimtab.training.optimizers.dense import DENSE_ABOVE, DenseElements
from trimtab.training.optimizers.elements import Elements
from trimtab.training.optimizers.sharding import box_of

__all__ = ["TAKEN", "Collector", "bind", "groups_of"]

TAKEN: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""The parameters whose gradients an open optimizer collects: no attribute, which copies carry."""


def bind(
    parameters: Sequence[tuple[str, Tensor]], mask: Mask
) -> tuple[list[Elements], list[tuple[str, Tensor]]]:
    """Split the parameters that get a gradient into those that a mask trains, and the others.

    Args:
        parameters: Pairs that the mask fits.
        mask: The mask.

    Returns:
        The selected elements of each parameter that has any, in whichever process, and the other
        parameters.
    """
    trained: list[Elements] = []
    others: dict[int, tuple[str, Tensor]] = {}
    for name, parameter in parameters:
        if name in mask and mask.num_selected(name):
            trained.append(_elements(name, parameter, mask))
        elif parameter.requires_grad:
            others.setdefault(id(parameter), (name, parameter))
    for elements in trained:  # a tied tensor is listed by its other names, too
        others.pop(id(elements.parameter), None)
    return trained, list(others.values())


def _elements(name: str, parameter: Tensor, mask: Mask) -> Elements:
    selected = mask.array(name)[box_of(parameter)].reshape(-1)
    if int(selected.sum()) > DENSE_ABOVE * selected.size:
        return DenseElements(name, parameter, torch.from_numpy(selected))
    return CompactElements(name, parameter, torch.from_numpy(np.flatnonzero(selected)))


def groups_of(
    trained: Iterable[Elements], no_decay: Callable[[str], bool] | None
) -> list[dict[str, Any]]:
    """The parameters in groups for `torch.optim.Optimizer`: those with weight decay, the others.

    Args:
        trained: The selected elements of each parameter.
        no_decay: Told a parameter's name, says whether it has no weight decay; None if all have.
    """
    decayed: list[tuple[str, Tensor]] = []
    exempt: list[tuple[str, Tensor]] = []
    for elements in trained:
        chosen = exempt if no_decay is not None and no_decay(elements.name) else decayed
        chosen.append((elements.name, elements.parameter))
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": exempt, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Collector:
    """Takes gradients from autograd the moment they are complete, and frees them.

    A parameter holds its hook, and the hook its elements, but neither holds the optimizer: one that
    is dropped without `close` lets go of its parameters, too.
    """

    def __init__(
        self,
        owner: object,
        trained: Sequence[Elements],
        others: Sequence[tuple[str, Tensor]],
        *,
        at_once: bool,
    ) -> None:
        """Mark the parameters and install the hooks.

        Args:
            owner: The optimizer; when it is dropped, so are the hooks.
            trained: Elements whose gradient is collected.
            others: Parameters whose gradient is dropped.
            at_once: Install hooks. Without, gradients stay with the parameters.
        """
        parameters = [elements.parameter for elements in trained]
        for parameter in parameters:
            TAKEN[parameter] = True
        hooks: list[RemovableHandle] = []
        if at_once:
            hooks += [_hook(of.parameter, _collect_into(of)) for of in trained]
            hooks += [_hook(parameter, _drop) for _, parameter in others]
        self._release = weakref.finalize(owner, _release, hooks, parameters)

    @property
    def is_open(self) -> bool:
        """Whether `close` has not been called."""
        return self._release.alive

    def close(self) -> None:
        """Remove the hooks and the marks."""
        self._release()


def _hook(parameter: Tensor, function: Callable[[Tensor], None]) -> RemovableHandle:
    """Call a function whenever autograd has added to the gradient of a parameter."""
    return parameter.register_post_accumulate_grad_hook(function)  # type: ignore[no-untyped-call]


def _collect_into(elements: Elements) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        elements.take_gradient()

    return hook


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _release(hooks: list[RemovableHandle], parameters: list[Tensor]) -> None:
    for hook in hooks:
        hook.remove()
    for parameter in parameters:
        del TAKEN[parameter]
