"""The weights of one checkpoint: read flat, in C order, some at a time; and written again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from trimtab.checkpoints import Checkpoint, StoredTensor
from trimtab.checkpoints.align import Aligned, alone
from trimtab.checkpoints.stream import Progress, Reader, stream
from trimtab.elements.dtypes import Bits

__all__ = ["CHUNK_ELEMENTS", "elements_of", "read_weights"]

CHUNK_ELEMENTS = 1 << 20
"""Elements that `elements_of` gives at once; a multiple of 8."""

Result = TypeVar("Result")


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
    alignment = alone(base, names)
    if not alignment.items:
        return {}, {}

    def one(item: Aligned, reader: Reader) -> Result:
        (tensor,), (source,) = item.stored, reader.sources
        tiles = reader.chunks((tensor.num_elements,))
        return task(tensor, ((tile.column, source.read(tile).ravel()) for tile in tiles))

    done = stream(alignment, one, progress=progress, num_passes=num_passes)
    return {item.name: done.results[item] for item in done.results}, dict(done.hashes[0])


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
