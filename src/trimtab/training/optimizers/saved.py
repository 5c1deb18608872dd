"""The saved state of a sparse optimizer: what says whose it is, and the checks before it is used.

Per parameter it holds the selected elements only, in ascending order, so it depends neither on
whether they are kept compact or dense nor on the machine. The dtypes are part of the meaning:
`torch.optim.Optimizer.load_state_dict` would cast all of them to the dtype of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from trimtab.errors import OptimizerError
from trimtab.training.optimizers import tie_bits
from trimtab.training.optimizers.elements import Elements
from trimtab.words import first_few

__all__ = [
    "FORMAT",
    "KEY",
    "Kept",
    "adopt_state",
    "check_record",
    "check_tensors",
    "export_state",
    "own_states",
    "short",
]

KEY = "trimtab"
"""Where the record is, beside torch's `state` and `param_groups`."""

FORMAT = 1
"""Of the record and the state: 1 since 0.2.0."""


class Kept(NamedTuple):
    """What the state of a parameter has under a key.

    Attributes:
        kind: A number, a vector of the selected elements, or ascending positions among them.
        dtype: Its dtype, exactly.
    """

    kind: Literal["number", "vector", "positions"]
    dtype: torch.dtype


def export_state(
    elements: Elements, state: Mapping[str, Tensor], kept: Mapping[str, Kept]
) -> dict[str, Tensor]:
    """The state of a parameter as it is saved; what is not rearranged is not copied."""
    exporters: dict[str, Callable[[Tensor], Tensor]] = {
        "number": _same,
        "vector": elements.export,
        "positions": lambda ties: elements.export_ties(tie_bits.as_positions(ties)),
    }
    return {key: exporters[of.kind](state[key]) for key, of in kept.items()}


def adopt_state(
    elements: Elements, state: Mapping[str, Tensor], kept: Mapping[str, Kept]
) -> dict[str, Tensor]:
    """The inverse of `export_state`: new tensors on the parameter's device, dtypes unchanged."""
    adopters = {"number": _same, "vector": elements.adopt, "positions": elements.adopt_ties}
    device = elements.parameter.device
    return {key: adopters[of.kind](state[key].to(device, copy=True)) for key, of in kept.items()}


def check_record(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Check that a saved state belongs to an optimizer.

    Args:
        saved: What `state_dict` returned.
        own: The record of the optimizer that is to go on with it.

    Raises:
        OptimizerError: It does not; names every difference.
    """
    record = saved.get(KEY)
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        raise OptimizerError(
            f"the saved state is not one that this trimtab writes: it has no record {KEY!r} of "
            f"format {FORMAT}; start from the weights, without it"
        )
    problems = [
        f"{what} {record.get(key)!r}, here {own[key]!r}"
        for key, what in (
            ("optimizer", "it was saved by"),
            ("mask", "its mask has the digest"),
            ("state_dtype", "its running means are"),
        )
        if record.get(key) != own[key]
    ]
    for key, what in (("base", "base"), ("tensors", "dtype and master")):
        theirs = record.get(key)
        theirs = theirs if isinstance(theirs, Mapping) else {}
        problems += [
            f"{name}: {what} {theirs.get(name)!r}, here {mine!r}"
            for name, mine in own[key].items()
            if theirs.get(name) != mine
        ]
    if record.get("boxes", {}) != own["boxes"]:
        problems.append(
            "it is that of another process or another number of processes, for which there is "
            "sharded_state_dict()"
        )
    if not problems and record.get("groups") != own["groups"]:
        problems.append("its groups hold other parameters than the groups here")
    if problems:
        raise OptimizerError(
            f"the saved state belongs to another run: {first_few(problems, '; ')}. Use the mask, "
            "base and settings that it was saved with, or start without it"
        )


def check_tensors(
    states: Mapping[str, Mapping[str, Any]],
    expected: Mapping[str, tuple[int, Mapping[str, Kept]]],
) -> None:
    """Check the tensors of a saved state.

    Args:
        states: Name of a parameter -> its state.
        expected: Name of a parameter -> its number of selected elements, and what is kept of them.

    Raises:
        OptimizerError: Tensors are missing, strange or of another dtype or shape; names them.
    """
    problems = []
    for name, state in states.items():
        num_selected, kept = expected[name]
        if state.keys() != kept.keys():
            problems.append(f"{name} has {sorted(state)}, not {sorted(kept)}")
            continue
        problems += [
            f"{key} of {name} is not a {of.kind} of {short(of.dtype)} for {num_selected} elements"
            for key, of in kept.items()
            if not _fits(state[key], of, num_selected)
        ]
    if problems:
        raise OptimizerError(f"the saved state is damaged: {first_few(problems, '; ')}")


def short(dtype: torch.dtype) -> str:
    """A dtype as records and messages name it: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def own_states(saved: Mapping[str, Any], groups: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Sort the states of a saved state by the names of the parameters.

    Args:
        saved: What `state_dict` returned.
        groups: Names of the parameters of each group.

    Raises:
        OptimizerError: There are states of other parameters, or other numbers of parameters.
    """
    numbers = [group["params"] for group in saved["param_groups"]]
    if [len(group) for group in numbers] != [len(group) for group in groups]:
        raise OptimizerError("the saved state is damaged: its groups have other sizes")
    names = {
        number: name
        for group, of in zip(numbers, groups, strict=True)
        for number, name in zip(group, of, strict=True)
    }
    if strangers := [str(number) for number in saved["state"] if number not in names]:
        raise OptimizerError(
            f"the saved state is damaged: no parameter has the number {first_few(strangers)}"
        )
    return {names[number]: state for number, state in saved["state"].items()}


def _fits(value: Any, kept: Kept, num_selected: int) -> bool:
    if not isinstance(value, Tensor) or value.dtype != kept.dtype:
        return False
    if kept.kind == "number":
        return value.dim() == 0
    if kept.kind == "vector":
        return tuple(value.shape) == (num_selected,)
    ascending = value.dim() == 1 and bool((value[1:] > value[:-1]).all())
    return ascending and (not len(value) or bool(value[0] >= 0 and value[-1] < num_selected))


def _same(value: Tensor) -> Tensor:
    return value
