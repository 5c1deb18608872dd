"""What a command prints, and the signals that it handles.

Everything printed, by a verb, click, rich or a library, goes through a guard that escapes control
characters. SIGTERM (from Slurm, `timeout` or `kill`) is handled like Ctrl-C: incomplete files are
removed, and finished steps are saved.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, TextIO, cast

import click

from trimtab.escaping import GuardedStream
from trimtab.processes import Terminated

Handler = Callable[[int, FrameType | None], Any]


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a text; the guard escapes its control characters and bidi marks.

    Args:
        text: Any text.
        err: Print it to stderr, for messages that are not the result.
        nl: End it with a newline.
    """
    click.echo(text, err=err, nl=nl)


@contextmanager
def guarded() -> Iterator[None]:
    """Put a guard in front of stdout and stderr while the block runs."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_guard, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _guard(stream: TextIO | None) -> TextIO:
    if stream is None or isinstance(stream, GuardedStream):
        return cast(TextIO, stream)
    return cast(TextIO, GuardedStream(stream))


@contextmanager
def stop_asked(notice: str) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed or SIGTERM received; a second Ctrl-C ends the program at once.

    Further SIGTERMs are ignored: a job scheduler may send several to one process.

    Args:
        notice: Printed at the first signal.

    Raises:
        Terminated: The block was interrupted after a SIGTERM.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not received:
            received.append(number)
            again = " again" if number == signal.SIGINT else ""
            with suppress(OSError, RuntimeError):  # the terminal is gone, or a line is half written
                say(f"trimtab: {notice}; Ctrl-C{again} to stop now", err=True)

    try:
        with _handled(handle, signal.SIGINT, signal.SIGTERM):
            yield lambda: bool(received)
    except KeyboardInterrupt as error:
        if received[:1] == [signal.SIGTERM] and not isinstance(error, Terminated):
            raise Terminated(*error.args) from None
        raise


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Raise `Terminated` at a SIGTERM while the block runs."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Terminated

    with _handled(interrupt, signal.SIGTERM):
        yield


@contextmanager
def _handled(handler: Handler, *signals: signal.Signals) -> Iterator[None]:
    """Handle signals while the block runs; ignored ones (a shell's `&` ignores some) stay so."""
    with ExitStack() as stack:
        for number in signals:
            if current_thread() is main_thread() and signal.getsignal(number) != signal.SIG_IGN:
                stack.callback(signal.signal, number, signal.signal(number, handler))
        yield
