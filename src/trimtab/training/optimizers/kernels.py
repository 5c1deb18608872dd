"""Moving the selected elements of a tensor in and out: the reference, in torch, for any device.

The kernels of `trimtab.training.optimizers.cpu_kernels` do the same, bit for bit, faster.
int32 positions and `index_select` / `index_copy_` are two to three times as fast as boolean masks;
`index_copy_` wants int64, which exist for one tensor at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.training.optimizers import lo16

__all__ = ["DenseKernels", "Kernels"]


class Kernels:
    """For vectors of the selected elements. All tensors are flat and on one device.

    Attributes:
        index: Positions of the selected elements in the tensors called `dense`.
    """

    def __init__(self, index: Tensor) -> None:
        self.index = index

    def read(self, dense: Tensor, out: Tensor) -> None:
        """Copy elements to the fp32 vector `out`."""
        out.copy_(dense.index_select(0, self.index))

    def add(self, dense: Tensor, out: Tensor) -> None:
        """Add elements to the fp32 vector `out`."""
        out.add_(dense.index_select(0, self.index))

    def write(self, dense: Tensor, values: Tensor) -> None:
        """Put fp32 values in place, rounded to the dtype of `dense`."""
        dense.index_copy_(0, self.index.long(), values.to(dense.dtype))

    def read_lo16(self, dense: Tensor, remainder: Tensor, ties: Tensor, out: Tensor) -> None:
        """Copy the masters of bf16 elements to the fp32 vector `out`."""
        self.read(dense, out)
        lo16.join(out, remainder, ties)

    def write_lo16(self, dense: Tensor, masters: Tensor, remainder: Tensor) -> Tensor:
        """Put masters in place, rounded to bf16, and overwrite their remainders.

        Returns:
            The positions of the ties, see `trimtab.training.optimizers.lo16`.
        """
        weights, ties = lo16.split(masters, remainder)
        dense.index_copy_(0, self.index.long(), weights)
        return ties


class DenseKernels:
    """For vectors as long as the tensor. All tensors are flat and on one device.

    Attributes:
        others: Which elements of the tensors called `dense` are not selected; None if all are.
            Nothing that is done to `dense` changes them.
    """

    def __init__(self, others: Tensor | None) -> None:
        self.others = others

    def collect(self, dense: Tensor, out: Tensor, *, add: bool) -> None:
        """Copy the selected elements to the fp32 vector `out`, or add them; the others become 0."""
        out.add_(dense) if add else out.copy_(dense)
        if self.others is not None:
            out.masked_fill_(self.others, 0.0)

    def write(self, dense: Tensor, values: Tensor) -> None:
        """Put the selected fp32 values in place, rounded to the dtype of `dense`."""
        weights = values.to(dense.dtype)
        if self.others is not None:
            weights = torch.where(self.others, dense, weights)
        dense.copy_(weights)

    def read_lo16(self, dense: Tensor, remainder: Tensor, ties: Tensor, out: Tensor) -> None:
        """Copy the masters of bf16 elements to the fp32 vector `out`."""
        out.copy_(dense)
        lo16.join(out, remainder, ties)

    def write_lo16(self, dense: Tensor, masters: Tensor, remainder: Tensor) -> Tensor:
        """Put the selected masters in place, rounded to bf16, and overwrite their remainders.

        Returns:
            The positions of the ties, see `trimtab.training.optimizers.lo16`.
        """
        if self.others is not None:
            masters.masked_fill_(self.others, 0.0)  # no remainder, no tie
        weights, ties = lo16.split(masters, remainder)
        self.write(dense, weights)
        return ties
