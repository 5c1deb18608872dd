"""Tensors coded side by side: small ones each in a thread, large ones with all threads inside."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")

LARGE_BYTES = 16 << 20
"""Tensors from this size on are coded one at a time, which bounds memory."""


def in_order(
    items: Iterable[Item],
    task: Callable[[Item, int], Done],
    size: Callable[[Item], int],
    threads: int | None = None,
) -> Iterator[Done]:
    """Results of a task, in the order of its items; few are in memory at a time.

    Args:
        items: What there is to do.
        task: Called with an item and the number of threads that it may use, in any thread.
        size: Bytes of an item.
        threads: Threads in all; by default one for each core.
    """
    threads = threads or os.cpu_count() or 1
    if threads == 1:
        yield from (task(item, 1) for item in items)
        return
    pending: deque[Future[Done]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            if size(item) >= LARGE_BYTES:
                while pending:
                    yield pending.popleft().result()
                yield task(item, threads)
                continue
            pending.append(pool.submit(task, item, 1))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
