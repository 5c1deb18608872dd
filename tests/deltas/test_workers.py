"""Threads that make and apply deltas: order, bounds, and that large items leave none idle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from threading import Barrier, Lock
from time import sleep

import pytest

from trimtab.deltas import workers as module
from trimtab.deltas.workers import Workers

WAIT = 60
"""Seconds after which a thread that should have come is taken for missing."""


class Counter:
    """How many are in a block at once, and how many were at most."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._now = self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._now -= 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_come_in_order_and_no_more_threads_compute_than_asked_for(threads: int) -> None:
    computing = Counter()

    def part(number: int) -> int:
        with computing:
            sleep(0.001)
            return number

    with Workers(threads) as workers:

        def task(item: int) -> list[int]:
            part(0)
            return list(workers.map(part, range(item % 5)))

        results = list(workers.in_order(range(100), task))
    assert results == [list(range(item % 5)) for item in range(100)]
    assert computing.most <= threads


def test_the_parts_of_one_item_are_shared_out() -> None:
    both = Barrier(2, timeout=WAIT)
    with Workers(2) as workers:
        found = workers.in_order(
            [4], lambda num: list(workers.map(lambda _: both.wait(), range(num)))
        )
        assert sorted(next(found)) == [0, 0, 1, 1]


def test_an_item_is_coded_beside_the_one_before() -> None:
    both = Barrier(2, timeout=WAIT)
    with Workers(2) as workers:
        assert sorted(workers.in_order(range(2), lambda _: both.wait())) == [0, 1]


@pytest.mark.parametrize(("size", "most"), [(0, 20), (module.HELD_BYTES, 2), (1 << 40, 1)])
def test_few_results_wait(size: int, most: int) -> None:
    """As many as fit the bytes, or one; of small ones, a number."""
    started: list[int] = []

    def items() -> Iterator[int]:
        for number in range(50):
            started.append(number)
            yield number

    with Workers(2) as workers:
        for number, _ in enumerate(workers.in_order(items(), str, lambda _: size)):
            assert len(started) - number - 1 <= most


@pytest.mark.parametrize("fails", ["item", "part", "consumer"])
def test_an_error_ends_everything(fails: str) -> None:
    before = threading.active_count()

    def task(
        item: int, parts: Callable[[Callable[[int], int], Iterable[int]], Iterator[int]]
    ) -> int:
        if fails == "item" and item == 3:
            raise ValueError
        return sum(parts(lambda part: 1 // (4 - part if fails == "part" else 1), range(6)))

    with pytest.raises((ValueError, ZeroDivisionError)), Workers(2) as workers:
        for _ in workers.in_order(range(100), lambda item: task(item, workers.map)):
            if fails == "consumer":
                raise ValueError
    assert threading.active_count() == before
