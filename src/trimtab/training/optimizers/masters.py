"""In which precision the weights are kept between steps.

The arithmetic of a step is fp32 whatever the weights are. What differs is what is left of its
result when the weights have fewer bits:

- `lo16`: all of it. The weight and a 16-bit remainder are the fp32 master (bf16 weights only).
- `fp32`: all of it, in a second, fp32 copy of the weights.
- `none`: what the weights can hold. Exact for fp32 weights. bf16 weights are rounded once a step,
  to nearest: an update below half a bf16 step of its weight is lost, each time.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.training.optimizers.elements import Elements
from trimtab.training.optimizers.saved import Kept

__all__ = [
    "Master",
    "follow_weights",
    "load_master",
    "master_for",
    "master_kept",
    "new_master",
    "store_master",
]

Master = Literal["lo16", "fp32", "none"]

POSSIBLE: dict[torch.dtype, tuple[Master, ...]] = {
    torch.float32: ("none",),
    torch.bfloat16: ("lo16", "fp32", "none"),
    torch.float16: ("fp32",),
}
"""Dtypes of weights that can be trained -> masters that they can have, the default first."""


def master_for(dtype: torch.dtype, asked: Master | None) -> Master:
    """The master of weights of a dtype.

    Args:
        dtype: Dtype of the weights, a key of `POSSIBLE`.
        asked: What the user asked for; None for the default. Of no concern to fp32 weights, which
            need no other master.
    """
    possible = POSSIBLE[dtype]
    return asked if asked in possible else possible[0]


def master_kept(master: Master) -> dict[str, Kept]:
    """What a saved state holds for a master."""
    if master == "lo16":
        return {"remainder": Kept("vector", torch.int16), "ties": Kept("positions", torch.int32)}
    return {"master": Kept("vector", torch.float32)} if master == "fp32" else {}


def new_master(elements: Elements, master: Master) -> dict[str, Tensor]:
    """What the state has of the masters before the first step, when they are the weights."""
    if master == "lo16":
        ties = torch.empty(0, dtype=torch.int32, device=elements.parameter.device)
        return {"remainder": elements.new_vector(torch.int16), "ties": ties}
    return {"master": elements.read()} if master == "fp32" else {}


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
        kept: Tensor = state["master"]
        return kept
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
        kept, now = state["master"], elements.read()
        state["master"] = torch.where(kept.to(elements.parameter.dtype) == now, kept, now)
