"""The selected elements of one parameter: gradient, weights, masters and state.

`Elements` is what the optimizer works with, whichever way the elements are kept: packed into
vectors as long as the selection (`CompactElements`), or, where nearly all are selected, in vectors
as long as the parameter (`DenseElements`). The selected elements get the same bits either way.
`trimtab.training.optimizers.binding` makes them from a model and a mask.

The arithmetic of a step is fp32 whatever the weights are. What differs is what is left of its
result when the weights have fewer bits:

- `lo16`: all of it. The weight and a 16-bit remainder are the fp32 master (bf16 weights only).
- `fp32`: all of it, in a second, fp32 copy of the weights.
- `none`: what the weights can hold. Exact for fp32 weights. bf16 weights are rounded once a step,
  to nearest: an update below half a bf16 step of its weight is lost, each time.
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
"""Elements that are widened to fp64 at once: 2 MB, which stay in a cache."""


def sum_of_squares(values: Tensor) -> Tensor:
    """Sum of the squares of a flat tensor, in fp64."""
    chunks = (chunk.double() for chunk in torch.split(values, CHUNK))
    return torch.stack([torch.dot(chunk, chunk) for chunk in chunks]).sum()


def root_of_sum(numbers: Iterable[Tensor]) -> Tensor:
    """Square root of a sum, on the device of the first number: devices are not waited for."""
    first, *rest = numbers
    return torch.stack([first, *(number.to(first.device) for number in rest)]).sum().sqrt()


class Elements(ABC):
    """The selected elements of one parameter, or of the part of it that this process has.

    "Vectors" are flat and made by `new_vector`. They may hold more than the selected elements;
    `export` leaves only those.

    Attributes:
        name: Name of the parameter.
        parameter: The parameter.
        num_selected: How many of its elements are selected.
        length: Elements of a vector.
        gradient: fp32 vector of the gradient collected since the last `clear`, or None if none
            was. Elements that are not selected are 0.
    """

    def __init__(self, name: str, parameter: Tensor, num_selected: int, length: int) -> None:
        self.name = name
        self.parameter = parameter
        self.num_selected = num_selected
        self.length = length
        self.gradient: Tensor | None = None
        self._accumulator: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has: no gradient, as a copy of a parameter has none."""
        return {**vars(self), "gradient": None, "_accumulator": None}

    def new_vector(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """A vector of zeros on the parameter's device."""
        return torch.zeros(self.length, dtype=dtype, device=self.parameter.device)

    def take_gradient(self) -> None:
        """Collect the parameter's dense gradient, if it has one, and free it.

        Several are added up in fp32, whatever the dtype of the parameter.

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
                f"{self.name} has a gradient that is not sharded as it is itself: use fully_shard, "
                "which reduces it before it is collected"
            )
        if self._accumulator is None:
            self._accumulator = self.new_vector()
        flat = local(dense.detach()).reshape(-1)
        self._collect(flat, self._accumulator, add=self.gradient is not None)
        self.gradient = self._accumulator
        self.parameter.grad = None

    def take_zeros(self) -> Tensor:
        """The collected gradient; if there is none, collect one of zeros."""
        if self.gradient is None:
            if self._accumulator is None:
                self._accumulator = self.new_vector()
            self.gradient = self._accumulator.zero_()
        return self.gradient

    def clear(self) -> None:
        """Forget the collected gradient; its memory is kept for the next."""
        self.gradient = None

    @property
    def weights(self) -> Tensor:
        """What this process has of the parameter, flat, without autograd."""
        return local(self.parameter.detach()).view(-1)

    @property
    def num_index_bytes(self) -> int:
        """Bytes that say which elements are selected."""
        index = self.selection()
        return 0 if index is None else index.nbytes

    @abstractmethod
    def read(self) -> Tensor:
        """The weights, as a new fp32 vector."""

    @abstractmethod
    def write(self, values: Tensor) -> None:
        """Round an fp32 vector to the parameter's dtype and put it in place."""

    @abstractmethod
    def read_lo16(self, remainder: Tensor, ties: Tensor) -> Tensor:
        """The masters of bf16 weights, as a new fp32 vector; see `optimizers.lo16`."""

    @abstractmethod
    def write_lo16(self, masters: Tensor, remainder: Tensor) -> Tensor:
        """Round the masters to bf16, put them in place and overwrite their remainders.

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
        """Positions among the selected elements, of positions as `write_lo16` returns them."""

    @abstractmethod
    def adopt_ties(self, ties: Tensor) -> Tensor:
        """The inverse of `export_ties`."""

    @abstractmethod
    def selection(self) -> Tensor | None:
        """What is kept to know which elements are selected.

        Returns:
            Their positions, int32 or int64; or, if vectors are as long as the parameter, bool, true
            where an element is not selected; None if all are.
        """

    @abstractmethod
    def _collect(self, dense: Tensor, accumulator: Tensor, *, add: bool) -> None:
        """Put the selected elements of a flat gradient into the accumulator, or add them."""


class CompactElements(Elements):
    """Vectors hold the selected elements in ascending order, after a few unused ones.

    See `trimtab.training.optimizers.kernels` for what the unused ones are for; they are 0 in
    every gradient and have no part in anything else.
    """

    def __init__(self, name: str, parameter: Tensor, index: Tensor) -> None:
        """Wrap a contiguous parameter.

        Args:
            name: Name of the parameter.
            parameter: The parameter.
            index: Ascending positions of the selected elements in this process's part, in C order.
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


DENSE_ABOVE = 15 / 18
"""Density of a tensor above which its elements are kept dense.

With AdamW on bf16 weights a compact element costs 18 bytes: position 4, gradient 4, means 8,
remainder 2. A dense one costs 15: a byte that says whether it is selected takes the place of the
position, selected or not. The time of a step crosses at about the same density.
"""


class DenseElements(Elements):
    """Vectors hold every element of the parameter, selected or not."""

    def __init__(self, name: str, parameter: Tensor, selected: Tensor) -> None:
        """Wrap a contiguous parameter; `selected` is a bool for each element of this process."""
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
    """The elements of a parameter that a mask selects, kept in the way that costs less."""
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
"""Dtypes of weights that can be trained -> masters that they can have, the default first."""


class Entry(NamedTuple):
    """What the state of a parameter has under a key, when it is saved.

    Attributes:
        kind: A number, a vector of the selected elements, or ascending positions among them.
        dtype: Its dtype, exactly.
    """

    kind: Literal["number", "vector", "positions"]
    dtype: torch.dtype


@dataclass(frozen=True)
class StateForm:
    """What the state of every parameter has.

    Attributes:
        numbers: Names of its fp32 numbers.
        moments: Names of its running means, vectors.
        dtype: Dtype of these between steps.
    """

    numbers: tuple[str, ...]
    moments: tuple[str, ...]
    dtype: torch.dtype

    def entries(self, master: Master) -> dict[str, Entry]:
        """What a saved state has for the elements of a parameter with such a master."""
        entries = {key: Entry("number", torch.float32) for key in self.numbers}
        entries |= {key: Entry("vector", self.dtype) for key in self.moments}
        if master == "lo16":
            entries["remainder"] = Entry("vector", torch.int16)
            entries["ties"] = Entry("positions", torch.int32)
        elif master == "fp32":
            entries["master"] = Entry("vector", torch.float32)
        return entries

    def new(self, elements: Elements, master: Master) -> dict[str, Tensor]:
        """The state of a parameter before its first step, when the masters are the weights."""
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
    """The master of weights of a dtype.

    Args:
        dtype: Dtype of the weights, a key of `POSSIBLE`.
        requested: What the user asked for; None for the default. Without effect on fp32 weights,
            which need no other master.
    """
    possible = POSSIBLE[dtype]
    return requested if requested in possible else possible[0]


def load_master(elements: Elements, master: Master, state: dict[str, Any]) -> Tensor:
    """The fp32 weights of the elements, as a vector that the step may write to."""
    if master == "lo16":
        return elements.read_lo16(state["remainder"], state["ties"])
    if master == "fp32":
        values: Tensor = state["master"]
        return values
    return elements.read()


def store_master(elements: Elements, master: Master, state: dict[str, Any], values: Tensor) -> None:
    """Put the result of a step in place: the inverse of `load_master`."""
    if master == "lo16":
        state["ties"] = elements.write_lo16(values, state["remainder"])
    else:
        elements.write(values)


def follow_weights(elements: Elements, master: Master, state: dict[str, Any]) -> None:
    """Where something else has changed the weights since the last step, take them as masters.

    A remainder goes with any weight, which it changes by less than half a step of bf16.
    """
    if master == "fp32":
        before, now = state["master"], elements.read()
        state["master"] = torch.where(before.to(elements.parameter.dtype) == now, before, now)
