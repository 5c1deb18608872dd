"""Child processes of trimtab, and signals that ask a process to end.

A child ends with its parent, however that ends: it reads from a pipe that the parent keeps open and
never writes to, and treats end of file as SIGTERM. No training outlives the command unnoticed.
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
"""Environment variable that marks a child."""

_parents: list[Thread] = []
"""In a child, the thread that waits for the end of the parent."""


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop and can be resumed; the message says how, after a colon."""


class Terminated(KeyboardInterrupt):
    """SIGTERM; handled like Ctrl-C but with its own exit code."""


def start_trimtab(
    arguments: Sequence[str],
    log: IO[bytes],
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a trimtab command that ends with this process and that Ctrl-C does not reach.

    Args:
        arguments: Arguments of `trimtab`.
        log: File for stdout and stderr.
        environment: Environment of the child; by default that of this process.
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
    """Treat the end of the parent as SIGTERM, if `start_trimtab` started this process."""
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
