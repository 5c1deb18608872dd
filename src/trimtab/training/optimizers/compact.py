"""Selected elements in vectors as long as the selection: memory that follows the mask."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.training.optimizers.elements import Elements
from trimtab.training.optimizers.kernels import Kernels
from trimtab.training.optimizers.sharding import local
from trimtab.training.optimizers.vector_width import num_padding

__all__ = ["CompactElements", "kernels_for"]


class CompactElements(Elements):
    """Vectors hold the selected elements in ascending order, after a few unused ones.

    See `trimtab.training.optimizers.vector_width` for what the unused ones are for; they are 0 in
    every gradient and have no part in anything else.
    """

    def __init__(self, name: str, parameter: Tensor, index: Tensor) -> None:
        """Keep the positions.

        Args:
            name: Name of the parameter.
            parameter: The parameter; contiguous.
            index: Positions of the selected elements, in what this process has of it, in C order,
                ascending.
        """
        num_elements = local(parameter.detach()).numel()
        fits_int32 = num_elements - 1 <= torch.iinfo(torch.int32).max
        index = index.to(torch.int32 if fits_int32 else torch.int64)
        self._padding = num_padding(index, num_elements)
        self._kernels = kernels_for(index.to(parameter.device))
        super().__init__(name, parameter, index.numel(), self._padding + index.numel())

    def read(self) -> Tensor:
        """See `Elements`."""
        vector = self._new_uninitialised()
        self._kernels.read(self.weights, self.export(vector))
        return vector

    def write(self, values: Tensor) -> None:
        """See `Elements`."""
        self._kernels.write(self.weights, self.export(values))

    def read_lo16(self, remainder: Tensor, ties: Tensor) -> Tensor:
        """See `Elements`."""
        vector = self._new_uninitialised()
        self._kernels.read_lo16(self.weights, self.export(remainder), ties, self.export(vector))
        return vector

    def write_lo16(self, masters: Tensor, remainder: Tensor) -> Tensor:
        """See `Elements`."""
        return self._kernels.write_lo16(self.weights, self.export(masters), self.export(remainder))

    def export(self, vector: Tensor) -> Tensor:
        """See `Elements`; a view."""
        return vector[self._padding :]

    def adopt(self, values: Tensor) -> Tensor:
        """See `Elements`."""
        vector = self.new_vector(values.dtype)
        self.export(vector).copy_(values)
        return vector

    def export_ties(self, ties: Tensor) -> Tensor:
        """See `Elements`."""
        return ties

    def adopt_ties(self, ties: Tensor) -> Tensor:
        """See `Elements`."""
        return ties

    def selection(self) -> Tensor:
        """See `Elements`."""
        return self._kernels.index

    def _new_uninitialised(self) -> Tensor:
        """An fp32 vector of which only the unused elements are set."""
        vector = torch.empty(self.length, device=self.parameter.device)
        vector[: self._padding] = 0.0
        return vector

    def _collect(self, dense: Tensor, accumulator: Tensor, *, add: bool) -> None:
        collect = self._kernels.add if add else self._kernels.read
        collect(dense, self.export(accumulator))


def kernels_for(index: Tensor) -> Kernels:
    """The fastest kernels for the device that the positions are on."""
    if index.device.type == "cpu":
        from trimtab.training.optimizers.cpu_kernels import CpuKernels

        return CpuKernels(index)
    return Kernels(index)
