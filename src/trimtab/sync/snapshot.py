"""A copy of the version that was published last, and what the versions before differ by."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from trimtab.checkpoints.tensors import StoredTensor
from trimtab.deltas.changes import Changes, apply_changes, find_changes
from trimtab.deltas.masked import Selection
from trimtab.deltas.source import Source, TunedTensor
from trimtab.deltas.workers import Workers
from trimtab.elements.dtypes import Bits, DType
from trimtab.errors import SyncError
from trimtab.words import plural

AllChanges = Mapping[str, Changes]
"""Name of each tensor -> what changed in it."""


class Part(NamedTuple):
    """The elements of a tensor that are held, if the others are always those of version 0.

    Attributes:
        stored: The tensor in version 0, on disk.
        selection: Which of its elements are held.
    """

    stored: StoredTensor
    selection: Selection

    def whole(self, values: Bits) -> Bits:
        """The tensor, given the elements that are held."""
        bits = self.stored.read()
        self.selection.scatter(values, bits.reshape(-1))
        return bits

    def held(self, name: str, bits: Bits) -> Bits:
        """The elements that are to be held of a tensor.

        Raises:
            SyncError: Others are not those of version 0.
        """
        flat = np.ascontiguousarray(bits).reshape(-1)
        _, num_outside = self.selection.count_changes(self.stored.read().reshape(-1), flat)
        if num_outside:
            raise SyncError(
                f"{name}: {plural(num_outside, 'element')} changed that the mask does not select: "
                "give the mask that was trained, or publish without one"
            )
        return self.selection.gather(flat)


class HeldTensor(NamedTuple):
    """A tensor in memory: given bits, and changes that are applied when it is read.

    Attributes:
        name: Its name.
        dtype: Its dtype.
        bits: Its bits, in its shape, or those of a part, before the changes.
        changes: In the order in which they are applied.
        back: Whether they are undone instead.
        part: Which elements `bits` has; None for all.
    """

    name: str
    dtype: DType
    bits: Bits
    changes: tuple[Changes, ...] = ()
    back: bool = False
    part: Part | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.bits.shape if self.part is None else self.part.stored.shape

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return prod(self.shape) * self.dtype.num_bytes

    def read(self) -> Bits:
        """Its bits after the changes; not to be written to."""
        bits = self.bits
        if any(changes.places.size for changes in self.changes):
            bits = bits.copy()
            for changes in self.changes:
                apply_changes(bits.reshape(-1), changes, self.dtype, back=self.back)
        return bits if self.part is None else self.part.whole(bits)


class Snapshot:
    """A copy of all tensors of a version; it moves to the next one by what changed.

    Args:
        tensors: Name, dtype and bits of each, which are copied.
        depth: So many versions back can be read: their changes stay in memory.
        parts: Name -> the elements that are copied of a tensor, if not all.

    Raises:
        SyncError: Other elements are not those of version 0.
    """

    def __init__(
        self,
        tensors: Iterable[tuple[str, DType, Bits]],
        depth: int,
        parts: Mapping[str, Part] = MappingProxyType({}),
    ) -> None:
        self._bits: dict[str, Bits] = {}
        self._dtypes: dict[str, DType] = {}
        self._parts = parts
        for name, dtype, bits in tensors:
            self._dtypes[name] = dtype
            self._bits[name] = self._held(name, bits) if name in parts else np.array(bits)
        self._history: deque[AllChanges] = deque(maxlen=depth)

    @property
    def depth(self) -> int:
        """How many versions back can be read now."""
        return len(self._history)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.num_bytes for tensor in self.before().values())

    def check(self, source: Source) -> None:
        """Refuse tensors that are others than these.

        Raises:
            SyncError: The names, dtypes or shapes differ; the message names a tensor.
        """
        was = {name: (held.dtype.name, held.shape) for name, held in self.before().items()}
        now = {name: (tensor.dtype.name, tensor.shape) for name, tensor in source.tensors.items()}
        for name in {**was, **now}:
            if was.get(name) != now.get(name):
                raise SyncError(
                    f"{name}: expected {_described(was.get(name))} as in the versions before, "
                    f"found {_described(now.get(name))}: publish another model to another place"
                )

    def changes_to(self, source: Source, threads: int | None) -> AllChanges:
        """What changed since this version, in each tensor of a source.

        Raises:
            SyncError: Elements that are not held changed.
        """

        def changes(tensor: TunedTensor) -> Changes:
            part = self._parts.get(tensor.name)
            if part is not None and tensor.name in source.trained_by_mask:
                bits = part.selection.gather(np.ascontiguousarray(tensor.read()).reshape(-1))
            else:
                bits = self._held(tensor.name, tensor.read())
            return find_changes(self._bits[tensor.name], bits, tensor.dtype)

        with Workers(threads) as workers:
            found = workers.in_order(
                source.tensors.values(),
                changes,
                lambda tensor: tensor.num_bytes // 8,
            )
            return dict(zip(source.tensors, found, strict=True))

    def advance(self, changes: AllChanges) -> None:
        """Become the version that the changes make."""
        for name, each in changes.items():
            apply_changes(self._bits[name].reshape(-1), each, self._dtypes[name])
        self._history.append(changes)

    def forget(self) -> None:
        """Read no version back from here: what came before is none that was published last."""
        self._history.clear()

    def after(self, changes: AllChanges) -> dict[str, HeldTensor]:
        """The tensors of the version that the changes make."""
        return {
            name: HeldTensor(
                name, self._dtypes[name], bits, (changes[name],), part=self._parts.get(name)
            )
            for name, bits in self._bits.items()
        }

    def before(self, num: int = 0) -> dict[str, HeldTensor]:
        """The tensors of this version, or of one so many versions before."""
        undone = [*reversed(self._history)][:num]
        return {
            name: HeldTensor(
                name=name,
                dtype=self._dtypes[name],
                bits=bits,
                changes=tuple(each[name] for each in undone),
                back=True,
                part=self._parts.get(name),
            )
            for name, bits in self._bits.items()
        }

    def _held(self, name: str, bits: Bits) -> Bits:
        part = self._parts.get(name)
        return bits if part is None else part.held(name, bits)


def frozen(source: Source) -> Source:
    """A source without its tensors, of which the files beside the weights are read."""
    contents = {name: read() for name, read in source.others.items()}
    others: dict[str, Callable[[], bytes]] = {
        name: partial(bytes, content) for name, content in contents.items()
    }
    return replace(source, tensors={}, others=others)


def _described(what: tuple[str, tuple[int, ...]] | None) -> str:
    return "none" if what is None else f"{what[0]} {list(what[1])}"
