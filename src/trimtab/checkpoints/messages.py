"""Wording shared by the errors of this package."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MADE_BY", "cure", "first_few"]

MAX_SHOWN = 5

MADE_BY = {
    "trimtab example": ("base", "tuned", "sub", "other", "run"),
    "trimtab demo": ("demo",),
}
"""Command -> first parts of the paths of checkpoints that it makes, and that the pages name."""


def cure(ref: str) -> str:
    """What helps whoever asks for a checkpoint that is not there; it follows what was found."""
    first = ref.removeprefix("./").partition("/")[0]
    made = [command for command, names in MADE_BY.items() if first in names]
    return f". `{made[0]}` makes it, in the folder where it is called" if made else ""


def first_few(items: Sequence[str], separator: str = ", ") -> str:
    """The first few items and how many more there are: a damaged file can have thousands."""
    more = len(items) - MAX_SHOWN
    return separator.join([*items[:MAX_SHOWN], *([f"and {more} more"] if more > 0 else [])])
