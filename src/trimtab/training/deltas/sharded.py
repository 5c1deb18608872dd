"""Read the tensors of a model that is sharded over processes (FSDP2, tensor parallelism)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from trimtab.elements.dtypes import Bits
from trimtab.training.deltas.live import INTEGERS, LiveModel, LiveTensor
from trimtab.training.optimizers.distributed import as_sharded, local, whole
from trimtab.training.tracker.parts import Processes

MOST_WHOLE = 2
"""Parameters that the first process holds whole: those of which a layer's experts are stored."""

Result = TypeVar("Result")


class Gathering:
    """The parameters of a sharded model, whole, one at a time, in the first process.

    The first process asks for them in any order, and from any thread; the others wait for its
    requests and take part.

    Attributes:
        is_needed: Whether any is sharded.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        """Gather nothing yet; `values` has parameters and buffers by name."""
        self.is_needed = any(as_sharded(value) is not None for value in values.values())
        self._processes = Processes(values.values())
        self._values = values
        self._whole: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    def run(self, action: Callable[[], Result]) -> Result:
        """Call a function in the first process, which may ask for parameters; its result in all.

        Collective: all processes must call it.

        Raises:
            TrimtabError: The function failed; raised by all processes.
        """

        def first() -> Result:
            try:
                return action()
            finally:
                self._whole.clear()
                self._processes.by_first(lambda: None)  # there are no more requests

        def other() -> None:
            while (name := self._processes.by_first(lambda: None)) is not None:
                self._gather(name)

        results = self._processes.together(first if self._processes.is_first else other)
        return results[0]  # type: ignore[return-value]

    def of(self, name: str) -> Tensor:
        """A parameter or buffer, whole, as integers of the same bits; in the first process."""
        with self._lock:
            if name not in self._whole:
                while len(self._whole) >= MOST_WHOLE:
                    del self._whole[next(iter(self._whole))]
                here = local(self._values[name].detach())
                with torch.cuda.device_of(here):  # type: ignore[no-untyped-call]
                    self._processes.by_first(lambda: name)
                    values = self._gather(name)
                self._whole[name] = values.view(INTEGERS[values.element_size()])
            return self._whole[name]

    def _gather(self, name: str) -> Tensor:
        return whole(self._values[name].detach())


@dataclass(frozen=True, eq=False, repr=False)
class ShardedTensor(LiveTensor):
    """A tensor of which each process holds a part; only `read` works."""

    gathering: Gathering

    def read(self) -> Bits:
        """Its bits, in its shape."""
        sources = {name: self.gathering.of(name) for name in self.sources}
        return LiveTensor(self.name, self.dtype, self.piece, sources).read()


def gathered(live: LiveModel, gathering: Gathering) -> LiveModel:
    """The tensors of a model, to be read whole."""
    tensors = {
        name: ShardedTensor(tensor.name, tensor.dtype, tensor.piece, tensor.sources, gathering)
        for name, tensor in live.tensors.items()
    }
    return live._replace(tensors=tensors)
