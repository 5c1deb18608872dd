"""Ctrl-C and SIGTERM as a wish to stop.

SIGTERM is what Slurm, `timeout` and `kill` send. It is taken as Ctrl-C is, so that what was begun
is ended in order: files are removed that are not whole, steps are kept where they can be.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

from trimtab.cli.terminal import say
from trimtab.processes import Terminated

__all__ = ["stop_asked", "stop_told", "termination_interrupts"]


Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def _handled(number: signal.Signals, handler: Handler) -> Iterator[None]:
    """Handle a signal while the block runs; an ignored one (a shell's `&` does so) stays."""
    if current_thread() is not main_thread() or signal.getsignal(number) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


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
        with _handled(signal.SIGINT, ask), _handled(signal.SIGTERM, ask):
            yield lambda: bool(asked)
    except KeyboardInterrupt as error:
        if asked[:1] == [signal.SIGTERM] and not isinstance(error, Terminated):
            raise Terminated(*error.args) from None
        raise


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """SIGTERM as an interrupt, so that what was begun is ended in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Terminated

    with _handled(signal.SIGTERM, interrupt):
        yield


@contextmanager
def stop_told(tell: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM as interrupts that others are told of first: what others wait for.

    Args:
        tell: Tells them.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        tell()
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.enter_context(_handled(number, interrupt))
        yield
