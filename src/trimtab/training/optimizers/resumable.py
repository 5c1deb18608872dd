"""How a sparse optimizer saves its state and goes on with it.

There are two forms: `state_dict`, which every optimizer of torch has, and `sharded_state_dict` for
`torch.distributed.checkpoint`. `trimtab.training.optimizers.saved` and `saved_sharded` say what is
in them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from trimtab.masks import Mask
from trimtab.training.optimizers.elements import Elements
from trimtab.training.optimizers.masters import Master, master_kept, new_master
from trimtab.training.optimizers.saved import (
    FORMAT,
    KEY,
    Kept,
    adopt_state,
    check_record,
    check_tensors,
    export_state,
    own_states,
    short,
)
from trimtab.training.optimizers.saved_sharded import (
    adopt_vectors,
    check_hashes,
    export_groups,
    export_vectors,
    hashes,
)
from trimtab.training.optimizers.sharding import as_sharded, box_of

__all__ = ["ResumableOptimizer"]


class ResumableOptimizer(torch.optim.Optimizer):
    """An optimizer that has state for the elements that a mask selects, and for no others.

    Attributes:
        num_skipped_steps: Steps left out because of NaN or infinity.
    """

    num_skipped_steps: int
    _mask: Mask
    _state_dtype: torch.dtype
    # By name of each parameter that the mask trains: its elements, their master, and the digest of
    # the base that they started from, where the mask knows it.
    _elements: dict[str, Elements]
    _masters: dict[str, Master]
    _base: dict[str, str]

    @property
    def elements(self) -> Mapping[str, Elements]:
        """The elements that are trained, by name of their parameter."""
        return MappingProxyType(self._elements)

    def state_dict(self) -> dict[str, Any]:
        """The state, as plain data and tensors that `torch.load(weights_only=True)` reads.

        Beside torch's own keys, `trimtab` says which mask, base and settings it belongs to.
        Gradients that are collected but not used are no part of it.

        Of a parameter that is sharded, it is the state of the part that this process has: each
        process saves its own, and as many can go on. See `sharded_state_dict` for another number.
        """
        content = super().state_dict()
        numbered = enumerate(elements for _, elements in self._in_groups())
        content["state"] = {
            number: export_state(elements, self.state[elements.parameter], self._kept(elements))
            for number, elements in numbered
            if self.state.get(elements.parameter)
        }
        content[KEY] = self._record() | {
            "boxes": self._boxes(),
            "num_skipped_steps": self.num_skipped_steps,
        }
        return content

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, bit for bit.

        Raises:
            OptimizerError: It belongs to another mask, base or settings, or is damaged. The
                optimizer is left as it was.
        """
        own = self._record()
        check_record(state_dict, own | {"boxes": self._boxes()})
        states = own_states(state_dict, own["groups"])
        expected = {
            name: (elements.num_selected, self._kept(elements))
            for name, elements in self._elements.items()
        }
        check_tensors(states, expected)
        # torch casts state to the dtype of the weights, so it gets none to load.
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        for name, state in states.items():
            elements = self._elements[name]
            self.state[elements.parameter] = adopt_state(elements, state, self._kept(elements))
        self.num_skipped_steps = state_dict[KEY]["num_skipped_steps"]

    def sharded_state_dict(self) -> dict[str, Any]:
        """The state in the form for `torch.distributed.checkpoint` (DCP).

        What is saved by some number of processes, `load_sharded_state_dict` loads in any other::

            state = {"optimizer": optimizer.sharded_state_dict()}
            dcp.save(state, checkpoint_id=folder)

            state = {"optimizer": optimizer.sharded_state_dict()}  # of the new optimizer
            dcp.load(state, checkpoint_id=folder)
            optimizer.load_sharded_state_dict(state["optimizer"])

        `dcp.load` writes into the tensors that it is given, which may be those of the optimizer:
        load into one that has not taken a step.

        Raises:
            OptimizerError: A parameter is sharded along another dimension than its first.
        """
        return {
            "record": hashes(self._record()),
            "groups": export_groups(self.param_groups, self.defaults),
            "num_skipped_steps": torch.tensor(self.num_skipped_steps),
            "state": {
                name: export_vectors(
                    elements,
                    self._mask,
                    self.state.get(elements.parameter, {}),
                    self._kept(elements),
                )
                for name, elements in self._elements.items()
            },
        }

    def load_sharded_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `sharded_state_dict` was taken, in however many processes.

        Args:
            state_dict: What `sharded_state_dict` returned, after `torch.distributed.checkpoint`
                has loaded into it.

        Raises:
            OptimizerError: It belongs to another mask, base or settings.
        """
        check_hashes(state_dict["record"], self._record())
        for number, group in enumerate(self.param_groups):
            for key, value in state_dict["groups"][str(number)].items():
                group[key] = tuple(value.tolist()) if value.dim() else value.item()
        for name, elements in self._elements.items():
            content = state_dict["state"][name]
            self.state[elements.parameter] = adopt_vectors(elements, content, self._kept(elements))
        self.num_skipped_steps = int(state_dict["num_skipped_steps"])

    def _new_state(self, elements: Elements) -> dict[str, Tensor]:
        """What the state of a parameter is before its first step."""
        device = elements.parameter.device
        numbers = {key: torch.zeros((), device=device) for key in self._numbers()}
        moments = {key: elements.new_vector(self._state_dtype) for key in self._moments()}
        return numbers | moments | new_master(elements, self._masters[elements.name])

    @abstractmethod
    def _numbers(self) -> tuple[str, ...]:
        """Names of the fp32 numbers that the state has."""

    @abstractmethod
    def _moments(self) -> tuple[str, ...]:
        """Names of the vectors that the state has in `state_dtype`."""

    def _in_groups(self) -> Iterator[tuple[dict[str, Any], Elements]]:
        for group in self.param_groups:
            for name in group["param_names"]:
                yield group, self._elements[name]

    def _record(self) -> dict[str, Any]:
        """What a saved state must agree with."""
        return {
            "format": FORMAT,
            "optimizer": type(self).__name__,
            "mask": self._mask.digest,
            "base": self._base,
            "state_dtype": short(self._state_dtype),
            "tensors": {
                name: [short(elements.parameter.dtype), self._masters[name]]
                for name, elements in self._elements.items()
            },
            "groups": [list(group["param_names"]) for group in self.param_groups],
        }

    def _boxes(self) -> dict[str, list[list[int]]]:
        """Which part of each sharded parameter this process has: from where to where."""
        return {
            name: [[part.start, part.stop] for part in box_of(elements.parameter)]
            for name, elements in self._elements.items()
            if as_sharded(elements.parameter) is not None
        }

    def _kept(self, elements: Elements) -> dict[str, Kept]:
        """What a saved state holds for the elements of a parameter."""
        numbers = {key: Kept("number", torch.float32) for key in self._numbers()}
        moments = {key: Kept("vector", self._state_dtype) for key in self._moments()}
        return numbers | moments | master_kept(self._masters[elements.name])
