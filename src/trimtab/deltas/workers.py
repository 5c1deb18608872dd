"""Threads that make and apply deltas, tensor by tensor and chunk by chunk."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self, TypeVar

from trimtab.errors import SettingsError

Item = TypeVar("Item")
Result = TypeVar("Result")

HELD_BYTES = 32 << 20
"""Results of `Workers.in_order` that wait for their turn take about so much for each thread."""

MOST_WAITING = 16
"""So many results wait at most, and two more for each thread."""


class Workers:
    """Threads that work on several items, and on parts of each, at the same time.

    Use it as a context manager. As many threads as were asked for compute at any time: a large item
    that was started first leaves none of them idle, since its parts are shared out. With one
    thread, everything is computed where it is asked for.

    Args:
        threads: How many; by default one for each core.

    Raises:
        SettingsError: They are fewer than one.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise SettingsError(f"threads is {threads}, expected 1 or more")
        self.threads = threads or os.cpu_count() or 1
        self._items = ThreadPoolExecutor(self.threads)
        self._parts = ThreadPoolExecutor(self.threads)
        self._free = threading.BoundedSemaphore(self.threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for pool in (self._parts, self._items):  # items that wait for parts end with these
            pool.shutdown(cancel_futures=True)

    def in_order(
        self,
        items: Iterable[Item],
        task: Callable[[Item], Result],
        size: Callable[[Item], int] = lambda item: 0,
    ) -> Iterator[Result]:
        """Results of a task, in the order of its items; few are in memory at a time.

        Args:
            items: What there is to do.
            task: Called with an item, in any thread.
            size: Bytes of the result of an item.
        """
        if self.threads == 1:
            yield from map(task, items)
            return
        pending: deque[tuple[Future[Result], int]] = deque()
        most = MOST_WAITING + 2 * self.threads
        held = 0
        for item in items:
            num = size(item)
            while pending and (held + num > HELD_BYTES * self.threads or len(pending) == most):
                future, num_done = pending.popleft()
                yield future.result()
                held -= num_done
            pending.append((self._items.submit(self._compute, task, item), num))
            held += num
        while pending:
            yield pending.popleft()[0].result()

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`map` for the parts of an item, called in its task: some of them at a time."""
        if self.threads == 1:
            yield from map(function, items)
            return
        pending: deque[Future[Result]] = deque()
        for item in items:
            if len(pending) == self.threads:
                yield self._await(pending.popleft())
            pending.append(self._parts.submit(self._compute, function, item))
        while pending:
            yield self._await(pending.popleft())

    def _compute(self, function: Callable[[Item], Result], item: Item) -> Result:
        with self._free:
            return function(item)

    def _await(self, part: Future[Result]) -> Result:
        """The result of a part; meanwhile another thread may compute."""
        self._free.release()
        try:
            return part.result()
        finally:
            self._free.acquire()
