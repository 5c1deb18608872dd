"""What holds of the report of every result, as a text and as a page."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from trimtab.report import document_of, html_of, read_result, text_of
from trimtab.report.document import Figure
from trimtab.report.terminal import render_text
from trimtab.results.result import Result


def test_no_line_is_wider_than_the_terminal(result: Result) -> None:
    document = document_of(result)
    for width in (40, 60, 80, 120):
        lines = render_text(document, console_width=width).splitlines()
        assert all(line == line.rstrip() for line in lines)
        # Names of files are not cut.
        assert max(map(len, lines[len(document.facts) :])) <= width


def test_styles_change_no_word(result: Result) -> None:
    plain, styled = (text_of(result, styled=styled) for styled in (False, True))
    assert "\x1b" not in plain and "\x1b[1m" in styled
    assert re.sub(r"\x1b\[[0-9;]*m", "", styled) == plain


def test_a_result_read_back_from_json_is_drawn_alike(result: Result) -> None:
    again = read_result(json.loads(json.dumps(result.to_dict())))
    assert text_of(again) == text_of(result)
    assert html_of(again) == html_of(result)


def test_every_figure_has_its_numbers(result: Result) -> None:
    for block in document_of(result).blocks():
        if isinstance(block, Figure):
            assert block.table.rows and block.reading.endswith(".")
            shown = set(re.findall(r'"tip_\d+"', json.dumps(encodings(block.spec))))
            rows = block.spec["data"]["values"]
            assert all({json.dumps(key) for key in tips(row)} == shown for row in rows)


def encodings(part: Any) -> Any:
    """A specification without its data."""
    if isinstance(part, list):
        return list(map(encodings, part))
    if not isinstance(part, dict):
        return part
    return {key: encodings(inner) for key, inner in part.items() if key != "data"}


def tips(row: Any) -> list[str]:
    """What a hover box can show of a row."""
    return [key for key in row if key.startswith("tip_")] if isinstance(row, dict) else []


def test_tables_can_be_told_apart_by_their_titles(result: Result) -> None:
    tables = [table for table in document_of(result).tables() if table.on_page]
    twice = [title for title, num in Counter(table.title for table in tables).items() if num > 1]
    assert not twice
