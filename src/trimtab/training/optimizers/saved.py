"""The saved state of a sparse optimizer: its format, and the checks before it is loaded.

Per parameter it holds the selected elements only, in ascending order. Dtypes are preserved, whereas
`torch.optim.Optimizer.load_state_dict` would cast the state to the dtype of the weights.

For `torch.distributed.checkpoint` (DCP), each parameter has one vector of all selected elements per
kind of state. If the parameter is sharded along its first dimension, a process holds a contiguous
part of that vector, a `VectorPart`, so a checkpoint can be loaded by any number of processes. DCP
reads into existing tensors, and everything else by pickle; therefore everything is a tensor of
known size: what the state must agree with is saved as hashes, ties as a byte per element, and codes
of 8 bits as what they stand for, because their blocks differ with the number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from trimtab.errors import OptimizerError
from trimtab.training.layout import dtype_name
from trimtab.training.optimizers.binding import Binding
from trimtab.training.optimizers.distributed import as_sharded, box_of, start_of
from trimtab.training.optimizers.elements import (
    Elements,
    Entry,
    StateForm,
    decode_state,
    decoded_entries,
    encode_state,
)
from trimtab.training.optimizers.kernels import ties_as_positions
from trimtab.words import first_few

KEY = "trimtab"
"""Key of the record, next to torch's `state` and `param_groups`."""

FORMAT = 1
"""Format version of the record and the state: 1 since 0.2.0."""

STARTED = "started"
"""Key in a parameter's state for DCP: 1 once it has taken a step, 0 before."""

States = Mapping[Tensor, Mapping[str, Tensor]]
"""State of parameters, as in `torch.optim.Optimizer.state`."""


