"""A process of its own for a measurement, and what it asks the kernel about its memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

__all__ = [
    "counted_threads",
    "in_own_process",
    "peak_resident",
    "reset_peak",
    "resident_after_trim",
]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def in_own_process(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Call a function in a fresh process that ends with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *args, **kwargs).result()


def resident_after_trim() -> int:
    """Resident bytes, once the allocator has given back what it holds but does not use."""
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def reset_peak() -> None:
    """Make the kernel forget the highest resident size of this process so far."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int:
    """Highest resident bytes since then, mapped pages included."""
    return _status("VmHWM")


@contextmanager
def counted_threads(seconds: float = 0.03) -> Iterator[list[int]]:
    """Count, again and again while the block runs, the threads of this process that have work.

    They run or wait for a processor or a disk: how many there are hardly depends on what else the
    machine does.
    """
    counts: list[int] = []
    ended = threading.Event()

    def count() -> None:
        own = threading.get_native_id()
        while not ended.wait(seconds):
            states = []
            for task in Path("/proc/self/task").iterdir():
                with suppress(OSError):  # it has ended
                    if int(task.name) != own:
                        states.append((task / "stat").read_text().rpartition(") ")[2][0])
            counts.append(sum(state in "RD" for state in states))

    counter = threading.Thread(target=count)
    counter.start()
    try:
        yield counts
    finally:
        ended.set()
        counter.join()


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this kernel does not tell {key}")
