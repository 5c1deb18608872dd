"""Processes of trimtab that a process of trimtab starts, and signals that ask them to end.

A child ends with its parent, whatever ends that: it reads from a pipe that the parent holds open
and never writes to, and takes its end as a SIGTERM. So nothing goes on training unseen, on any
system that has pipes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from threading import Thread
from typing import IO

IS_CHILD = "TRIMTAB_ENDS_WITH_ITS_INPUT"
"""In the environment of a child."""

_parents: list[Thread] = []
"""What waits for the end of the parent, in a child."""


class Interrupted(KeyboardInterrupt):
    """Work was asked to stop and can go on; its message says how, in words to follow a colon."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is taken as Ctrl-C is, and told apart by its exit code."""


def start_trimtab(
    arguments: Sequence[str],
    log: IO[bytes],
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command of trimtab that ends with this process, and that Ctrl-C does not reach.

    Args:
        arguments: Of `trimtab`.
        log: Where its talk goes.
        environment: In place of that of this process.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "trimtab", *arguments],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**(os.environ if environment is None else environment), IS_CHILD: "1"},
        start_new_session=True,
    )


def end_with_parent() -> None:
    """Take the end of the parent as a SIGTERM, if this process was started by `start_trimtab`."""
    if os.environ.pop(IS_CHILD, None) is not None:
        _parents.append(Thread(target=_await_end, daemon=True))
        _parents[0].start()


def is_child() -> bool:
    """Whether this process ends with its parent."""
    return bool(_parents)


def _await_end() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