class StateCodec:
    """Converts the state of a sparse optimizer to its saved form and back."""

    def __init__(
        self, optimizer: str, binding: Binding, form: StateForm, groups: Sequence[Sequence[str]]
    ) -> None:
        self._optimizer = optimizer
        self._binding = binding
        self._form = form
        self._groups = [list(names) for names in groups]
        self._entries = {name: form.entries(master) for name, master in binding.masters.items()}

    def record(self) -> dict[str, Any]:
        """Mask, base and settings that a saved state must agree with."""
        binding = self._binding
        assert binding.fitted is not None
        return {
            "format": FORMAT,
            "optimizer": self._optimizer,
            "mask": binding.mask.digest if not binding.also else binding.fitted.digest,
            "base": binding.base,
            "state_dtype": dtype_name(self._form.dtype),
            "tensors": {
                name: [dtype_name(elements.parameter.dtype), binding.masters[name]]
                for name, elements in binding.elements.items()
            },
            "groups": self._groups,
        }

    def boxes(self) -> dict[str, list[list[int]]]:
        """The part of each sharded parameter in this process: (start, stop) per dimension."""
        return {
            name: [[part.start, part.stop] for part in box_of(elements.parameter)]
            for name, elements in self._binding.elements.items()
            if as_sharded(elements.parameter) is not None
        }

    def export(self, states: States) -> dict[int, dict[str, Tensor]]:
        """The state of each parameter that has one, by its index in the groups."""
        names = [name for names in self._groups for name in names]
        parameters = [self._binding.elements[name].parameter for name in names]
        return {
            number: self._export(name, states[parameter])
            for number, (name, parameter) in enumerate(zip(names, parameters, strict=True))
            if states.get(parameter)
        }

    def check(self, saved: Mapping[str, Any]) -> dict[str, Mapping[str, Tensor]]:
        """Check that a saved state fits this optimizer.

        Returns:
            Name of a parameter -> its state; for `adopt`.

        Raises:
            OptimizerError: It belongs to another mask, base or settings, or is damaged.
        """
        _check_record(saved, self.record() | {"boxes": self.boxes()})
        states = _states_by_name(saved, self._groups)
        problems = []
        for name, state in states.items():
            entries = self._entries[name]
            num_selected = self._binding.elements[name].num_selected
            if state.keys() != entries.keys():
                problems.append(f"{name} has {sorted(state)}, not {sorted(entries)}")
                continue
            problems += [
                f"{key} of {name} is not a {entry.kind} of {dtype_name(entry.dtype)} for "
                f"{num_selected} elements"
                for key, entry in entries.items()
                if not _fits(state[key], entry, num_selected)
            ]
        if problems:
            raise OptimizerError(f"the saved state is damaged: {first_few(problems, '; ')}")
        return states

    def adopt(self, name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `export`, for one parameter.

        Returns:
            New tensors on the parameter's device, dtypes unchanged.
        """
        device = self._binding.elements[name].parameter.device
        return {key: state[key].to(device, copy=True) for key in self._entries[name]}

    def hashes(self) -> dict[str, Tensor]:
        """Hashes of the entries of `record`."""
        texts = {key: json.dumps(value, sort_keys=True) for key, value in self.record().items()}
        return {
            key: torch.tensor(list(xxhash.xxh3_128_digest(text.encode())), dtype=torch.uint8)
            for key, text in texts.items()
        }

    def check_hashes(self, saved: Mapping[str, Tensor]) -> None:
        """Check that saved `hashes` belong to this optimizer.

        Raises:
            OptimizerError: It does not; names every difference.
        """
        own = self.hashes()
        if different := [key for key in own if not torch.equal(saved[key], own[key])]:
            raise OptimizerError(
                f"the saved state belongs to another run: it differs in {first_few(different)}. "
                "Use the mask, base and settings that it was saved with, or start without it"
            )

    def export_sharded(self, states: States) -> dict[str, dict[str, Tensor]]:
        """The state of each parameter, for DCP; zeros before its first step.

        Tensors share memory with the optimizer where possible.

        Raises:
            OptimizerError: A parameter is sharded along another dimension than the first.
        """
        return {
            name: self._export_sharded(elements, states.get(elements.parameter, {}))
            for name, elements in self._binding.elements.items()
        }

    def adopt_sharded(self, name: str, content: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `export_sharded`, for one parameter; returns new tensors."""
        if not content[STARTED]:
            return {}
        state = {}
        for key, entry in decoded_entries(self._entries[name]).items():
            value = content[key]
            value = value.part if isinstance(value, VectorPart) else value
            if entry.kind == "positions":
                value = value.nonzero().flatten().to(entry.dtype)
            state[key] = value
        return self.adopt(name, encode_state(state, self._entries[name]))

    def _export(self, name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of a parameter as it is saved; without copies where possible."""
        return {
            key: ties_as_positions(state[key]) if entry.kind == "positions" else state[key]
            for key, entry in self._entries[name].items()
        }

    def _export_sharded(self, elements: Elements, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        k = elements.num_selected
        entries = decoded_entries(self._entries[elements.name])
        if state:
            exported = decode_state(self._export(elements.name, state))
        else:
            exported = {
                key: torch.zeros(entry.shape(k), dtype=entry.dtype)
                for key, entry in entries.items()
            }
        start, length = self._position(elements)
        content = {STARTED: torch.tensor(int(bool(state)), dtype=torch.uint8)}
        for key, entry in entries.items():
            value = exported[key]
            if entry.kind == "positions":
                value = torch.zeros(k, dtype=torch.uint8, device=value.device)
                value[exported[key].long()] = 1
            whole = entry.kind == "number" or as_sharded(elements.parameter) is None
            content[key] = value if whole else VectorPart(value, start, length)
        return content

    def _position(self, elements: Elements) -> tuple[int, int]:
        """Index of this process's first selected element among all of the tensor; number of all."""
        start = start_of(elements.parameter)
        if start is None:
            raise OptimizerError(
                f"{elements.name} is sharded along another dimension than the first: save "
                "state_dict() in each process instead, and resume with the same number of processes"
            )
        assert self._binding.fitted is not None
        index = self._binding.fitted.indices(elements.name)
        return int(np.searchsorted(index, start)), len(index)


def _check_record(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise OptimizerError if a saved state belongs to another optimizer; names all differences."""
    record = saved.get(KEY)
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        raise OptimizerError(
            f"the saved state is not one that this trimtab writes: it has no record {KEY!r} of "
            f"format {FORMAT}; start from the weights, without it"
        )
    problems = [
        f"{label} {record.get(key)!r}, here {own[key]!r}"
        for key, label in (
            ("optimizer", "it was saved by"),
            ("mask", "its mask has the digest"),
            ("state_dtype", "its running means are"),
        )
        if record.get(key) != own[key]
    ]
    for key, label in (("base", "base"), ("tensors", "dtype and master")):
        recorded = record.get(key)
        recorded = recorded if isinstance(recorded, Mapping) else {}
        problems += [
            f"{name}: {label} {recorded.get(name)!r}, here {expected!r}"
            for name, expected in own[key].items()
            if recorded.get(name) != expected
        ]
    if record.get("boxes", {}) != own["boxes"]:
        problems.append(
            "it was saved by another process or another number of processes: use "
            "sharded_state_dict() for that"
        )
    if not problems and record.get("groups") != own["groups"]:
        problems.append("its groups hold other parameters than the groups here")
    if problems:
        raise OptimizerError(
            f"the saved state belongs to another run: {first_few(problems, '; ')}. Use the mask, "
            "base and settings that it was saved with, or start without it"
        )


def _states_by_name(saved: Mapping[str, Any], groups: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Map the names of the parameters to their saved states; OptimizerError if they do not fit."""
    numbers = [group["params"] for group in saved["param_groups"]]
    if [len(group) for group in numbers] != [len(group) for group in groups]:
        raise OptimizerError("the saved state is damaged: its groups have other sizes")
    names = {
        number: name
        for group, own in zip(numbers, groups, strict=True)
        for number, name in zip(group, own, strict=True)
    }
    if unknown := [str(number) for number in saved["state"] if number not in names]:
        raise OptimizerError(
            f"the saved state is damaged: no parameter has the number {first_few(unknown)}"
        )
    return {names[number]: state for number, state in saved["state"].items()}


def _fits(value: Any, entry: Entry, num_selected: int) -> bool:
    if not isinstance(value, Tensor) or value.dtype != entry.dtype:
        return False
    if entry.kind == "number":
        return value.dim() == 0
    if entry.kind in ("vector", "blocks"):
        return tuple(value.shape) == entry.shape(num_selected)
    ascending = value.dim() == 1 and bool((value[1:] > value[:-1]).all())
    return ascending and (not len(value) or bool(value[0] >= 0 and value[-1] < num_selected))


class VectorPart(torch.Tensor):
    """A vector that is distributed over processes, of which this one holds a contiguous part.

    Only for `torch.distributed.checkpoint`, whose protocol it implements.

    Attributes:
        part: The elements of this process.
        start: Index of the first of them in the vector.
    """

    part: Tensor
    start: int

    @staticmethod
    def __new__(cls, part: Tensor, start: int, length: int) -> VectorPart:
        """Wrap `part`, without a copy, as the elements from `start` on of `length`."""
        self: VectorPart = torch.Tensor._make_wrapper_subclass(
            cls, (length,), dtype=part.dtype, device=part.device
        )
        self.part, self.start = part, start
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        raise NotImplementedError(f"a VectorPart can only be saved and loaded, not {func}")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"VectorPart({self.start} to {self.start + len(self.part)} of {self.size(0)})"

    def __create_write_items__(self, fqn: str, object: Any) -> list[Any]:
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=chunk,
                    properties=TensorProperties.create_from_tensor(self.part),
                    size=self.size(),
                ),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[Any]:
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        if not len(self.part):
            return []
        return [ChunkStorageMetadata(torch.Size([self.start]), self.part.size())]

    def __get_tensor_shard__(self, index: Any) -> Tensor:
        return self.part
