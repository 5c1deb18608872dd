"""One pass over several checkpoints: every tensor is read once, on several threads.

What belongs together is one task, read in chunks from first byte to last by one thread. So sums are
added in a fixed order whatever the number of threads, and memory is a few buffers per thread
however large the checkpoints are.

Bytes are read once, in order, into a buffer that is used again for every chunk; they are hashed as
stored, and then become elements: the hash is of the file's own bytes whatever is done to them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from trimtab.checkpoints.align import num_columns, num_rows
from trimtab.checkpoints.names import Rectangle
from trimtab.checkpoints.quantized import BlockScale, dequantize_blocks
from trimtab.checkpoints.tensors import Counterparts, StoredTensor
from trimtab.elements.dtypes import Bits, DType

__all__ = [
    "Chunk",
    "Digests",
    "Progress",
    "Reading",
    "Source",
    "chunks_of",
    "new_buffer",
    "overlaps",
]

CHUNK_ELEMENTS = 1 << 19
"""Elements read at once: 1 MB of bf16, so that both sides and what is packed stay in the cache."""


@dataclass(frozen=True)
class Chunk:
    """A rectangle of a tensor's 2-D view that is contiguous in the file."""

    row: int
    num_rows: int
    column: int
    num_columns: int


def chunks_of(shape: tuple[int, ...]) -> Iterator[Chunk]:
    """Tile a tensor, in order, with whole rows or, where a row is too long, pieces of one."""
    rows, columns = num_rows(shape), num_columns(shape)
    if rows == 0 or columns == 0:
        return
    if columns > CHUNK_ELEMENTS:
        for row in range(rows):
            for column in range(0, columns, CHUNK_ELEMENTS):
                yield Chunk(row, 1, column, min(CHUNK_ELEMENTS, columns - column))
        return
    height = CHUNK_ELEMENTS // columns
    for row in range(0, rows, height):
        yield Chunk(row, min(height, rows - row), 0, columns)


def overlaps(
    rectangles: Iterable[Rectangle], chunk: Chunk
) -> Iterator[tuple[tuple[slice, slice], int, int]]:
    """Where a part of a tensor lies in a chunk.

    Args:
        rectangles: Of the part, one below the other in the part's own 2-D view.
        chunk: Of the tensor.

    Yields:
        Slices of the chunk, and the row and the column of the part at which they start.
    """
    row_of_part = 0
    for r in rectangles:
        top = max(r.row_start, chunk.row)
        bottom = min(r.row_stop, chunk.row + chunk.num_rows)
        left = max(r.column_start, chunk.column)
        right = min(r.column_stop, chunk.column + chunk.num_columns)
        if top < bottom and left < right:
            rows = slice(top - chunk.row, bottom - chunk.row)
            columns = slice(left - chunk.column, right - chunk.column)
            yield (rows, columns), row_of_part + top - r.row_start, left - r.column_start
        row_of_part += r.row_stop - r.row_start


