"""What a command says, and the signals that it hears.

Everything printed, by a verb, click, rich or a library, goes through a guard that escapes control
characters. SIGTERM is what Slurm, `timeout` and `kill` send; it is taken as Ctrl-C is, so that work
ends in order: files that are not whole are removed, and steps are kept where they can be.
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
    """Print a text, whose control characters and bidi marks the guard escapes.

    Args:
        text: Any text, in the styles of our own tables.
        err: Print it to stderr: what is said about the work, not its result.
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
    """Whether Ctrl-C was pressed or SIGTERM came; another Ctrl-C ends the program at once.

    More SIGTERMs change nothing: who sends one to all processes of a job sends several to some.

    Args:
        notice: What to say at the first.

    Raises:
        Terminated: The block was interrupted because SIGTERM had come.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked:
            asked.append(number)
            again = " again" if number == signal.SIGINT else ""
            with suppress(OSError, RuntimeError):  # a terminal that is gone, a line half written
                say(f"trimtab: {notice}; Ctrl-C{again} to stop now", err=True)

    try:
        with _handled(ask, signal.SIGINT, signal.SIGTERM):
            yield lambda: bool(asked)
    except KeyboardInterrupt as error:
        if asked[:1] == [signal.SIGTERM] and not isinstance(error, Terminated):
            raise Terminated(*error.args) from None
        raise


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """SIGTERM as an interrupt, so that work ends in order."""

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
