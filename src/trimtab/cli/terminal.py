"""The one place that prints: what a verb, click, rich or a library says goes through a guard."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, cast

import click

from trimtab.escaping import GuardedStream

__all__ = ["guarded", "say"]


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
    """Put a guard in front of stdout and stderr for as long as the block runs."""
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
