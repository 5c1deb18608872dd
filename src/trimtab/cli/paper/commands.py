"""Two ways to run a command of trimtab for a paper, its talk going to a log."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

__all__ = ["in_its_own_process", "in_this_process"]


def in_its_own_process(arguments: Sequence[str], log: Path) -> int:
    """Run it where it can take no other with it, and leaves no memory behind."""
    command = [sys.executable, "-m", "trimtab", *arguments]
    with (
        log.open("ab") as file,
        subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process,
    ):
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()  # it heard Ctrl-C, too, and keeps the step that it finishes now
            raise


def in_this_process(arguments: Sequence[str], log: Path) -> int:
    """Run it here: what it imports is there already."""
    from trimtab.cli import main

    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code
    if code == 130:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0