class Source:
    """One stored tensor, read from its first byte to its last."""

    def __init__(
        self,
        tensor: StoredTensor,
        dtype: DType,
        scale: BlockScale | None,
        buffer: NDArray[np.uint8],
    ) -> None:
        """Prepare to read.

        Args:
            tensor: What to read.
            dtype: In which `read` returns elements; others than the stored one are rounded.
            scale: Scales to multiply in, or None; then every chunk is of the tensor's 2-D view.
            buffer: Bytes for `CHUNK_ELEMENTS` elements of any dtype; the elements that `read`
                returns may lie in it.
        """
        self._tensor = tensor
        self._dtype = dtype
        self._buffer = buffer
        self._position = 0
        self._hasher = xxhash.xxh3_128()
        self._scales = None if scale is None else scale.read()

    def read(self, chunk: Chunk) -> Bits:
        """Elements of the next chunk, shape `[rows, columns]`, valid until the next call."""
        stored = self._next(chunk.num_rows * chunk.num_columns)
        bits: Bits = stored.view(self._tensor.dtype.bits)
        bits = bits.reshape(chunk.num_rows, chunk.num_columns)
        if self._scales is not None:
            scales, block = self._scales
            columns = chunk.column, num_columns(self._tensor.shape)
            values: NDArray[Any] = dequantize_blocks(
                bits, self._tensor.dtype, scales, chunk.row, block, columns
            )
        elif self._tensor.dtype == self._dtype:
            return bits
        else:
            values = self._tensor.dtype.decode(bits)
        return self._dtype.encode(values)

    def finish(self) -> str:
        """Hash what was not read yet, and return the xxh3-128 of all bytes, in hexadecimal."""
        while (left := self._tensor.num_bytes - self._position) > 0:
            self._next(min(left // self._tensor.dtype.num_bytes, CHUNK_ELEMENTS))
        return self._hasher.hexdigest()

    def _next(self, num_elements: int) -> NDArray[np.uint8]:
        stored = self._buffer[: num_elements * self._tensor.dtype.num_bytes]
        self._tensor.read_into(self._position, stored)
        self._position += len(stored)
        self._hasher.update(stored.data)
        return stored


def new_buffer() -> NDArray[np.uint8]:
    """A buffer for one `Source`."""
    return np.empty(CHUNK_ELEMENTS * 8, dtype=np.uint8)


Progress = Callable[[int, int], None]
"""Called with bytes read since the last call, and bytes to read in all.

Where matrices are decomposed, that counts as the bytes that take about as long to read.
"""

Digests = tuple[str, ...]
"""xxh3-128 of each of some counterparts."""

Item = TypeVar("Item", bound=Counterparts)
Result = TypeVar("Result")


class _StoppedError(Exception):
    """Ends a task for whose result nobody waits any more."""


class _Buffers(threading.local):
    """What a thread keeps from task to task."""

    def __init__(self, num_buffers: int) -> None:
        self.buffers = tuple(new_buffer() for _ in range(num_buffers))


class Reading(Generic[Item]):
    """The threads of one pass, and what its tasks share.

    Attributes:
        num_threads: Tasks at a time.
    """

    def __init__(
        self,
        items: Sequence[Item],
        apart: Sequence[tuple[int, StoredTensor]],
        *,
        threads: int | None,
        progress: Progress | None,
        num_passes: int = 1,
        more: int = 0,
        buffers: Sequence[int] | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            items: What each task reads; at least one.
            apart: Tensors to hash only, each after the place of its checkpoint.
            threads: Tasks at a time; by default the processors there are, at most 8.
            progress: Called after each chunk, from any thread.
            num_passes: How often the items are read in all, if others read them again.
            more: What others will report beside, in bytes that take as long to read.
            buffers: Which of a thread's buffers each checkpoint is read into, counted from 0, where
                not every checkpoint needs one of its own.
        """
        self.num_threads = threads or min(os.cpu_count() or 1, 8)
        self._items = items
        self._apart = apart
        self._progress = progress
        self._num_checkpoints = len(items[0].stored)
        num_bytes = sum([tensor.num_bytes for item in items for tensor in item.stored])
        self._num_bytes = num_passes * num_bytes
        self._num_bytes += more + sum(tensor.num_bytes for _, tensor in apart)
        self._buffer_of = range(self._num_checkpoints) if buffers is None else buffers
        self._of_thread = _Buffers(1 + max(self._buffer_of))
        self._stop = threading.Event()

    def run(
        self,
        task: Callable[[Item], tuple[Result, Digests]],
        *,
        order: Iterable[Item] | None = None,
    ) -> tuple[dict[Item, Result], tuple[dict[str, str], ...]]:
        """Read all, once.

        Args:
            task: Reads the tensors of an item by `sources` and `chunks`, in any thread; returns
                what it found, and what each source gave at its finish.
            order: The items in the order in which tasks are given to the threads, as they come; by
                default the largest first.

        Returns:
            What was found for each item, and for each checkpoint the hashes of its tensors by name.
        """
        executor = ThreadPoolExecutor(self.num_threads, thread_name_prefix="trimtab-read")
        try:
            # Large tensors first, so that no thread is left with one at the end.
            by_size = sorted(self._items, key=lambda it: it.stored[0].num_bytes, reverse=True)
            tasks = {item: executor.submit(task, item) for item in order or by_size}
            hashed = [executor.submit(self._hash, tensor) for _, tensor in self._apart]
            hashes: tuple[dict[str, str], ...] = tuple({} for _ in range(self._num_checkpoints))
            for (place, tensor), future in zip(self._apart, hashed, strict=True):
                hashes[place][tensor.name] = future.result()
            results = {}
            for item in self._items:
                results[item], digests = tasks[item].result()
                for of, tensor, digest in zip(hashes, item.stored, digests, strict=True):
                    of[tensor.name] = digest
        finally:
            # After an error or Ctrl-C the tasks under way end at their next chunk.
            self._stop.set()
            executor.shutdown(cancel_futures=True)
        return results, hashes

    def sources(
        self,
        stored: Sequence[StoredTensor],
        dtype: DType,
        scales: Sequence[BlockScale | None] | None = None,
    ) -> tuple[Source, ...]:
        """Tensors of the checkpoints, one of each, for the task that this thread is at.

        Args:
            stored: The tensors.
            dtype: In which their elements are read.
            scales: Scales to multiply in, for each of the tensors.
        """
        scales = (None,) * len(stored) if scales is None else scales
        buffers = self._of_thread.buffers
        each = zip(stored, scales, self._buffer_of, strict=True)
        return tuple([Source(tensor, dtype, scale, buffers[at]) for tensor, scale, at in each])

    def chunks(self, stored: Sequence[StoredTensor], shape: tuple[int, ...]) -> Iterator[Chunk]:
        """Tile what some tensors have in common, and tell the progress of reading them."""
        bytes_per_element = sum([tensor.dtype.num_bytes for tensor in stored])
        for chunk in chunks_of(shape):
            if self._stop.is_set():
                raise _StoppedError
            yield chunk
            self.report(chunk.num_rows * chunk.num_columns * bytes_per_element)

    def report(self, num_bytes: int) -> None:
        """Tell that so many bytes are done."""
        if self._progress is not None:
            self._progress(num_bytes, self._num_bytes)

    def _hash(self, tensor: StoredTensor) -> str:
        digest = Source(tensor, tensor.dtype, None, self._of_thread.buffers[0]).finish()
        self.report(tensor.num_bytes)
        return digest
