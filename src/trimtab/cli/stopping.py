"""Ctrl-C as a wish to stop, for work that can go on later."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from trimtab.cli.terminal import say

__all__ = ["stop_asked", "termination_interrupts"]


@contextmanager
def stop_asked(notice: str) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; a second one ends the program at once.

    Args:
        notice: What to say at the first.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)
        say(f"trimtab: {notice}; Ctrl-C again to stop now", err=True)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """SIGTERM as a second Ctrl-C, so that what has begun other processes can end them."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
