"""The weights of one checkpoint, read for a mask: flat, in C order, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from trimtab.checkpoints import Checkpoint, StoredTensor
from trimtab.checkpoints.stream import Digests, Progress, Reading
from trimtab.elements.dtypes import Bits

__all__ = ["CHUNK_ELEMENTS", "elements_of", "read_weights"]

CHUNK_ELEMENTS = 1 << 20
"""Elements that `elements_of` gives at once; a multiple of 8."""

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class _Weights:
    """One tensor, as a task of `trimtab.checkpoints.stream`."""

    stored: tuple[StoredTensor]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored[0].shape


def read_weights(
    base: Checkpoint,
    names: Iterable[str],
    task: Callable[[StoredTensor, Iterator[tuple[int, Bits]]], Result],
    *,
    num_passes: int = 1,
    progress: Progress | None = None,
) -> tuple[dict[str, Result], dict[str, str]]:
    """Read tensors of a checkpoint once, on several threads.

    Args:
        base: An open checkpoint.
        names: Of its tensors.
        task: Given a tensor, and its elements as pairs of a position, which is a multiple of 8, and
            the elements from there on, valid until the next; called in any thread.
        num_passes: How often the tensors are read in all, if others read them again.
        progress: Called after each chunk, from any thread.

    Returns:
        Name -> what the task returned, and name -> xxh3-128 of the stored bytes.
    """
    items = {name: _Weights((base.tensors[name],)) for name in names}
    if not items:
        return {}, {}
    reading = Reading(
        list(items.values()), (), threads=None, progress=progress, num_passes=num_passes
    )

    def one(item: _Weights) -> tuple[Result, Digests]:
        (tensor,) = item.stored
        (source,) = reading.sources(item.stored, tensor.dtype)
        tiles = reading.chunks(item.stored, (tensor.num_elements,))
        result = task(tensor, ((tile.column, source.read(tile).ravel()) for tile in tiles))
        return result, (source.finish(),)

    results, (digests,) = reading.run(one)
    return {name: results[item] for name, item in items.items()}, digests


def elements_of(tensor: StoredTensor, start: int = 0, stop: int | None = None) -> Iterator[Bits]:
    """A tensor's elements, `CHUNK_ELEMENTS` at a time, each a new array.

    Args:
        tensor: The tensor.
        start: First element.
        stop: Element after the last; by default all are read.
    """
    stop = tensor.num_elements if stop is None else stop
    for at in range(start, stop, CHUNK_ELEMENTS):
        bits: Bits = np.empty(min(CHUNK_ELEMENTS, stop - at), dtype=tensor.dtype.bits)
        tensor.read_into(at * tensor.dtype.num_bytes, bits.view(np.uint8))
        yield bits
