"""Two ways to run a command of trimtab for a paper, its talk going to a log."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from trimtab.processes import Terminated, start_trimtab


def in_its_own_process(arguments: Sequence[str], log: Path) -> int:
    """Run it where it can take no other with it, and leaves no memory behind."""
    with log.open("ab") as file, start_trimtab(arguments, file) as process:
        _running.append(process)
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()  # it was told, too, and keeps the step that it finishes now
            raise
        finally:
            _running.remove(process)


_running: list[subprocess.Popen[bytes]] = []


def ask_to_stop() -> None:
    """Ask the processes of commands that run now to stop."""
    for process in _running:
        process.terminate()


def in_this_process(arguments: Sequence[str], log: Path) -> int:
    """Run it here: what it imports is there already."""
    from trimtab.cli import main

    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code
    if code in (130, 143):
        raise Terminated if code == 143 else KeyboardInterrupt
    return code if isinstance(code, int) else 0
