"""The content of a report, from which both renderers draw.

A function such as `identity_document` turns a result into a `Document`. `terminal.render_text`
prints its headlines, facts and the tables marked `brief`; `html.render` draws all of it. Text is
plain; the renderers escape, style and wrap it. Every figure has a table with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from trimtab.report.wording import kinds_in_order, layer_text, printable

Role = Literal["text", "prose", "number", "code", "word"]
"""Layout of a column: text, sentences, right-aligned numbers, names from files in a code font, or
words without line breaks."""

Where = Literal["page", "terminal"]

Row = TypeVar("Row")

Keyed: TypeAlias = tuple[Sequence[str], Row]
"""The names of a row, and the object that its cells are made from."""


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table.

    Attributes:
        heading: Its heading.
        cell: Makes the text of a cell; a `wording.Shown` keeps its number for CSV files and data
            frames. Not used by `plain_table`.
        role: Its layout.
        short: Heading in a terminal, if different.
        drop: Order in which columns are dropped in a narrow terminal, from 1; a column of 0 is
            never dropped.
        note: How to read it; shown below the table if the column is.
        only: Show the column only there; everywhere if empty.
    """

    heading: str
    cell: Callable[[Row], str] = str
    role: Role = "number"
    short: str = ""
    drop: int = 0
    note: str = ""
    only: Where | Literal[""] = ""


@dataclass(frozen=True)
class Table:
    """A table of text; made by `table` and `plain_table`.

    Attributes:
        title: Caption, or the label that opens a folded table.
        columns: In order.
        rows: Cells, one for each column.
        has_total: Whether the last row is a total.
        num_left_out: Rows that are not shown; reported below the table.
        is_folded: Whether the table opens on a click.
        note: How to read the table, in addition to the notes of its columns.
        brief: Title in a terminal; None if the table is not shown there.
        on_page: Whether the page shows it.
    """

    title: str
    columns: tuple[Column[Any], ...]
    rows: tuple[tuple[str, ...], ...]
    has_total: bool = False
    num_left_out: int = 0
    is_folded: bool = True
    note: str = ""
    brief: str | None = None
    on_page: bool = True

    @property
    def headings(self) -> tuple[str, ...]:
        """Headings of the columns."""
        return tuple(column.heading for column in self.columns)

    @property
    def notes(self) -> tuple[str, ...]:
        """The note of the table and those of its columns."""
        notes = [self.note, *(column.note for column in self.columns)]
        return tuple(dict.fromkeys(note for note in notes if note))

    @property
    def is_long(self) -> bool:
        """Whether it scrolls on screen and is not printed."""
        return len(self.rows) > 40

    def at(self, where: Where) -> Table:
        """The table without the columns that are only for the other renderer."""
        return self.only(
            index for index, column in enumerate(self.columns) if column.only in ("", where)
        )

    def only(self, indices: Iterable[int]) -> Table:
        """The table with some of its columns."""
        chosen = tuple(indices)
        return replace(
            self,
            columns=tuple(self.columns[index] for index in chosen),
            rows=tuple(tuple(row[index] for index in chosen) for row in self.rows),
        )


def table(
    title: str,
    rows: Iterable[Keyed[Row]],
    columns: Sequence[Column[Row]],
    *,
    keys: Sequence[str | tuple[str, Role]],
    limit: int | None = None,
    is_folded: bool = True,
    **more: Any,
) -> Table:
    """Build a table.

    Args:
        title: Caption.
        rows: The names of each row, one for each of `keys`, and the object for its cells.
        columns: The columns after the keys.
        keys: Headings of the first columns, which name the rows, with their role if it is not
            text. A column that is empty in every row is left out.
        limit: Maximum number of rows; the rest is counted.
        is_folded: Whether it opens on a click.
        more: Further attributes of `Table`.
    """
    given = list(rows)
    shown = given if limit is None else given[:limit]
    heads = [key if isinstance(key, tuple) else (key, "text") for key in keys]
    used = [index for index in range(len(heads)) if any(names[index] for names, _ in shown)]
    first: list[Column[Any]] = [
        Column(heads[index][0], str, heads[index][1])
        for index in (used if shown else range(len(heads)))
    ]
    return Table(
        title,
        (*first, *columns),
        tuple(
            (*(printable(names[index]) for index in used), *(c.cell(row) for c in columns))
            for names, row in shown
        ),
        num_left_out=len(given) - len(shown),
        is_folded=is_folded,
        **more,
    )


def rows_by_kind(groups: Mapping[str, Row], total: Row) -> list[Keyed[Row]]:
    """A row for each kind, in display order, and one for all."""
    return [*(((kind,), groups[kind]) for kind in kinds_in_order(groups)), (("all",), total)]


def rows_by_layer(groups: Mapping[int | None, Row]) -> list[Keyed[Row]]:
    """A row for each layer, in the order given."""
    return [((layer_text(layer),), group) for layer, group in groups.items()]


