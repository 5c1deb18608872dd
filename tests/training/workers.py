"""Processes that train together, each a fork of one process that has loaded the libraries."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.multiprocessing.spawn import start_processes


def run_workers(run: Callable[..., None], *arguments: Any, num: int, loads: str) -> None:
    """Call `run(rank, *arguments)` in several processes at a time, and wait for their end.

    Loading torch takes a process seconds of processor time. A server loads it once, and forks.

    Args:
        run: A function of a module.
        arguments: Further arguments of it.
        num: Number of processes.
        loads: A module that the server loads before the module of `run`.
    """
    multiprocessing.set_forkserver_preload([loads, run.__module__])
    start_processes(run, arguments, nprocs=num, start_method="forkserver")  # type: ignore[no-untyped-call]
