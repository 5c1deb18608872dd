"""What a report says about a result: one description, from which both renderers draw.

A function such as `identity_document` turns a result into a `Document`. `terminal.render_text`
prints its headlines, its facts and the tables marked `brief`; `html.render` draws all of it. Text
here is plain and finished; the renderers escape, style and wrap it.

A `Column` says everything about one column: its heading, how a cell is made from a row, what a
reader must know to read it, and how soon it gives way in a narrow terminal. A figure cannot be
built without its table and without the sentence that says how to read it, so no chart is ever the
only place where a number stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from trimtab.report.wording import kinds_in_order, layer_text, printable

Role = Literal["text", "prose", "number", "code", "word"]
"""How a column is set: text, sentences that need some width, right-aligned figures, names from
files, or words that stay on one line."""

Where = Literal["page", "terminal"]

Row = TypeVar("Row")

Keyed: TypeAlias = tuple[Sequence[str], Row]
"""What a row is called, and what its cells are made from."""


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table.

    Attributes:
        heading: Its heading.
        cell: Text of a cell, from what the row is about; a `wording.Shown` keeps its number for
            CSV files and data frames. Not used where the cells are given.
        role: How it is set.
        short: Heading in a terminal, if another one.
        drop: Place in the order in which columns give way in a narrow terminal, from 1; a column
            of 0 always stays.
        note: How to read it; shown below the table wherever the column is.
        only: Where alone the column is shown; everywhere if empty.
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
    """A table of finished text; `table` and `plain_table` make them.

    Attributes:
        title: Caption, or what a folded table is opened by.
        columns: In order.
        rows: Cells, one for each column.
        has_total: Whether the last row sums up the others.
        num_left_out: Rows that are not shown; reported below the table.
        is_folded: Whether the table opens on a click.
        note: How to read the table, in addition to the notes of its columns.
        brief: Title in a terminal; None for a table that a terminal does not show.
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
        """One for each column."""
        return tuple(column.heading for column in self.columns)

    @property
    def notes(self) -> tuple[str, ...]:
        """How to read it: its own note, and those of its columns."""
        notes = [self.note, *(column.note for column in self.columns)]
        return tuple(dict.fromkeys(note for note in notes if note))

    @property
    def is_long(self) -> bool:
        """Whether it scrolls on screen and stays out of print."""
        return len(self.rows) > 40

    def at(self, where: Where) -> Table:
        """The table as one of the renderers shows it: without the columns of the other."""
        return self.only(
            place for place, column in enumerate(self.columns) if column.only in ("", where)
        )

    def only(self, places: Iterable[int]) -> Table:
        """The same rows with some of the columns."""
        chosen = tuple(places)
        return replace(
            self,
            columns=tuple(self.columns[place] for place in chosen),
            rows=tuple(tuple(row[place] for place in chosen) for row in self.rows),
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
        rows: What each row is called, a text for each of `keys`, and what its cells are made from.
        columns: The columns after the keys.
        keys: Headings of the first columns, which say what a row is about, with their role where
            that is not text. One that is empty in every row is left out: the label of the only run.
        limit: Show this many rows and count the rest.
        is_folded: Whether it opens on a click.
        more: Further attributes of `Table`.
    """
    given = list(rows)
    shown = given if limit is None else given[:limit]
    heads = [key if isinstance(key, tuple) else (key, "text") for key in keys]
    used = [place for place in range(len(heads)) if any(names[place] for names, _ in shown)]
    first: list[Column[Any]] = [
        Column(heads[place][0], str, heads[place][1])
        for place in (used if shown else range(len(heads)))
    ]
    return Table(
        title,
        (*first, *columns),
        tuple(
            (*(printable(names[place]) for place in used), *(c.cell(row) for c in columns))
            for names, row in shown
        ),
        num_left_out=len(given) - len(shown),
        is_folded=is_folded,
        **more,
    )


def rows_by_kind(groups: Mapping[str, Row], total: Row) -> list[Keyed[Row]]:
    """A row for each kind, in reading order, and one for all."""
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
    """Build a table of text that is there already.

    Args:
        title: Caption.
        columns: Each one, or just its heading and its role.
        rows: Cells.
        limit: Show this many rows and count the rest.
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
        symbol: CSS class of the sign: `dot-0`, `dot-1` (one for each run), `ring-0`, `tick`,
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
    """A chart with its title, its legend, how to read it, and the same numbers as a table.

    Attributes:
        title: What is shown.
        draw: Builds `spec`; called when a page or a figure file is drawn, never for a terminal.
        reading: How to read it, in a sentence or two.
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
        is_wrapped: Whether lines are wrapped, and indented below a title; otherwise they stay as
            they are.
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
        is_warning: Whether the paragraphs must be seen.
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
        """The section as a part of a page whose text says the same in its own way."""
        return replace(self, blocks=tuple(map(_page_only, self.shown)))


def _page_only(block: Figure | Table) -> Figure | Table:
    if isinstance(block, Figure):
        return replace(block, table=replace(block.table, brief=None))
    return replace(block, brief=None)


@dataclass(frozen=True)
class Hero:
    """A headline figure over a bar.

    Attributes:
        label: What it is about, or empty.
        figure: The figure.
        words: The rest of its sentence.
        filled: Share of the bar that is filled.
        under: What the filled part is.
    """

    label: str
    figure: str
    words: str
    filled: float
    under: str


@dataclass(frozen=True, kw_only=True)
class Document:
    """What a report says about one result, in order; a sentence of None is left out.

    Attributes:
        title: Of the browser's tab.
        heading: The page's own title.
        subtitle: What was set against what.
        heroes: The headline figures of the page.
        paragraphs: What opens the page.
        facts: What opens the text: names and what they are.
        headlines: The main sentences of the text.
        summary: The sentences after them.
        warnings: Shown at the top of both.
        caveats: Sentences of the text on what the figures do not say.
        conversion: Words on a cast, if there was one.
        coverage: One sentence on what was looked at.
        is_complete: Whether all was; otherwise it is shown as a warning.
        prints_coverage: Whether the text has it too.
        sections: In order; None where there is nothing to say.
        source: What every figure is of: criterion, checkpoints, date. It stands below each figure.
        date: When the result was made; its first ten characters are shown.
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
        """Those of all sections, in order."""
        for section in self.sections:
            if section is not None:
                yield from section.blocks

    def tables(self) -> Iterator[Table]:
        """Every table, those of figures among them, in order."""
        for block in self.blocks():
            if not isinstance(block, Lines):
                yield block.table if isinstance(block, Figure) else block
