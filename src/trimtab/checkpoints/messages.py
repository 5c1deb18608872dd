"""Wording shared by the errors of this package."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["first_few"]

MAX_SHOWN = 5


def first_few(items: Sequence[str], separator: str = ", ") -> str:
    """The first few items and how many more there are: a damaged file can have thousands."""
    more = len(items) - MAX_SHOWN
    return separator.join([*items[:MAX_SHOWN], *([f"and {more} more"] if more > 0 else [])])
