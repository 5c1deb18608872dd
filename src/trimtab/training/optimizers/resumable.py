"""How a sparse optimizer is closed and opened, copied, and saves its state to go on with it.

There are two forms: `state_dict`, which every optimizer of torch has, and `sharded_state_dict` for
`torch.distributed.checkpoint`. `trimtab.training.optimizers.saved` and `saved_sharded` say what is
in them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trimtab.errors import OptimizerError
from trimtab.masks import Mask
from trimtab.training.optimizers.checks import refuse_taken
from trimtab.training.optimizers.distributed import as_sharded, box_of
from trimtab.training.optimizers.elements import Collector, Elements
from trimtab.training.optimizers.masters import Master, follow_weights, master_kept, new_master
from trimtab.training.optimizers.saved import (
    FORMAT,
    KEY,
    Kept,
    adopt_state,
    adopt_vectors,
    check_hashes,
    check_record,
    check_tensors,
    dtype_name,
    export_groups,
    export_state,
    export_vectors,
    hashes,
    own_states,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from trimtab.training.optimizers.distributed import Ranks

__all__ = ["ResumableOptimizer"]

COPIED = (
    *("_mask", "_asked", "_fitted", "_also", "_elements", "_others", "_masters", "_base"),
    *("_master", "_max_grad_norm", "_clip_by", "_state_dtype", "_nonfinite", "_has_momentum"),
    *("_num_selected", "_num_elements", "_grad_norm", "num_skipped_steps"),
)
"""What a copy has of an optimizer beside what torch copies: no hooks, nor wrappers of schedules."""


class ResumableOptimizer(torch.optim.Optimizer):
    """An optimizer that has state for the elements that a mask selects, and for no others.

    Attributes:
        num_skipped_steps: Steps left out because of NaN or infinity.
    """

    num_skipped_steps: int
    _ranks: Ranks | None
    _process_group: ProcessGroup | None
    _collector: Collector | None
    _mask: Mask
    _fitted: Mask | None
    _also: list[str]
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
        assert self._fitted is not None
        return {
            "record": hashes(self._record()),
            "groups": export_groups(self.param_groups, self.defaults),
            "num_skipped_steps": torch.tensor(self.num_skipped_steps),
            "state": {
                name: export_vectors(
                    elements,
                    self._fitted,
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

    def close(self) -> None:
        """Remove the hooks: the parameters are free for another optimizer."""
        assert self._collector is not None
        self._collector.close()

    def reopen(self) -> None:
        """Collect gradients again after `close`, with the state of then.

        Weights that something else has changed in between are gone on from.

        Raises:
            OptimizerError: Another sparse optimizer has the parameters by now.
        """
        assert self._collector is not None
        if not self._collector.is_open:
            refuse_taken((name, of.parameter) for name, of in self._elements.items())
            for elements in self._elements.values():
                if state := self.state.get(elements.parameter):
                    follow_weights(elements, self._masters[elements.name], state)
            self._collector = self._new_collector()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has, and what a pickle holds: all but the hooks and the processes.

        Raises:
            OptimizerError: The optimizer is one of several processes.
        """
        if self._ranks is not None:
            raise OptimizerError(
                "an optimizer of several processes cannot be copied or pickled: save its "
                "state_dict(), and load that into a new optimizer"
            )
        own = {name: vars(self)[name] for name in COPIED if name in vars(self)}
        is_open = self._collector is not None and self._collector.is_open
        return {**super().__getstate__(), **own, "_is_open": is_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a copy, which collects the gradients of its own copies of the parameters.

        Raises:
            OptimizerError: It is one of `copy.copy`, which has the parameters of the original.
        """
        is_open = state.pop("_is_open", None)
        super().__setstate__(state)
        if is_open is None:  # torch's load_state_dict sets state and groups in this way
            return
        self._ranks, self._process_group = None, None
        refuse_taken((name, of.parameter) for name, of in self._elements.items())
        self._collector = self._new_collector()
        if not is_open:
            self.close()

    @abstractmethod
    def _new_collector(self) -> Collector:
        """Hooks that collect the gradients."""

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
        assert self._fitted is not None
        return {
            "format": FORMAT,
            "optimizer": type(self).__name__,
            "mask": self._mask.digest if not self._also else self._fitted.digest,
            "base": self._base,
            "state_dtype": dtype_name(self._state_dtype),
            "tensors": {
                name: [dtype_name(elements.parameter.dtype), self._masters[name]]
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
