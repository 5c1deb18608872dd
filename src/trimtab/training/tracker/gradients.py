"""Counts the gradients before an optimizer step, and the elements that the step moves.

An element counts as moved in a step whose learning rate is not 0:

- with AdamW, Adam and others that have a running mean of the gradient (`exp_avg`), if the mean is
  not 0 after the step, or there is weight decay and the weight was not 0;
- with SGD with momentum, if the momentum is not 0 after the step;
- with other optimizers, such as SGD without momentum, if the gradient is not 0, or there is weight
  decay and the weight was not 0;
- with `SparseAdamW` and `SparseSGD` likewise, but only elements of the mask.

Parameters without a gradient and skipped steps move no elements. The dtype of the weights and
masters makes no difference: what counts is the update before rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.elements import step_kernels
from trimtab.training.optimizers.distributed import local
from trimtab.training.optimizers.elements import Elements
from trimtab.training.optimizers.sgd import SparseSGD
from trimtab.training.optimizers.sparse import SparseOptimizer
from trimtab.training.tracker.parts import CHUNK, MAGNITUDES, ModelPart, as_bits


class GradientCounts(NamedTuple):
    """How many elements had a gradient, and a nonzero one."""

    num_seen: int
    num_nonzero: int


class Gradients(NamedTuple):
    """The gradients before a step.

    Attributes:
        counts: Counts of each part; None without a gradient.
        graded: Names of the parameters that had a gradient.
        masked: For a sparse optimizer without momentum: name of a parameter -> whether each of its
            selected elements had a nonzero gradient.
        num_skipped_steps: Steps that a sparse optimizer had skipped so far.
    """

    counts: list[GradientCounts | None]
    graded: frozenset[str]
    masked: Mapping[str, Tensor]
    num_skipped_steps: int


def count_gradients(
    optimizer: Any, parts: Sequence[tuple[ModelPart, Tensor]], pool: ThreadPoolExecutor
) -> Gradients:
    """Count the gradients, also those that a sparse optimizer has collected, on threads."""
    inner = unwrapped(optimizer)
    collected, masked = {}, {}
    if isinstance(inner, SparseOptimizer):
        is_stateless = isinstance(inner, SparseSGD) and not inner.defaults["momentum"]
        for name, elements in inner.elements.items():
            gradient = _gradient_of(elements)
            if gradient is not None:
                collected[name] = gradient
                if is_stateless:
                    masked[name] = gradient != 0
    graded = set(collected)
    pending: list[list[Future[GradientCounts]]] = []
    for part, parameter in parts:
        futures = []
        if parameter.grad is not None:
            graded.add(part.parameter)
            dense = part.of(parameter.grad.detach().to_dense())
            futures = [pool.submit(_count, chunk) for chunk in torch.split(dense, 4 * CHUNK)]
        elif part.parameter in collected:
            elements, gradient = inner.elements[part.parameter], collected[part.parameter]
            futures = [pool.submit(_count_masked, part, elements, gradient)]
        pending.append(futures)
    counts = [
        GradientCounts(*map(sum, zip(*(future.result() for future in futures), strict=True)))
        if futures
        else None
        for futures in pending
    ]
    return Gradients(counts, frozenset(graded), masked, getattr(inner, "num_skipped_steps", 0))


def unwrapped(optimizer: Any) -> Any:
    """The optimizer inside the wrappers of accelerate."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def flags_of(elements: Elements, values: Tensor) -> Tensor:
    """Flags of all elements of a parameter, given the values of the selected ones.

    Returns uint8 on the CPU, of the shape of this process's part: `step_kernels.SELECTED` where an
    element is selected, and `step_kernels.MOVES` where its value is not 0.
    """
    here = local(elements.parameter.detach())
    flags = torch.zeros(here.numel(), dtype=torch.uint8)
    index = elements.kernels.positions.index().cpu()
    step_kernels.mark(index.numpy(), *as_bits(values), flags.numpy())
    return flags.view(here.shape)


def _count(gradient: Tensor) -> GradientCounts:
    if gradient.device.type == "cpu":
        num_nonzero = int(step_kernels.count_nonzero(*as_bits(gradient)))
    else:
        num_nonzero = int(torch.count_nonzero(gradient))
    return GradientCounts(gradient.numel(), num_nonzero)


def _count_masked(part: ModelPart, elements: Elements, gradient: Tensor) -> GradientCounts:
    if part.is_whole:
        return _count(gradient)
    flags = part.of(flags_of(elements, gradient)).numpy()
    return GradientCounts(
        int(step_kernels.count_nonzero(flags, np.uint8(step_kernels.SELECTED))),
        int(step_kernels.count_nonzero(flags, np.uint8(step_kernels.MOVES))),
    )


def _gradient_of(elements: Elements) -> Tensor | None:
    """The gradient of the selected elements, whether collected yet or not."""
    if elements.gradient is not None:
        return elements.gradient
    dense = elements.parameter.grad
    if dense is None:
        return None
    flat = local(dense.detach()).reshape(-1)
    return flat[elements.kernels.positions.index()]


NOTHING = np.empty(0, np.uint8)


class Moved(NamedTuple):
    """What moved the elements of a part, flat on the CPU; arguments of `step_kernels.look`."""

    values: NDArray[Any] = NOTHING
    magnitude: Any = MAGNITUDES[1]
    decays: bool = False
    selected: NDArray[np.uint8] = NOTHING


class Moments:
    """What moved the parameters in the step that was just taken."""

    def __init__(self, optimizer: Any, parameters: Mapping[str, Tensor], before: Gradients) -> None:
        """Find the parameters that were stepped; `before` is the result of `count_gradients`."""
        self._optimizer = unwrapped(optimizer)
        self._masked = before.masked
        self._stepped: dict[str, tuple[Tensor, Mapping[str, Any]]] = {}
        num_skipped = getattr(self._optimizer, "num_skipped_steps", 0)
        if getattr(optimizer, "step_was_skipped", False) or num_skipped > before.num_skipped_steps:
            return
        names = {id(parameter): name for name, parameter in parameters.items()}
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                name = names.get(id(parameter))
                if name in before.graded and group.get("lr", 1.0):
                    self._stepped[name] = parameter, group

    def of(self, part: ModelPart) -> Moved:
        """What moved a part; empty if its parameter was not stepped."""
        name = part.parameter
        if name not in self._stepped:
            return Moved()
        parameter, group = self._stepped[name]
        state = self._optimizer.state.get(parameter, {})
        # A mean of 8 bits may be 0 after it moved its element; that of the squares is not.
        keys = "exp_avg_sq" if _is_encoded(state) else "exp_avg", "momentum_buffer"
        key = next((key for key in keys if _has(state, key)), None)
        decays = bool(group.get("weight_decay", 0.0)) and key != "momentum_buffer"
        if isinstance(self._optimizer, SparseOptimizer):
            elements = self._optimizer.elements[name]
            values = self._masked[name] if key is None else state[key]
            flags = as_bits(part.of(flags_of(elements, values)))[0]
            return Moved(flags, np.uint8(step_kernels.MOVES), decays, flags)
        if key is not None and state[key].shape == parameter.shape:
            return Moved(*as_bits(part.of(state[key])), decays)
        assert parameter.grad is not None
        return Moved(*as_bits(part.of(local(parameter.grad.detach()).to_dense())), decays)


def _is_encoded(state: Mapping[str, Any]) -> bool:
    return _has(state, "exp_avg") and state["exp_avg"].dtype == torch.int8


def _has(state: Mapping[str, Any], key: str) -> bool:
    return isinstance(state.get(key), Tensor)
