"""Tables of reports as files, as data frames and in notebooks."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import trimtab
from tests.report.identity_factory import make_identity
from trimtab.errors import ResultFormatError
from trimtab.report.tables import WRITERS, tables_of
from trimtab.results.result import Result


def test_a_result_is_saved_and_loaded(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    result.save(path)
    assert trimtab.load_result(path).to_json() == path.read_text("utf-8") == result.to_json()
    with pytest.raises(trimtab.errors.OutputExistsError):
        result.save(path)
    path.write_text('{"format": "trimtab.other"}')
    with pytest.raises(ResultFormatError, match=re.escape(f"{path}: expected a result of")):
        trimtab.load_result(path)


def test_a_frame_has_a_row_for_each_entry_and_the_keys_of_the_json(result: Result) -> None:
    frame = result.to_dataframe()
    rows: Any = result.to_dict()
    for key in result.ROWS.split("."):
        rows = rows[key]
    assert len(frame) == len(rows)
    for key, value in rows[0].items():
        if isinstance(value, dict):
            for inner in (name for name, held in value.items() if held != {}):
                assert any(str(name).startswith(f"{key}[{inner}") for name in frame)
        else:
            assert key in frame


def test_a_frame_of_a_table_has_its_cells(result: Result) -> None:
    for table in tables_of(result):
        frame = result.to_dataframe(table.title)
        assert list(frame.columns) == list(frame.columns.astype(str))
        assert len(frame) > 0
    with pytest.raises(KeyError, match="no table 'x': expected one of"):
        result.to_dataframe("x")


def test_a_csv_file_is_one_table(result: Result) -> None:
    rows = list(csv.DictReader(io.StringIO(WRITERS[".csv"](result))))
    tables = tables_of(result)
    assert len(rows) == sum(len(table.rows) for table in tables)
    assert {row["table"] for row in rows} == {table.title for table in tables}
    both = list(csv.DictReader(io.StringIO(WRITERS[".csv"](result, result))))
    assert [row["result"] for row in both] == ["1"] * len(rows) + ["2"] * len(rows)


def test_markdown_has_every_cell(result: Result) -> None:
    text = WRITERS[".md"](result)
    tables = tables_of(result)
    grids = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(grids) == len(tables)
    for grid, table in zip(grids, tables, strict=True):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in grid.strip().split("\n")]
        assert len(lines) == len(table.rows) + 2
        assert {len(line) for line in lines} == {len(table.columns)}
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_latex_is_balanced_and_escaped(result: Result) -> None:
    text = WRITERS[".tex"](result)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == len(tables_of(result))
    for line in text.split("\n"):
        if line.endswith(r" \\"):
            assert not re.search(r"(?<!\\)[%#_]", line), line
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")


class _Page(HTMLParser):
    """Tags that are open, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_notebook_shows_headline_and_tables(result: Result) -> None:
    html = result._repr_html_()
    page = _Page()
    page.feed(html)
    assert page.open == []
    assert len(page.text) > 100
    assert "<script" not in html


def test_numbers_are_not_rounded_in_files() -> None:
    identity = make_identity()
    inside = identity.total.inside
    frame = identity.to_dataframe("Inside the mask, outside it, and all")
    share = inside.num_sub_equal["bits"] / inside.num_elements
    assert frame["SUB = FULL"][0] == share
    first = next(csv.DictReader(io.StringIO(WRITERS[".csv"](identity))))
    assert float(first["SUB = FULL"]) == share
    assert int(first["elements"]) == inside.num_elements


def test_names_of_strangers_stay_text() -> None:
    data = json.loads(make_identity().to_json())
    for tensor in data["tensors"]:
        tensor["name"] = f"<b>|&_%\\{tensor['name']}"
    identity = type(make_identity()).from_dict(data)
    assert "<b>" not in identity._repr_html_()
    assert r"| `<b>\|&_%\model." in WRITERS[".md"](identity)
    assert r"<b>|\&\_\%\textbackslash{}" in WRITERS[".tex"](identity)
