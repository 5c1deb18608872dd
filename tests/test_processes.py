"""Signals that ask to stop, and children that end with their parent, with real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.measure.checkpoints import llama_tensors, moved, save
from trimtab.cli.terminal import stop_asked, termination_interrupts
from trimtab.processes import Terminated


@contextmanager
def handler(number: signal.Signals, one: object) -> Iterator[None]:
    before = signal.signal(number, one)  # type: ignore[arg-type]
    try:
        yield
    finally:
        assert signal.signal(number, before) is one  # what the block found it left


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_sigterm_is_an_interrupt_of_its_own_name() -> None:
    with (
        handler(signal.SIGTERM, signal.SIG_DFL),
        pytest.raises(Terminated),
        termination_interrupts(),
    ):
        send(signal.SIGTERM)


def test_both_are_a_wish_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    with stop_asked("saving") as stop:
        assert not stop()
        send(signal.SIGTERM)
        assert stop()
        send(signal.SIGTERM)  # Slurm sends it to each process of a job, and so does a sweep
    assert capsys.readouterr().err == "trimtab: saving; Ctrl-C to stop now\n"

    def stopped(*numbers: signal.Signals, ends: bool = False) -> None:
        with stop_asked("saving") as stop:
            for number in numbers:
                send(number)
            assert stop()
            if ends:
                raise KeyboardInterrupt("from step 3")

    stopped(signal.SIGINT, signal.SIGTERM)
    assert capsys.readouterr().err == "trimtab: saving; Ctrl-C again to stop now\n"
    with pytest.raises(Terminated, match="from step 3"):
        stopped(signal.SIGTERM, ends=True)
    with pytest.raises(KeyboardInterrupt, match="from step 3") as error:
        stopped(signal.SIGINT, ends=True)
    assert not isinstance(error.value, Terminated)
    for first in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt):
            stopped(first, signal.SIGINT)


def test_what_the_shell_has_ignored_stays_ignored() -> None:
    """A shell without job control starts `command &` with SIGINT ignored."""
    with handler(signal.SIGINT, signal.SIG_IGN), stop_asked("saving") as stop:
        send(signal.SIGINT)
        assert not stop()
        send(signal.SIGTERM)
        assert stop()


PARENT = """
import sys, time
from trimtab.processes import start_trimtab
child = start_trimtab(sys.argv[1:], sys.stdout.buffer)
print("started", flush=True)
child.wait()
"""


@pytest.fixture
def endless(tmp_path: Path) -> list[str]:
    """A command that waits for a reader that never comes."""
    base = llama_tensors()
    pair = save(tmp_path / "base", base), save(tmp_path / "tuned", moved(base))
    os.mkfifo(tmp_path / "fifo")
    return ["mask", "extract", *map(str, pair), "-o", str(tmp_path / "fifo")]


def test_a_child_ends_with_its_parent_however_that_ends(endless: list[str]) -> None:
    command = [sys.executable, "-c", PARENT, *endless]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        parent.kill()
        output = parent.stdout.read()  # ends when the child has ended, too
    assert output.decode().strip() == "trimtab: terminated"
