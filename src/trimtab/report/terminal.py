"""A document as text for a terminal, no wider than the terminal, plain unless styled.

Columns that do not fit are dropped in the order of `Column.drop`, with their notes; if that is not
enough, each row becomes a sentence. A number is never cut or wrapped.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from trimtab.report.document import Document, Figure, Lines, Table

GAP = "  "
"""Space between two columns."""

_NO_BREAK = "\N{NO-BREAK SPACE}"

BOLD, DIM, YELLOW, ALARM = "1", "2", "33", "1;33"
"""SGR styles."""


def render_text(
    document: Document, *, console_width: int | None = None, styled: bool = False
) -> str:
    """Draw a document as text.

    Args:
        document: The document.
        console_width: Characters in a line; None asks the terminal.
        styled: Use bold, dim and yellow, for a terminal that shows them.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    return "\n\n".join(
        _Text(console_width or shutil.get_terminal_size().columns, styled).parts(document)
    )


class _Text:
    def __init__(self, width: int, styled: bool) -> None:
        self._width = width
        self._is_styled = styled
        self._notes: set[str] = set()
        """Notes that were printed, which a second table does not repeat."""

    def parts(self, document: Document) -> list[str]:
        """The opening and every brief block."""
        parts = ["\n".join(self._opening(document))]
        for block in document.blocks():
            if isinstance(block, Lines):
                parts.append("\n".join(self._lines(block)))
                continue
            table = block.table if isinstance(block, Figure) else block
            if table.brief is not None:
                parts.append("\n".join(self._table(table.at("terminal"), table.brief)))
        return [part for part in parts if part]

    def _opening(self, document: Document) -> list[str]:
        size = max(map(len, document.facts), default=0)
        lines = [f"{name.ljust(size)}{GAP}{fact}" for name, fact in document.facts.items()]
        if lines:
            lines.append("")
        sentences = [
            *((sentence, BOLD) for sentence in document.headlines),
            *((sentence, ALARM) for sentence in document.warnings),
            *((sentence, "") for sentence in document.summary),
            *((sentence, YELLOW) for sentence in document.caveats),
        ]
        if document.conversion:
            sentences.append((f"Converted before comparing: {document.conversion}.", YELLOW))
        if document.coverage and document.prints_coverage:
            style = "" if document.is_complete else ALARM
            sentences.append((f"Coverage {document.coverage}.", style))
        for sentence, style in sentences:
            lines += self._wrapped(sentence or "", style)
        return lines

    def _wrapped(self, text: str, style: str = "", indent: str = "") -> list[str]:
        lines = textwrap.wrap(
            text,
            self._width,
            initial_indent=indent,
            subsequent_indent=2 * indent,
            break_on_hyphens=False,
        )
        return [self._styled(line, style) for line in lines]

    def _styled(self, line: str, style: str) -> str:
        return f"\x1b[{style}m{line}\x1b[0m" if self._is_styled and style else line

    def _lines(self, block: Lines) -> list[str]:
        lines = self._wrapped(block.title, BOLD)
        for line in block.lines:
            indent = GAP if block.title else ""
            lines += self._wrapped(line, indent=indent) if block.is_wrapped else [line]
        return lines

    def _table(self, table: Table, title: str) -> list[str]:
        table = self._fitting(table)
        grid = self._grid(table) if table.rows else []
        if grid and max(map(len, grid)) > self._width:
            grid = self._sentences(table)
        elif grid:
            grid[0] = self._styled(grid[0], DIM)
            if table.has_total:
                grid[-1] = self._styled(grid[-1], BOLD)
        notes = [note for note in table.notes if note not in self._notes]
        self._notes.update(notes)
        if table.num_left_out:
            notes.append(f"{table.num_left_out:,} more not shown here; the JSON has all.")
        return [*self._wrapped(title, BOLD), *grid, *self._wrapped(" ".join(notes), DIM)]

    def _fitting(self, table: Table) -> Table:
        """The table without the columns that do not fit and may be dropped."""
        drops = sorted({column.drop for column in table.columns if column.drop})
        for dropped in (0, *drops):
            fits = table.only(
                index
                for index, column in enumerate(table.columns)
                if not 0 < column.drop <= dropped
            )
            if _width(fits) <= self._width:
                return fits
        return fits

    def _grid(self, table: Table) -> list[str]:
        """Headings and rows in columns."""
        sizes = _sizes(table)
        is_number = [column.role == "number" for column in table.columns]
        return [
            GAP.join(
                cell.rjust(size) if right else cell.ljust(size)
                for cell, size, right in zip(row, sizes, is_number, strict=True)
            ).rstrip()
            for row in (_headings(table), *table.rows)
        ]

    def _sentences(self, table: Table) -> list[str]:
        """A sentence for each row: its name and its other cells."""
        headings = _headings(table)
        lines = []
        for row in table.rows:
            cells = [
                (column.role, heading, cell)
                for column, heading, cell in zip(table.columns, headings, row, strict=True)
                if cell
            ]
            names = ", ".join(cell for role, _, cell in cells if role != "number")
            figures = ", ".join(
                f"{heading} {cell}".strip().replace(" ", _NO_BREAK)
                for role, heading, cell in cells
                if role == "number"
            )
            lines += self._wrapped(f"{names}: {figures}" if names else figures)
        return [line.replace(_NO_BREAK, " ") for line in lines]


def _headings(table: Table) -> Sequence[str]:
    return [column.short or column.heading for column in table.columns]


def _sizes(table: Table) -> list[int]:
    """Width of each column in characters."""
    return [max(map(len, cells)) for cells in zip(_headings(table), *table.rows, strict=True)]


def _width(table: Table) -> int:
    sizes = _sizes(table)
    return sum(sizes) + len(GAP) * (len(sizes) - 1)
