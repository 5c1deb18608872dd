"""The selected elements of one parameter: gradient, weights, masters and state.

Selected elements are packed into vectors as long as the selection, in ascending order. A step takes
`CHUNK` of them at a time, computed in fp32 for every dtype of weights. The *master* determines what
is kept of the result if the weights have fewer bits:

- `lo16`: everything. The weight and a 16-bit remainder are the fp32 master (bf16 weights only).
- `lo8`: 24 of 32 bits. The weight and an 8-bit remainder are the master (bf16 weights only).
- `fp32`: everything, in an fp32 copy of the weights.
- `none`: what the weights can hold. Exact for fp32 weights. bf16 weights are rounded to nearest in
  every step, so an update below half a bf16 step of its weight is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import OptimizerError
from trimtab.masks.mask import Mask
from trimtab.training.optimizers import kernels
from trimtab.training.optimizers.distributed import box_of, local, placements_of
from trimtab.training.optimizers.kernels import (
    BLOCK,
    CODES,
    Code,
    Kernels,
    Positions,
    Tail,
    has_kernel,
    tail_of,
)

CHUNK = 1 << 17
"""Elements that a step takes at a time, so that its fp32 numbers stay in a cache.

A multiple of `BLOCK` and of every vector width.
"""


def root_of_sum(numbers: Iterable[Tensor]) -> Tensor:
    """Square root of a sum, on the device of the first number, without a synchronisation."""
    first, *rest = numbers
    return torch.stack([first, *(number.to(first.device) for number in rest)]).sum().sqrt()


SMALL = 1 << 12
"""Up to so many elements, operations of torch take less time than the call of a compiled kernel."""


def sum_of_squares(values: Tensor) -> Tensor:
    """Sum of the squares of a flat tensor of any floating dtype, in fp64."""
    compiled = values.device.type == "cpu" and values.dtype in (torch.float32, torch.bfloat16)
    if compiled and values.numel() > SMALL:
        from trimtab.training.optimizers import cpu_kernels

        return cpu_kernels.sum_of_squares(values)
    return kernels.sum_of_squares(values)


class Part(NamedTuple):
    """Consecutive selected elements of a parameter.

    Attributes:
        start: Number of the first.
        stop: Number of the one after the last.
        tail: The last of them that are stepped by themselves; see `tail_of`.
    """

    start: int
    stop: int
    tail: Tail

    def of(self, vector: Tensor) -> Tensor:
        """Its elements of a vector; a view."""
        return vector[self.start : self.stop]

    def blocks_of(self, scales: Tensor) -> Tensor:
        """The scales of its elements; a view."""
        return scales[self.start // BLOCK : -(-self.stop // BLOCK)]


class Scratch:
    """Memory for the fp32 numbers of one part after another, in one step of an optimizer."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.device], Tensor] = {}

    def take(self, name: str, length: int, device: torch.device) -> Tensor:
        """fp32 `[length]`, not initialised; overwritten by the next call with this name."""
        buffer = self._buffers.get((name, device))
        if buffer is None or buffer.numel() < length:
            buffer = self._buffers[name, device] = torch.empty(max(length, CHUNK), device=device)
        return buffer[:length]


