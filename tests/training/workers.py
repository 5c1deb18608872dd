"""Processes that are forks of one that has loaded torch and TRL, which takes seconds each time."""

from __future__ import annotations

import datetime
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes


def run_workers(run: Callable[..., None], *arguments: Any, num: int, loads: str) -> None:
    """Call `run(rank, *arguments)` in several processes at a time, and wait for their end.

    Args:
        run: A function of a module.
        arguments: Further arguments of it.
        num: Number of processes.
        loads: A module that the server loads before the module of `run`.
    """
    multiprocessing.set_forkserver_preload([loads, run.__module__])
    start_processes(run, arguments, nprocs=num, start_method="forkserver")  # type: ignore[no-untyped-call]


@contextmanager
def process_group(rank: int, world: int, meeting: Path) -> Iterator[None]:
    """The processes of a test as a group of torch.distributed, which meet at a file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    yield
    dist.destroy_process_group()


SWEEP = "TRIMTAB_TEST_SWEEP"
"""Environment variable of a `Cell`: the process that started it, which is not its parent."""


class Cell:
    """A `trimtab` command in place of that of `trimtab.processes.start_trimtab`.

    It has the methods of `subprocess.Popen` that a sweep calls, but does not end with its parent.
    """

    def __init__(
        self, arguments: Sequence[str], log: IO[bytes], environment: Mapping[str, str]
    ) -> None:
        multiprocessing.set_forkserver_preload(
            ["trl.trainer.grpo_trainer", "trl.trainer.sft_trainer", __name__]
        )
        process = multiprocessing.get_context("forkserver").Process(
            target=_call, args=(arguments, log.name, {**environment, SWEEP: str(os.getpid())})
        )
        process.start()
        self.poll = lambda: process.exitcode
        self.terminate, self.kill = process.terminate, process.kill
        self.process = process

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def __enter__(self) -> Cell:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.join()


def _call(arguments: Sequence[str], log: str, environment: Mapping[str, str]) -> None:
    from trimtab.cli import main

    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    main(arguments)
