"""Read several checkpoints in one pass: every tensor once, on several threads.

The tensors of one name are one task, read in chunks from first byte to last by one thread. So sums
are added in a fixed order for any number of threads, and memory is a few buffers per thread for any
size of checkpoint. Bytes are hashed as stored, before they are converted to elements.
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

from trimtab.checkpoints.align import Aligned, Alignment, num_columns, num_rows, without_tied_copies
from trimtab.checkpoints.names import Rectangle
from trimtab.checkpoints.quantized import BlockScale, dequantize_blocks
from trimtab.checkpoints.tensors import Hashes, StoredTensor
from trimtab.elements.dtypes import Bits, DType

CHUNK_ELEMENTS = 1 << 19
"""Elements read at once: 1 MB of bf16, so that both sides and packed changes stay in cache."""


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
    """Where a part of a tensor overlaps a chunk.

    Args:
        rectangles: Of the part, stacked in the part's own 2-D view.
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
            tensor: The tensor to read.
            dtype: Dtype of the elements that `read` returns; other stored dtypes are rounded to it.
            scale: Scales to multiply in, or None; with scales, chunks must be of the tensor's 2-D
                view.
            buffer: Bytes for `CHUNK_ELEMENTS` elements of any dtype; the result of `read` may be a
                view.
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
        """Hash the bytes not read yet, and return the xxh3-128 of all bytes, in hexadecimal."""
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
"""Called with the bytes read since the last call, and the total.

Other work counts as the bytes that take about as long to read.
"""

Item = TypeVar("Item")
Result = TypeVar("Result")


class _StoppedError(Exception):
    """Ends a task whose result is no longer needed."""


class Reader:
    """Reads the tensors of an item, for the thread of its task.

    Attributes:
        sources: One for each checkpoint, base first.
    """

    def __init__(
        self,
        item: Aligned,
        sources: tuple[Source, ...],
        stop: threading.Event,
        report: Callable[[int], None],
    ) -> None:
        self.sources = sources
        self._item = item
        self._stop = stop
        self._report = report

    def chunks(self, shape: tuple[int, ...] | None = None) -> Iterator[Chunk]:
        """Tile what the tensors have in common, and report the progress of reading it.

        Args:
            shape: Another shape with the same number of elements to tile; by default the item's
                own.
        """
        bytes_per_element = sum([tensor.dtype.num_bytes for tensor in self._item.stored])
        for chunk in chunks_of(self._item.shape if shape is None else shape):
            if self._stop.is_set():
                raise _StoppedError
            yield chunk
            self._report(chunk.num_rows * chunk.num_columns * bytes_per_element)

    def read(self, chunk: Chunk) -> tuple[Bits, ...]:
        """Elements of the next chunk in each checkpoint, valid until the next call."""
        return tuple([source.read(chunk) for source in self.sources])


@dataclass(frozen=True, eq=False)
class Streamed(Generic[Result]):
    """The result of one pass.

    Attributes:
        results: Item -> what the task returned.
        items: The items that count, in base's order.
        tied: Each item that only repeats another one, with that one.
        hashes: For each checkpoint, name -> xxh3-128 of every stored tensor.
        conversion: Description of how elements were converted, or None.
        num_threads: Number of tasks at a time.
        report: To be called with the bytes that were announced as `more`.
    """

    results: dict[Aligned, Result]
    items: list[Aligned]
    tied: list[tuple[Aligned, Aligned]]
    hashes: Hashes
    conversion: str | None
    num_threads: int
    report: Callable[[int], None]


def stream(
    alignment: Alignment,
    task: Callable[[Aligned, Reader], Result],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    num_passes: int = 1,
    more: int = 0,
    buffers: Sequence[int] | None = None,
    order: Iterable[Aligned] | None = None,
) -> Streamed[Result]:
    """Read all tensors of some checkpoints, once.

    Args:
        alignment: Of the checkpoints; tensors in no item are only hashed.
        task: Called with an item and its reader, in any thread; what it does not read is hashed
            anyway.
        threads: Tasks at a time; by default the number of processors, at most 8.
        progress: Called after each chunk, from any thread.
        num_passes: Total number of passes over the items, if others read them again.
        more: Additional work that others will report, in bytes that take as long to read.
        buffers: For each checkpoint, the index of the thread's buffer that it is read into; by
            default each has its own.
        order: The items in the order in which tasks start, consumed lazily; by default largest
            first.
    """
    items, apart = alignment.items, alignment.apart
    num_threads = threads or min(os.cpu_count() or 1, 8)
    num_bytes = num_passes * sum([tensor.num_bytes for item in items for tensor in item.stored])
    num_bytes += more + sum(tensor.num_bytes for _, tensor in apart)
    buffer_of = range(len(alignment.checkpoints)) if buffers is None else buffers
    stop = threading.Event()
    of_thread = threading.local()

    def buffer(number: int) -> NDArray[np.uint8]:
        """One of this thread's buffers, which it keeps from task to task."""
        if not hasattr(of_thread, "buffers"):
            of_thread.buffers = [new_buffer() for _ in range(1 + max(buffer_of))]
        array: NDArray[np.uint8] = of_thread.buffers[number]
        return array

    def report(num_bytes_done: int) -> None:
        if progress is not None:
            progress(num_bytes_done, num_bytes)

    def one(item: Aligned) -> tuple[Result, tuple[str, ...]]:
        each = zip(item.stored, item.scales, buffer_of, strict=True)
        sources = tuple([Source(t, item.dtype, scale, buffer(at)) for t, scale, at in each])
        result = task(item, Reader(item, sources, stop, report))
        return result, tuple([source.finish() for source in sources])

    def digest(tensor: StoredTensor) -> str:
        hexadecimal = Source(tensor, tensor.dtype, None, buffer(0)).finish()
        report(tensor.num_bytes)
        return hexadecimal

    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="trimtab-read")
    try:
        # Large tensors first, so that no thread still reads one at the end.
        by_size = sorted(items, key=lambda item: item.stored[0].num_bytes, reverse=True)
        tasks = {item: executor.submit(one, item) for item in order or by_size}
        hashed = [executor.submit(digest, tensor) for _, tensor in apart]
        hashes: tuple[dict[str, str], ...] = tuple({} for _ in alignment.checkpoints)
        for (index, tensor), future in zip(apart, hashed, strict=True):
            hashes[index][tensor.name] = future.result()
        results = {}
        for item in items:
            results[item], digests = tasks[item].result()
            for by_name, tensor, hexadecimal in zip(hashes, item.stored, digests, strict=True):
                by_name[tensor.name] = hexadecimal
    finally:
        # After an error or Ctrl-C running tasks end at their next chunk.
        stop.set()
        executor.shutdown(cancel_futures=True)
    distinct, tied = without_tied_copies(items, alignment.doubtful, hashes)
    conversion = alignment.conversion_given(hashes)
    return Streamed(results, distinct, tied, hashes, conversion, num_threads, report)
