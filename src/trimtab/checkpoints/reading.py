"""One pass over several checkpoints: every tensor is read once, on several threads.

What belongs together is one task, read in chunks from first byte to last by one thread. So sums are
added in a fixed order whatever the number of threads, and memory is a few buffers per thread
however large the checkpoints are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from trimtab.checkpoints.quantized import BlockScale
from trimtab.checkpoints.sources import Chunk, Source, chunks_of, new_buffer
from trimtab.checkpoints.tensors import Counterparts, StoredTensor
from trimtab.elements.dtypes import DType

__all__ = ["Digests", "Progress", "Reading"]

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