class Elements:
    """The selected elements of one parameter, or of the part of it in this process.

    "Vectors" are flat and hold the selected elements in ascending order.

    Attributes:
        name: Name of the parameter.
        parameter: The parameter.
        kernels: Move elements between the parameter and vectors.
        num_selected: How many of its elements are selected.
        tail: What torch's kernels for a CPU step apart; see `tail_of`.
        gradient: The gradient collected since the last `clear`, or None. A vector in the dtype of
            the dense gradient, exactly, if there was one, and in fp32 if several were added.
    """

    def __init__(self, name: str, parameter: Tensor, index: Tensor) -> None:
        """Wrap a contiguous parameter; `index` are ascending positions in this process's part."""
        num_elements = local(parameter.detach()).numel()
        self.name = name
        self.parameter = parameter
        self.num_selected = index.numel()
        self.gradient: Tensor | None = None
        self.tail = tail_of(index, num_elements, parameter.device)
        self.kernels = kernels_for(Positions(index, num_elements).to(parameter.device))

    def __getstate__(self) -> dict[str, Any]:
        """Copies have no gradient, as copies of parameters have none."""
        return {**vars(self), "gradient": None}

    def new_vector(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """A vector of zeros on the parameter's device."""
        return torch.zeros(self.num_selected, dtype=dtype, device=self.parameter.device)

    def parts(self) -> Iterator[Part]:
        """The elements that a step takes at a time."""
        n = self.num_selected
        start = 0
        while start < n:
            # The last part has the whole tail.
            stop = start + CHUNK if n - start > CHUNK + self.tail.length else n
            yield Part(start, stop, self.tail if stop == n else Tail(0, 0, 0))
            start = stop

    def take_gradient(self) -> None:
        """Collect the parameter's dense gradient, if it has one, and free it.

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
        flat = local(dense.detach()).reshape(-1)
        if self.gradient is None:
            self.gradient = torch.empty(self.num_selected, dtype=flat.dtype, device=flat.device)
            self.kernels.read(flat, self.gradient)
        else:
            self.gradient = self.gradient.float()
            self.kernels.add(flat, self.gradient)
        self.parameter.grad = None

    def take_fp32(self) -> Tensor:
        """The collected gradient, in fp32 from now on; zeros if none was collected."""
        self.gradient = self.new_vector() if self.gradient is None else self.gradient.float()
        return self.gradient

    def clear(self) -> None:
        """Drop the collected gradient."""
        self.gradient = None

    @property
    def weights(self) -> Tensor:
        """The part of the parameter in this process, flat, without autograd."""
        return local(self.parameter.detach()).view(-1)

    def read(self) -> Tensor:
        """The weights, as a new fp32 vector."""
        vector = self.new_vector()
        self.kernels.read(self.weights, vector)
        return vector


def kernels_for(positions: Positions) -> Kernels:
    """The fastest kernels for the device of the positions."""
    if positions.offsets.device.type == "cpu":
        from trimtab.training.optimizers.cpu_kernels import CpuKernels

        return CpuKernels(positions)
    if has_kernel(positions.offsets.device):
        from trimtab.training.optimizers.cuda_kernels import CudaKernels

        return CudaKernels(positions)
    return Kernels(positions)


def elements_of(name: str, parameter: Tensor, mask: Mask) -> Elements:
    """The elements of a parameter that a mask selects."""
    selected = mask.array(name)[box_of(parameter)].reshape(-1)
    return Elements(name, parameter, torch.from_numpy(np.flatnonzero(selected)))


Master = Literal["lo16", "lo8", "fp32", "none"]

POSSIBLE: dict[torch.dtype, tuple[Master, ...]] = {
    torch.float32: ("none",),
    torch.bfloat16: ("lo16", "lo8", "fp32", "none"),
    torch.float16: ("fp32",),
}
"""Dtype of weights that can be trained -> possible masters, the default first."""

STATE_DTYPES = (torch.float32, torch.bfloat16, torch.int8)
"""Dtypes of running means between steps; int8 is a `Code` of 8 bits for each."""

CODE_OF: dict[torch.dtype, Code] = {dtype: code for code, dtype in CODES.items()}

SCALE = "_scale"
"""Ending of the key of the scales of an encoded running mean."""


class Entry(NamedTuple):
    """Form of an entry of a parameter's saved state.

    Attributes:
        kind: A number, a vector of the selected elements, a number for each block of them, or
            ascending positions among them.
        dtype: Its dtype.
    """

    kind: Literal["number", "vector", "blocks", "positions"]
    dtype: torch.dtype

    def shape(self, num_selected: int) -> tuple[int, ...]:
        """Its shape for some selected elements, at first: positions become more."""
        return {
            "number": (),
            "vector": (num_selected,),
            "blocks": (-(-num_selected // BLOCK),),
            "positions": (0,),
        }[self.kind]


@dataclass(frozen=True)
class StateForm:
    """The entries of the state of every parameter.

    Attributes:
        numbers: Names of the fp32 scalars.
        moments: Names of the running means, which are vectors -> their code, if encoded.
        dtype: Dtype of the running means between steps, one of `STATE_DTYPES`.
    """

    numbers: tuple[str, ...]
    moments: dict[str, Code]
    dtype: torch.dtype

    @property
    def is_encoded(self) -> bool:
        """Whether running means are codes and scales."""
        return self.dtype == torch.int8

    def entries(self, master: Master) -> dict[str, Entry]:
        """The entries of the saved state of a parameter, given its master."""
        entries = {key: Entry("number", torch.float32) for key in self.numbers}
        for key, code in self.moments.items():
            entries[key] = Entry("vector", CODES[code] if self.is_encoded else self.dtype)
            if self.is_encoded:
                entries[key + SCALE] = Entry("blocks", torch.float32)
        if master == "lo16":
            entries["remainder"] = Entry("vector", torch.int16)
            entries["ties"] = Entry("positions", torch.int32)
        elif master == "lo8":
            entries["remainder"] = Entry("vector", torch.int8)
        elif master == "fp32":
            entries["master"] = Entry("vector", torch.float32)
        return entries

    def new(self, elements: Elements, master: Master) -> dict[str, Tensor]:
        """The state of a parameter before its first step, when masters equal weights."""
        state = {
            key: torch.zeros(
                entry.shape(elements.num_selected),
                dtype=entry.dtype,
                device=elements.parameter.device,
            )
            for key, entry in self.entries(master).items()
        }
        return state | ({"master": elements.read()} if master == "fp32" else {})

    def num_bytes(self, num_selected: int, master: Master) -> int:
        """Bytes of the state of a parameter, but for its numbers and ties."""
        return sum(
            entry.dtype.itemsize * entry.shape(num_selected)[0]
            for entry in self.entries(master).values()
            if entry.kind in ("vector", "blocks")
        )

    def load(
        self, key: str, elements: Elements, part: Part, state: dict[str, Any], scratch: Scratch
    ) -> Tensor:
        """A running mean of some elements, fp32; a view of the state if that is fp32."""
        stored = part.of(state[key])
        if stored.dtype == torch.float32:
            return stored
        values = scratch.take(key, part.stop - part.start, stored.device)
        if not self.is_encoded:
            return values.copy_(stored)
        scales = part.blocks_of(state[key + SCALE])
        elements.kernels.decode(stored, self.moments[key], scales, values)
        return values

    def store(
        self, key: str, elements: Elements, part: Part, state: dict[str, Any], values: Tensor
    ) -> None:
        """The inverse of `load`."""
        stored = part.of(state[key])
        if self.is_encoded:
            scales = part.blocks_of(state[key + SCALE])
            elements.kernels.encode(values, self.moments[key], stored, scales)
        elif stored.dtype != torch.float32:  # else it was stepped in place
            stored.copy_(values)


def entries_of(state: Mapping[str, Tensor]) -> dict[str, Entry]:
    """The entries of the codes of a state, and of their scales."""
    return {
        name: Entry("blocks" if name.endswith(SCALE) else "vector", state[name].dtype)
        for key in state
        if key + SCALE in state
        for name in (key, key + SCALE)
    }


def decoded_entries(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries of a state after `decode_state`."""
    return {
        key: Entry("vector", torch.float32) if key + SCALE in entries else entry
        for key, entry in entries.items()
        if not key.endswith(SCALE)
    }


def decode_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a parameter with fp32 vectors in place of codes and their scales."""
    plain = {key: value for key, value in state.items() if not key.endswith(SCALE)}
    for key, codes in plain.items():
        if (scales := state.get(key + SCALE)) is not None:
            plain[key] = torch.empty(codes.shape, device=codes.device)
            kernels.decode(codes, CODE_OF[codes.dtype], scales, plain[key])
    return plain


def encode_state(state: Mapping[str, Tensor], entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """The inverse of `decode_state`, bit for bit if blocks begin at the same elements."""
    result = dict(state)
    for key, entry in entries.items():
        if key + SCALE in entries:
            values = state[key]
            codes = torch.empty(values.shape, dtype=entry.dtype, device=values.device)
            num_blocks = entries[key + SCALE].shape(len(values))
            scales = torch.empty(num_blocks, device=values.device)
            kernels.encode(values, CODE_OF[entry.dtype], codes, scales)
            result |= {key: codes, key + SCALE: scales}
    return result


def master_for(dtype: torch.dtype, requested: Master | None) -> Master:
    """The master of weights of a dtype, a key of `POSSIBLE`.

    `requested` is the user's choice, or None for the default; fp32 weights always have "none".
    """
    possible = POSSIBLE[dtype]
    return requested if requested in possible else possible[0]


def load_master(
    elements: Elements, master: Master, part: Part, state: dict[str, Any], scratch: Scratch
) -> Tensor:
    """The fp32 masters of some elements, as a vector that the step may overwrite."""
    if master == "fp32":
        return part.of(state["master"])
    values = scratch.take("master", part.stop - part.start, elements.parameter.device)
    weights, move = elements.weights, elements.kernels
    if master == "lo16":
        ties = state["ties"]
        if ties.numel():
            ties = ties[(ties >= part.start) & (ties < part.stop)] - part.start
        move.read_lo16(weights, part.of(state["remainder"]), ties, values, part.start)
    elif master == "lo8":
        move.read_lo8(weights, part.of(state["remainder"]), values, part.start)
    else:
        move.read(weights, values, part.start)
    return values


def store_master(
    elements: Elements, master: Master, part: Part, state: dict[str, Any], values: Tensor
) -> None:
    """Write the result of a step back: the inverse of `load_master`."""
    weights, move = elements.weights, elements.kernels
    if master == "lo16":
        new = move.write_lo16(weights, values, part.of(state["remainder"]), part.start)
        ties = state["ties"]
        if ties.numel() or new.numel():
            before, after = ties[ties < part.start], ties[ties >= part.stop]
            state["ties"] = torch.cat([before, new + part.start, after])
    elif master == "lo8":
        move.write_lo8(weights, values, part.of(state["remainder"]), part.start)
    else:  # fp32 masters were stepped in place
        move.write(weights, values, part.start)


def follow_weights(elements: Elements, master: Master, state: dict[str, Any]) -> None:
    """Adopt weights that were changed since the last step as masters.

    A remainder fits any weight: it changes it by less than half a bf16 step.
    """
    if master == "fp32":
        masters, weights = state["master"], elements.read()
        is_same = masters.to(elements.parameter.dtype) == weights
        state["master"] = torch.where(is_same, masters, weights)
