"""What the optimizer keeps of each parameter: its moments, and in which precision its weights.

The arithmetic of a step is fp32 whatever the weights are. What differs is what is left of its
result when the weights have fewer bits:

- `lo16`: all of it. The weight and a 16-bit remainder are the fp32 master (bf16 weights only).
- `fp32`: all of it, in a second, fp32 copy of the weights.
- `none`: what the weights can hold. Exact for fp32 weights. bf16 weights are rounded once a step,
  to nearest: an update below half a bf16 step of its weight is lost, each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from trimtab.training.optimizers.elements import Elements

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
    """The fp32 weights of the elements, as a vector that the step may write to.

    Args:
        elements: The elements.
        master: How their masters are kept.
        state: State of the parameter.
    """
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