def plain_table(
    title: str,
    columns: Iterable[Column[Any] | tuple[str, Role]],
    rows: Iterable[Sequence[str]],
    *,
    limit: int | None = None,
    **more: Any,
) -> Table:
    """Build a table of given cells.

    Args:
        title: Caption.
        columns: Each as a column, or as heading and role.
        rows: Cells.
        limit: Maximum number of rows; the rest is counted.
        more: Further attributes of `Table`.
    """
    cells = tuple(tuple(row) for row in rows)
    shown = cells if limit is None else cells[:limit]
    heads = tuple(c if isinstance(c, Column) else Column[Any](c[0], role=c[1]) for c in columns)
    return Table(title, heads, shown, num_left_out=len(cells) - len(shown), **more)


@dataclass(frozen=True)
class Key:
    """An entry of a figure's legend.

    Attributes:
        symbol: CSS class of the symbol: `dot-0`, `dot-1` (one for each run), `ring-0`, `tick`,
            `span`, `dashed`, `whisker` (an error bar), or `ramp` for the colour scale from `text`
            to `end`.
        text: What it means.
        end: The upper end of a `ramp`.
    """

    symbol: str
    text: str
    end: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart with its legend, an explanation, and the same numbers as a table.

    Attributes:
        title: The title.
        draw: Builds `spec`; not called for a terminal.
        reading: How to read it, in one or two sentences.
        table: The numbers.
        keys: The legend.
    """

    title: str
    draw: Callable[[], dict[str, Any]]
    reading: str
    table: Table
    keys: tuple[Key, ...] = ()

    @property
    def spec(self) -> dict[str, Any]:
        """Vega-Lite specification with its data."""
        return self.draw()


@dataclass(frozen=True)
class Lines:
    """Lines of text under a title, for a terminal only.

    Attributes:
        title: Above them, or empty.
        lines: In order.
        is_wrapped: Whether lines are wrapped, and indented below a title.
    """

    title: str
    lines: tuple[str, ...]
    is_wrapped: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        title: The heading.
        paragraphs: Text before the blocks.
        blocks: Figures and tables in order.
        is_warning: Whether the paragraphs are shown as a warning.
    """

    title: str
    paragraphs: tuple[str, ...] = ()
    blocks: tuple[Figure | Table | Lines, ...] = ()
    is_warning: bool = False

    @property
    def shown(self) -> tuple[Figure | Table, ...]:
        """The blocks that the page shows."""
        return tuple(
            block
            for block in self.blocks
            if isinstance(block, Figure) or (isinstance(block, Table) and block.on_page)
        )

    def page_only(self) -> Section:
        """The section without the tables for a terminal."""
        return replace(self, blocks=tuple(map(_page_only, self.shown)))


def _page_only(block: Figure | Table) -> Figure | Table:
    if isinstance(block, Figure):
        return replace(block, table=replace(block.table, brief=None))
    return replace(block, brief=None)


@dataclass(frozen=True)
class Hero:
    """A headline figure over a bar.

    Attributes:
        label: Its label, or empty.
        figure: The figure.
        words: The rest of its sentence.
        filled: Share of the bar that is filled.
        under: Label of the filled part.
    """

    label: str
    figure: str
    words: str
    filled: float
    under: str


@dataclass(frozen=True, kw_only=True)
class Document:
    """The content of a report, in order; sentences that are None are left out.

    Attributes:
        title: Title of the browser tab.
        heading: Title of the page.
        subtitle: The two sides of the comparison.
        heroes: The headline figures of the page.
        paragraphs: The introduction of the page.
        facts: The first lines of the text: names and values.
        headlines: The main sentences of the text.
        summary: The sentences after them.
        warnings: Shown at the top of page and text.
        caveats: Sentences of the text on limits of the figures.
        conversion: Describes a cast, if there was one.
        coverage: One sentence on what was measured.
        is_complete: Whether everything was; otherwise coverage is shown as a warning.
        prints_coverage: Whether the text has the coverage too.
        sections: In order; a section of None is left out.
        source: Criterion and checkpoints, shown below each figure.
        date: Date of the result; its first ten characters are shown.
    """

    title: str = ""
    heading: str = ""
    subtitle: tuple[str, str] = ("", "")
    heroes: Sequence[Hero] = ()
    paragraphs: Sequence[str | None] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    headlines: Sequence[str] = ()
    summary: Sequence[str | None] = ()
    warnings: Sequence[str | None] = ()
    caveats: Sequence[str | None] = ()
    conversion: str = ""
    coverage: str = ""
    is_complete: bool = True
    prints_coverage: bool = True
    sections: Sequence[Section | None] = ()
    source: str = ""
    date: object = ""

    @property
    def shown(self) -> tuple[Section, ...]:
        """The sections that the page shows."""
        return tuple(
            section
            for section in self.sections
            if section is not None and (section.shown or section.paragraphs)
        )

    @property
    def day(self) -> str:
        """The date as it is shown."""
        return printable(str(self.date))[:10]

    def blocks(self) -> Iterator[Figure | Table | Lines]:
        """The blocks of all sections, in order."""
        for section in self.sections:
            if section is not None:
                yield from section.blocks

    def tables(self) -> Iterator[Table]:
        """Every table, including those of figures, in order."""
        for block in self.blocks():
            if not isinstance(block, Lines):
                yield block.table if isinstance(block, Figure) else block
