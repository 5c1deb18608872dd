"""Selected elements of a tensor that is selected nearly whole: vectors as long as the tensor.

A compact element costs 4 bytes for its position and every access to it a detour, so beyond
`DENSE_ABOVE` it is cheaper to keep all elements: their gradient is set to 0 where it is not
selected, and the elements that are not selected are not written to (weight decay would move them).
The selected elements get the same bits either way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.training.optimizers.elements import Elements
from trimtab.training.optimizers.kernels import DenseKernels

__all__ = ["DENSE_ABOVE", "DenseElements", "dense_kernels_for"]

DENSE_ABOVE = 15 / 18
"""Density of a tensor above which its elements are kept dense.

With AdamW on bf16 weights a compact element costs 18 bytes: position 4, gradient 4, means 8,
remainder 2. A dense one costs 15: a byte that says whether it is selected takes the place of the
position, selected or not. The time of a step crosses at about the same density.
"""


class DenseElements(Elements):
    """Vectors hold every element of the parameter, selected or not."""

    def __init__(self, name: str, parameter: Tensor, selected: Tensor) -> None:
        """Keep which elements are not selected.

        Args:
            name: Name of the parameter.
            parameter: The parameter; contiguous.
            selected: bool, as long as what this process has of the parameter.
        """
        num_selected = int(selected.sum())
        whole = num_selected == selected.numel()
        self._others = None if whole else ~selected.to(parameter.device)
        self._kernels = dense_kernels_for(self._others, parameter.device)
        super().__init__(name, parameter, num_selected, selected.numel())

    def read(self) -> Tensor:
        """See `Elements`."""
        return self.weights.to(torch.float32, copy=True)

    def write(self, values: Tensor) -> None:
        """See `Elements`."""
        self._kernels.write(self.weights, values)

    def read_lo16(self, remainder: Tensor, ties: Tensor) -> Tensor:
        """See `Elements`."""
        vector = torch.empty(self.length, device=self.parameter.device)
        self._kernels.read_lo16(self.weights, remainder, ties, vector)
        return vector

    def write_lo16(self, masters: Tensor, remainder: Tensor) -> Tensor:
        """See `Elements`."""
        return self._kernels.write_lo16(self.weights, masters, remainder)

    def export(self, vector: Tensor) -> Tensor:
        """See `Elements`."""
        return vector if self._others is None else vector[~self._others]

    def adopt(self, values: Tensor) -> Tensor:
        """See `Elements`."""
        if self._others is None:
            return values
        return self.new_vector(values.dtype).masked_scatter_(~self._others, values)

    def export_ties(self, ties: Tensor) -> Tensor:
        """See `Elements`."""
        if self._others is None:
            return ties
        return ties - self._others.cumsum(0, dtype=torch.int32)[ties]

    def adopt_ties(self, ties: Tensor) -> Tensor:
        """See `Elements`."""
        if self._others is None:
            return ties
        return (~self._others).nonzero().flatten()[ties].to(torch.int32)

    def selection(self) -> Tensor | None:
        """See `Elements`."""
        return self._others

    def _collect(self, dense: Tensor, accumulator: Tensor, *, add: bool) -> None:
        self._kernels.collect(dense, accumulator, add=add)


def dense_kernels_for(others: Tensor | None, device: torch.device) -> DenseKernels:
    """The fastest kernels for a device."""
    if device.type == "cpu":
        from trimtab.training.optimizers.cpu_kernels import CpuDenseKernels

        return CpuDenseKernels(others)
    return DenseKernels(others)
