"""The selected elements of one parameter: gradient, weights, masters and state.

`CompactElements` packs the selected elements into vectors as long as the selection;
`DenseElements`, for tensors of which nearly all elements are selected, uses vectors as long as the
parameter. The results are the same bit for bit.

A step is computed in fp32 for every dtype of weights. The *master* determines what is kept of the
result if the weights have fewer bits:

- `lo16`: everything. The weight and a 16-bit remainder are the fp32 master (bf16 weights only).
- `fp32`: everything, in an fp32 copy of the weights.
- `none`: what the weights can hold. Exact for fp32 weights. bf16 weights are rounded to nearest in
  every step, so an update below half a bf16 step of its weight is lost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import OptimizerError
from trimtab.masks.mask import Mask
from trimtab.training.optimizers.distributed import box_of, local, placements_of
from trimtab.training.optimizers.kernels import DenseKernels, Kernels, num_padding

CHUNK = 1 << 18
"""Elements that are converted to fp64 at a time: 2 MB, which fit a cache."""


def sum_of_squares(values: Tensor) -> Tensor:
    """Sum of the squares of a flat tensor, in fp64."""
    chunks = (chunk.double() for chunk in torch.split(values, CHUNK))
    return torch.stack([torch.dot(chunk, chunk) for chunk in chunks]).sum()


def root_of_sum(numbers: Iterable[Tensor]) -> Tensor:
    """Square root of a sum, on the device of the first number, without a synchronisation."""
    first, *rest = numbers
    return torch.stack([first, *(number.to(first.device) for number in rest)]).sum().sqrt()


class Elements(ABC):
    """The selected elements of one parameter, or of the part of it in this process.

    "Vectors" are flat and made by `new_vector`. They may hold more than the selected elements;
    `export` returns only those.

    Attributes:
        name: Name of the parameter.
        parameter: The parameter.
        num_selected: How many of its elements are selected.
        length: Number of elements of a vector.
        gradient: fp32 vector of the gradient collected since the last `clear`, or None. Elements
            that are not selected are 0.
    """

    def __init__(self, name: str, parameter: Tensor, num_selected: int, length: int) -> None:
        self.name = name
        self.parameter = parameter
        self.num_selected = num_selected
        self.length = length
        self.gradient: Tensor | None = None
        self._accumulator: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies have no gradient, as copies of parameters have none."""
        return {**vars(self), "gradient": None, "_accumulator": None}

    def new_vector(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """A vector of zeros on the parameter's device."""
        return torch.zeros(self.length, dtype=dtype, device=self.parameter.device)

    def take_gradient(self) -> None:
        """Collect the parameter's dense gradient, if it has one, and free it.

        Gradients are accumulated in fp32.

        Raises:
            OptimizerError: The gradient is sparse.
        """
        dense = self.parameter.grad
        if dense is None:
            return
        if dense.layout != torch.strided:
            raise OptimizerError(
                f"{self.name} has a sparse gradient, and masked training needs a dense one: make "
                "its embedding with sparse=False"
            )
        if placements_of(dense) != placements_of(self.parameter):
            raise OptimizerError(
                f"{self.name} has a gradient that is sharded differently: use fully_shard, which "
                "reduces it before it is collected"
            )
        if self._accumulator is None:
            self._accumulator = self.new_vector()
        flat = local(dense.detach()).reshape(-1)
        self._collect(flat, self._accumulator, add=self.gradient is not None)
        self.gradient = self._accumulator
        self.parameter.grad = None

    def take_zeros(self) -> Tensor:
        """The collected gradient; zeros if none was collected."""
        if self.gradient is None:
            if self._accumulator is None:
                self._accumulator = self.new_vector()
            self.gradient = self._accumulator.zero_()
        return self.gradient

    def clear(self) -> None:
        """Drop the collected gradient; its memory is reused for the next."""
        self.gradient = None

    @property
    def weights(self) -> Tensor:
        """The part of the parameter in this process, flat, without autograd."""
        return local(self.parameter.detach()).view(-1)

    @property
    def num_index_bytes(self) -> int:
        """Bytes of `selection`."""
        index = self.selection()
        return 0 if index is None else index.nbytes

    @abstractmethod
    def read(self) -> Tensor:
        """The weights, as a new fp32 vector."""

    @abstractmethod
    def write(self, values: Tensor) -> None:
        """Write an fp32 vector to the parameter, rounded to its dtype."""

    @abstractmethod
    def read_lo16(self, remainder: Tensor, ties: Tensor) -> Tensor:
        """The masters of bf16 weights, as a new fp32 vector; see `optimizers.kernels`."""

    @abstractmethod
    def write_lo16(self, masters: Tensor, remainder: Tensor) -> Tensor:
        """Write the masters, rounded to bf16, and overwrite their remainders.

        Returns:
            The positions of the ties.
        """

    @abstractmethod
    def export(self, vector: Tensor) -> Tensor:
        """The selected elements of a vector, `[num_selected]`, in ascending order."""

    @abstractmethod
    def adopt(self, values: Tensor) -> Tensor:
        """The inverse of `export`, for values on the parameter's device."""

    @abstractmethod
    def export_ties(self, ties: Tensor) -> Tensor:
        """Convert the positions that `write_lo16` returned to positions among selected elements."""

    @abstractmethod
    def adopt_ties(self, ties: Tensor) -> Tensor:
        """The inverse of `export_ties`."""

    @abstractmethod
    def selection(self) -> Tensor | None:
        """Which elements are selected, as it is stored.

        Returns:
            Their positions, int32 or int64; or, if vectors are as long as the parameter, bool, True
            for elements that are *not* selected; None if all are selected.
        """

    @abstractmethod
    def _collect(self, dense: Tensor, accumulator: Tensor, *, add: bool) -> None:
        """Copy the selected elements of a flat gradient to the accumulator, or add them."""


class CompactElements(Elements):
    """Vectors hold the selected elements in ascending order, after a few unused ones.

    See `trimtab.training.optimizers.kernels` for the purpose of the unused ones, whose gradient
    is always 0.
    """

    def __init__(self, name: str, parameter: Tensor, index: Tensor) -> None:
        """Wrap a contiguous parameter; `index` are ascending positions in this process's part."""
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
        """An fp32 vector in which only the unused elements are initialised."""
        vector = torch.empty(self.length, device=self.parameter.device)
        vector[: self._padding] = 0.0
        return vector

    def _collect(self, dense: Tensor, accumulator: Tensor, *, add: bool) -> None:
        collect = self._kernels.add if add else self._kernels.read
        collect(dense, self.export(accumulator))


def kernels_for(index: Tensor) -> Kernels:
    """The fastest kernels for the device of the positions."""
    if index.device.type == "cpu":
        from trimtab.training.optimizers.cpu_kernels import CpuKernels

        return CpuKernels(index)
    return Kernels(index)


DENSE_ABOVE = 15 / 18
"""Density above which a tensor uses `DenseElements`.

With AdamW on bf16 weights a compact element takes 18 bytes: position 4, gradient 4, means 8,
remainder 2. A dense one takes 15, selected or not: the position is replaced by a byte that says
whether it is selected. The times of a step are equal at about the same density.
"""


class DenseElements(Elements):
    """Vectors hold every element of the parameter, selected or not."""

    def __init__(self, name: str, parameter: Tensor, selected: Tensor) -> None:
        """Wrap a contiguous parameter; `selected` is a bool per element of this process's part."""
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


def elements_of(name: str, parameter: Tensor, mask: Mask) -> Elements:
    """The elements of a parameter that a mask selects, in the cheaper of the two layouts."""
    selected = mask.array(name)[box_of(parameter)].reshape(-1)
    if int(selected.sum()) > DENSE_ABOVE * selected.size:
        return DenseElements(name, parameter, torch.from_numpy(selected))
    return CompactElements(name, parameter, torch.from_numpy(np.flatnonzero(selected)))


Master = Literal["lo16", "fp32", "none"]

POSSIBLE: dict[torch.dtype, tuple[Master, ...]] = {
    torch.float32: ("none",),
    torch.bfloat16: ("lo16", "fp32", "none"),
    torch.float16: ("fp32",),
}
"""Dtype of weights that can be trained -> possible masters, the default first."""


class Entry(NamedTuple):
    """Form of an entry of a parameter's saved state.

    Attributes:
        kind: A number, a vector of the selected elements, or ascending positions among them.
        dtype: Its dtype.
    """

    kind: Literal["number", "vector", "positions"]
    dtype: torch.dtype


@dataclass(frozen=True)
class StateForm:
    """The entries of the state of every parameter.

    Attributes:
        numbers: Names of the fp32 scalars.
        moments: Names of the running means, which are vectors.
        dtype: Dtype of the running means between steps.
    """

    numbers: tuple[str, ...]
    moments: tuple[str, ...]
    dtype: torch.dtype

    def entries(self, master: Master) -> dict[str, Entry]:
        """The entries of the saved state of a parameter, given its master."""
        entries = {key: Entry("number", torch.float32) for key in self.numbers}
        entries |= {key: Entry("vector", self.dtype) for key in self.moments}
        if master == "lo16":
            entries["remainder"] = Entry("vector", torch.int16)
            entries["ties"] = Entry("positions", torch.int32)
        elif master == "fp32":
            entries["master"] = Entry("vector", torch.float32)
        return entries

    def new(self, elements: Elements, master: Master) -> dict[str, Tensor]:
        """The state of a parameter before its first step, when masters equal weights."""
        device = elements.parameter.device
        state = {key: torch.zeros((), device=device) for key in self.numbers}
        state |= {key: elements.new_vector(self.dtype) for key in self.moments}
        if master == "lo16":
            state["remainder"] = elements.new_vector(torch.int16)
            state["ties"] = torch.empty(0, dtype=torch.int32, device=device)
        elif master == "fp32":
            state["master"] = elements.read()
        return state


def master_for(dtype: torch.dtype, requested: Master | None) -> Master:
    """The master of weights of a dtype, a key of `POSSIBLE`.

    `requested` is the user's choice, or None for the default; fp32 weights always have "none".
    """
    possible = POSSIBLE[dtype]
    return requested if requested in possible else possible[0]


def load_master(elements: Elements, master: Master, state: dict[str, Any]) -> Tensor:
    """The fp32 masters of the elements, as a vector that the step may overwrite."""
    if master == "lo16":
        return elements.read_lo16(state["remainder"], state["ties"])
    if master == "fp32":
        values: Tensor = state["master"]
        return values
    return elements.read()


def store_master(elements: Elements, master: Master, state: dict[str, Any], values: Tensor) -> None:
    """Write the result of a step back: the inverse of `load_master`."""
    if master == "lo16":
        state["ties"] = elements.write_lo16(values, state["remainder"])
    else:
        elements.write(values)


def follow_weights(elements: Elements, master: Master, state: dict[str, Any]) -> None:
    """Adopt weights that were changed since the last step as masters.

    A 16-bit remainder fits any weight: it changes it by less than half a bf16 step.
    """
    if master == "fp32":
        masters, weights = state["master"], elements.read()
        is_same = masters.to(elements.parameter.dtype) == weights
        state["master"] = torch.where(is_same, masters, weights)
