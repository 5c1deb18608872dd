"""What a report page is made of: sections of tables and figures.

A figure cannot be built without its table and without the sentence that says how to read it, so
no chart is ever the only place where a number stands. All text here is plain; the template
escapes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

__all__ = ["Column", "Figure", "Key", "Section", "Table", "run_column", "table"]

Role = Literal["text", "prose", "number", "code", "word"]
Column: TypeAlias = tuple[str, Role]
"""Heading and role of a column."""


@dataclass(frozen=True)
class Table:
    """A table of finished text.

    Attributes:
        title: Caption, or what a folded table is opened by.
        headings: One for each column.
        roles: How each column is set: text, sentences that need some width, right-aligned figures,
            names from files, or words that stay in one line.
        rows: Cells, one for each column.
        has_total: Whether the last row sums up the others.
        num_left_out: Rows that are not shown; said below the table.
        is_folded: Whether it opens on a click.
        note: A sentence below the table on how to read it.
    """

    title: str
    headings: tuple[str, ...]
    roles: tuple[Role, ...]
    rows: tuple[tuple[str, ...], ...]
    has_total: bool = False
    num_left_out: int = 0
    is_folded: bool = False
    note: str = ""

    @property
    def is_long(self) -> bool:
        """Whether it scrolls on screen and stays out of print."""
        return len(self.rows) > 40


@dataclass(frozen=True)
class Key:
    """An entry of a figure's legend.

    Attributes:
        symbol: CSS class of the sign: `dot-0`, `dot-1` (one for each arm), `ring-0`, `tick`,
            `span`, `dashed`, `whisker` (an error bar), or `ramp` for the colour scale from `text`
            to `end`.
        text: What it stands for.
        end: The upper end of a `ramp`.
    """

    symbol: str
    text: str
    end: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart with its title, its legend, how to read it, and the same numbers as a table.

    Attributes:
        title: What is shown.
        spec: Vega-Lite specification with its data.
        reading: How to read it, in a sentence or two.
        table: The numbers.
        keys: The legend.
    """

    title: str
    spec: dict[str, Any]
    reading: str
    table: Table
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        title: The heading.
        paragraphs: Text before the blocks.
        blocks: Figures and tables in order.
        is_warning: Whether the paragraphs must be seen.
    """

    title: str
    paragraphs: tuple[str, ...] = ()
    blocks: tuple[Figure | Table, ...] = ()
    is_warning: bool = False


def run_column(labels: Iterable[str]) -> list[Column]:
    """A column for the labels of the runs, if they have any."""
    return [("run", "text")] if any(labels) else []


def table(
    title: str,
    columns: Iterable[Column],
    rows: Iterable[tuple[str, ...]],
    *,
    has_total: bool = False,
    is_folded: bool = True,
    limit: int | None = None,
    note: str = "",
) -> Table:
    """Build a table.

    Args:
        title: Caption.
        columns: Heading and role of each.
        rows: Cells, as text.
        has_total: Whether the last row sums up the others.
        is_folded: Whether it opens on a click.
        limit: Show this many rows and count the rest.
        note: A sentence below the table on how to read it.
    """
    headings, roles = zip(*columns, strict=True)
    cells = tuple(rows)
    shown = cells if limit is None else cells[:limit]
    return Table(title, headings, roles, shown, has_total, len(cells) - len(shown), is_folded, note)
