"""The tables of a report as CSV, Markdown and LaTeX, as data frames, and as HTML for a notebook.

CSV files and data frames have the exact numbers (`wording.Shown`), the other formats their text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from trimtab.extras import require
from trimtab.report import document_of
from trimtab.report.document import Figure, Lines, Table
from trimtab.report.wording import Shown

if TYPE_CHECKING:
    import pandas as pd

    from trimtab.results.result import Result

_LATEX = str.maketrans(
    {
        **{char: f"\\{char}" for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "−": "$-$",
        "×": r"$\times$",
        "±": r"$\pm$",
        "→": r"$\to$",
        "≤": r"$\le$",
        "≥": r"$\ge$",
        "‖": r"$\|$",
        "·": r"$\cdot$",
    }
)


def tables_of(result: Result) -> list[Table]:
    """The tables of a result's page, including those of its figures, in order."""
    tables = document_of(result).tables()
    return [table.at("page") for table in tables if table.on_page and table.rows]


def frame_of(result: Result, title: str) -> pd.DataFrame:
    """A table as a data frame, with exact numbers.

    Args:
        result: The result.
        title: The title of the table.

    Raises:
        KeyError: The report has no such table.
        MissingExtraError: pandas is not installed.
    """
    frame = require("pandas", "pip install pandas").DataFrame
    tables = {table.title: table for table in reversed(tables_of(result))}
    if title not in tables:
        raise KeyError(f"no table {title!r}: expected one of {sorted(tables)}")
    rows = [list(map(_number, row)) for row in tables[title].rows]
    return frame(rows, columns=tables[title].headings)


def _number(cell: str) -> Any:
    return cell.value if isinstance(cell, Shown) else cell


def _csv(*results: Result) -> str:
    """All tables in one; each row names its table and has the columns of that table."""
    rows = [
        {"result": place, "table": table.title}
        | {
            heading or "name": _number(cell)
            for heading, cell in zip(table.headings, row, strict=True)
        }
        for place, result in enumerate(results, 1)
        for table in tables_of(result)
        for row in table.rows
    ]
    headings = dict.fromkeys(heading for row in rows for heading in row)
    if len(results) == 1:
        del headings["result"]
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, headings, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _markdown(*results: Result) -> str:
    return _each(results, lambda text: f"# {text}\n", _markdown_table)


def _markdown_table(table: Table) -> str:
    rule = ["--:" if column.role == "number" else "---" for column in table.columns]
    rows = [
        _markdown_row(table.headings),
        _markdown_row(rule),
        *(
            _markdown_row(
                f"`{cell}`" if column.role == "code" and cell else _markdown_text(cell)
                for column, cell in zip(table.columns, row, strict=True)
            )
            for row in table.rows
        ),
    ]
    parts = [f"**{_markdown_text(table.title)}**", "\n".join(rows), " ".join(table.notes)]
    return "".join(f"{part}\n\n" for part in parts if part)


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _markdown_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("<", "&lt;")


def _latex(*results: Result) -> str:
    tables = _each(results, lambda text: f"% {text}\n", _latex_table)
    return f"% \\usepackage{{booktabs}}\n\n{tables}"


def _latex_table(table: Table) -> str:
    form = "".join("r" if column.role == "number" else "l" for column in table.columns)
    *rows, last = [" & ".join(map(_latex_text, row)) + r" \\" for row in table.rows]
    if table.has_total and rows:
        rows.append(r"\midrule")
    notes = [rf"\par\smallskip\footnotesize {_latex_text(' '.join(table.notes))}"]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex_text(table.title)}}}",
        rf"\begin{{tabular}}{{{form}}}",
        r"\toprule",
        " & ".join(map(_latex_text, table.headings)) + r" \\",
        r"\midrule",
        *rows,
        last,
        r"\bottomrule",
        r"\end{tabular}",
        *(notes if table.notes else ()),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n\n"


def _latex_text(text: str) -> str:
    return text.translate(_LATEX)


def _each(
    results: Sequence[Result], heading: Callable[[str], str], draw: Callable[[Table], str]
) -> str:
    parts = []
    for result in results:
        document = document_of(result)
        parts.append(heading(f"{document.heading}: {document.title}") + "\n")
        parts += map(draw, tables_of(result))
    return "".join(parts).rstrip("\n") + "\n"


WRITERS: Mapping[str, Callable[..., str]] = {
    ".csv": _csv,
    ".md": _markdown,
    ".tex": _latex,
}
"""File name ending -> the function that writes results in that format."""


def fragment_of(result: Result) -> str:
    """Headlines and the tables for a terminal, as an HTML fragment."""
    document = document_of(result)
    parts = [f"<p><strong>{escape(text)}</strong></p>" for text in document.headlines]
    sentences = (*document.warnings, *document.summary, *document.caveats)
    parts += [f"<p>{escape(text)}</p>" for text in sentences if text]
    for block in document.blocks():
        if isinstance(block, Lines):
            continue
        table = block.table if isinstance(block, Figure) else block
        if table.brief is not None and table.rows:
            parts.append(_html_table(table.at("terminal")))
    return f"<div>{''.join(parts)}</div>"


def _html_table(table: Table) -> str:
    def row(cells: Iterable[str], tag: str) -> str:
        sides = ("right" if column.role == "number" else "left" for column in table.columns)
        inner = "".join(
            f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )
        return f"<tr>{inner}</tr>"

    caption = f"<caption>{escape(table.brief or table.title)}</caption>"
    body = "".join(row(cells, "td") for cells in table.rows)
    notes = f"<p><small>{escape(' '.join(table.notes))}</small></p>" if table.notes else ""
    head = row(table.headings, "th")
    return f"<table>{caption}<thead>{head}</thead><tbody>{body}</tbody></table>{notes}"
