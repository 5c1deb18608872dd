"""What every printed table is made of: lines of plain characters, as wide as the terminal or less.

No box drawing and no colour unless asked for, so that a pipe, a log file and a narrow window get
the same words. Columns that do not fit are left out from the least important on; a figure is
never cut or wrapped.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

__all__ = ["GAP", "aligned", "told", "wrapped"]

GAP = "  "
"""Between two columns."""

_OPTIONAL = (
    *("p of fewer", "p of more", "chance of fewer", "chance of more"),  # of shared units
    *("of control", "Gini", "z² by magnitude alone", "columns control", "rows control"),
    *("most o1", "most o2", "p", "in A", "in B"),  # of an overlap
    *("in mask", "norm", "correct, mask − it", "correct"),  # of a robustness probe
    "largest difference",  # of an identity check
    *("outside/all", "outside/ever", "Jaccard", "cancelled"),  # of a trajectory
    *("tensors", "mean of tensors", "changed", "predicted", "elements"),
    *("seconds", "loss tokens", "trained"),  # of a demo
    *("cosine", "relative L2"),  # of an identity check
    "optimizer",  # of a demo
)
"""Columns that give way in a narrow window, the first one first."""


def wrapped(text: str, width: int, style: str, *, styled: bool) -> list[str]:
    """Lines of a sentence, in the SGR style of that number if styled."""
    lines = textwrap.wrap(text, width, break_on_hyphens=False)
    return [f"\x1b[{style}m{line}\x1b[0m" for line in lines] if styled and style else lines


def told(sentences: Iterable[tuple[str | None, str]], width: int, *, styled: bool) -> list[str]:
    """Lines of the sentences that there are, each in its own SGR style."""
    lines: list[str] = []
    for sentence, style in sentences:
        if sentence:
            lines += wrapped(sentence, width, style, styled=styled)
    return lines


def aligned(columns: dict[str, list[str]], width: int) -> list[str]:
    """Lines of a table with its headings, the first column to the left; drops what cannot fit."""
    for leaving in (*_OPTIONAL, None):
        sizes = {title: max(map(len, (title, *cells))) for title, cells in columns.items()}
        if leaving is None or sum(sizes.values()) + len(GAP) * (len(sizes) - 1) <= width:
            break
        columns = {title: cells for title, cells in columns.items() if title != leaving}
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    return [
        GAP.join(
            cell.rjust(size) if place else cell.ljust(size)
            for place, (cell, size) in enumerate(zip(row, sizes.values(), strict=True))
        ).rstrip()
        for row in rows
    ]
