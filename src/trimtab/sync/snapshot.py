"""A copy of the version that was published last, and what the versions before differ by."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from trimtab.deltas.chain import Replay
from trimtab.deltas.changes import Changes, apply_changes, find_changes
from trimtab.deltas.manifest import TensorEntry
from trimtab.deltas.source import Source
from trimtab.deltas.workers import Workers
from trimtab.elements.dtypes import DTYPES, Bits, DType
from trimtab.errors import SyncError

AllChanges = Mapping[str, Changes]
"""Name of each tensor -> what changed in it."""


class HeldTensor(NamedTuple):
    """A tensor in memory: given bits, and changes that are applied when it is read.

    Attributes:
        name: Its name.
        dtype: Its dtype.
        bits: Its bits, in its shape, before the changes.
        changes: In the order in which they are applied.
        back: Whether they are undone instead.
    """

    name: str
    dtype: DType
    bits: Bits
    changes: tuple[Changes, ...] = ()
    back: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.bits.shape

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.bits.nbytes

    def read(self) -> Bits:
        """Its bits after the changes; not to be written to."""
        if not any(changes.places.size for changes in self.changes):
            return self.bits
        bits = self.bits.copy()
        for changes in self.changes:
            apply_changes(bits.reshape(-1), changes, self.dtype, back=self.back)
        return bits


class DecodedTensor(NamedTuple):
    """A tensor of a delta, decoded when it is read.

    Attributes:
        replay: The delta on its base.
        entry: The tensor in it.
    """

    replay: Replay
    entry: TensorEntry

    @property
    def name(self) -> str:
        """Its name."""
        return self.entry.name

    @property
    def dtype(self) -> DType:
        """Its dtype."""
        return DTYPES[self.entry.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.entry.shape

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.entry.num_bytes

    def read(self) -> Bits:
        """Its bits."""
        return self.replay.tensor(self.entry)


class Snapshot:
    """A copy of all tensors of a version; it moves to the next one by what changed.

    Args:
        tensors: Name -> dtype and bits, which are copied.
        depth: So many versions back can be read: their changes stay in memory.
    """

    def __init__(self, tensors: Mapping[str, tuple[DType, Bits]], depth: int) -> None:
        self._bits = {name: np.array(bits) for name, (_, bits) in tensors.items()}
        self._dtypes = {name: dtype for name, (dtype, _) in tensors.items()}
        self._history: deque[AllChanges] = deque(maxlen=depth)

    @property
    def depth(self) -> int:
        """How many versions back can be read now."""
        return len(self._history)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(bits.nbytes for bits in self._bits.values())

    def check(self, source: Source) -> None:
        """Refuse tensors that are others than these.

        Raises:
            SyncError: The names, dtypes or shapes differ; the message names a tensor.
        """
        was = {name: (self._dtypes[name].name, bits.shape) for name, bits in self._bits.items()}
        now = {name: (tensor.dtype.name, tensor.shape) for name, tensor in source.tensors.items()}
        for name in {**was, **now}:
            if was.get(name) != now.get(name):
                raise SyncError(
                    f"{name}: expected {_described(was.get(name))} as in the versions before, "
                    f"found {_described(now.get(name))}: publish another model to another place"
                )

    def changes_to(self, source: Source, threads: int | None) -> AllChanges:
        """What changed since this version, in each tensor of a source."""
        with Workers(threads) as workers:
            found = workers.in_order(
                source.tensors.values(),
                lambda tensor: find_changes(self._bits[tensor.name], tensor.read(), tensor.dtype),
                lambda tensor: tensor.num_bytes // 8,
            )
            return dict(zip(source.tensors, found, strict=True))

    def advance(self, changes: AllChanges) -> None:
        """Become the version that the changes make."""
        for name, each in changes.items():
            apply_changes(self._bits[name].reshape(-1), each, self._dtypes[name])
        self._history.append(changes)

    def after(self, changes: AllChanges) -> dict[str, HeldTensor]:
        """The tensors of the version that the changes make."""
        return {
            name: HeldTensor(name, self._dtypes[name], bits, (changes[name],))
            for name, bits in self._bits.items()
        }

    def before(self, num: int = 0) -> dict[str, HeldTensor]:
        """The tensors of this version, or of one so many versions before."""
        undone = [*reversed(self._history)][:num]
        return {
            name: HeldTensor(
                name, self._dtypes[name], bits, tuple(each[name] for each in undone), back=True
            )
            for name, bits in self._bits.items()
        }


def frozen(source: Source) -> Source:
    """A source without its tensors, of which the files beside the weights are read."""
    contents = {name: read() for name, read in source.others.items()}
    others: dict[str, Callable[[], bytes]] = {
        name: partial(bytes, content) for name, content in contents.items()
    }
    return replace(source, tensors={}, others=others)


def _described(what: tuple[str, tuple[int, ...]] | None) -> str:
    return "none" if what is None else f"{what[0]} {list(what[1])}"
