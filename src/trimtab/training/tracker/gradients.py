"""The gradients of a step, seen before the optimizer uses them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trimtab.elements import step_kernels
from trimtab.training.optimizers.elements import Elements
from trimtab.training.optimizers.sgd import SparseSGD
from trimtab.training.optimizers.sharding import local
from trimtab.training.optimizers.sparse import SparseOptimizer
from trimtab.training.tracker.bits import CHUNK, as_bits
from trimtab.training.tracker.parts import ModelPart

__all__ = ["GradientCounts", "Gradients", "flags_of", "see_gradients", "unwrapped"]


class GradientCounts(NamedTuple):
    """How many elements had a gradient that could be seen, and one that was not 0."""

    num_seen: int
    num_nonzero: int


class Gradients(NamedTuple):
    """What was seen before a step.

    Attributes:
        counts: For each part; None if nothing of its gradient was there.
        graded: Names of the parameters that had a gradient.
        masked: Of an optimizer that keeps nothing that tells: name of a parameter -> whether each
            of its selected elements had a gradient that was not 0.
        num_skipped_steps: Steps that a sparse optimizer had left out by then.
    """

    counts: list[GradientCounts | None]
    graded: frozenset[str]
    masked: Mapping[str, Tensor]
    num_skipped_steps: int


def see_gradients(
    optimizer: Any, parts: Sequence[tuple[ModelPart, Tensor]], pool: ThreadPoolExecutor
) -> Gradients:
    """Count the gradients that are there, or that a sparse optimizer has collected.

    Args:
        optimizer: As the Trainer has it.
        parts: Each part of the model, and the parameter that has it.
        pool: Threads to count on.
    """
    inner = unwrapped(optimizer)
    collected, masked = {}, {}
    if isinstance(inner, SparseOptimizer):
        forgets = isinstance(inner, SparseSGD) and not inner.defaults["momentum"]
        for name, elements in inner.elements.items():
            gradient = _gradient_of(elements)
            if gradient is not None:
                collected[name] = gradient
                if forgets:
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
        GradientCounts(*map(sum, zip(*(of.result() for of in futures), strict=True)))
        if futures
        else None
        for futures in pending
    ]
    return Gradients(counts, frozenset(graded), masked, getattr(inner, "num_skipped_steps", 0))


def unwrapped(optimizer: Any) -> Any:
    """The optimizer that accelerate has wrapped."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def flags_of(elements: Elements, values: Tensor) -> Tensor:
    """Flags of all elements of a parameter, given values of the selected ones.

    Returns:
        uint8 on the CPU, of the shape of what this process has of the parameter:
        `step_kernels.SELECTED` where an element is selected, and `step_kernels.MOVES` where its
        value is not 0.
    """
    here = local(elements.parameter.detach())
    flags = torch.zeros(here.numel(), dtype=torch.uint8)
    index = _selected(elements, here.numel()).cpu()
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
    """The gradient of the selected elements, collected already or not."""
    if elements.gradient is not None:
        return elements.export(elements.gradient)
    dense = elements.parameter.grad
    if dense is None:
        return None
    flat = local(dense.detach()).reshape(-1)
    return flat[_selected(elements, flat.numel()).long()]


def _selected(elements: Elements, num_elements: int) -> Tensor:
    """Positions of the selected elements."""
    selection = elements.selection()
    if selection is None:
        return torch.arange(num_elements)
    if selection.dtype == torch.bool:
        return (~selection).nonzero().flatten()
    return selection
