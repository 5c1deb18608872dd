"""The golden files see a change of a cell, a sentence, a chart, a figure or a bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden.conftest import World
from tests.golden.normal import packed, same
from tests.golden.stored import STORED, Golden
from tests.golden.world import type_in


@pytest.fixture(scope="module")
def page(made: World) -> str:
    """The page of the comparison."""
    path = made.folder / "nets.html"
    printed = type_in(
        f"report {made.folder / 'first.json'} {made.folder / 'second.json'} -o {path}"
    )
    assert printed.code == 0
    return path.read_text("utf-8")


def differences(name: str, page: str, folder: Path) -> Golden:
    golden = Golden(name, folder)
    golden.page(page)
    golden.text("text.txt", (STORED / name / "text.txt").read_text("utf-8"))
    return golden


def test_nothing_is_seen_where_nothing_changed(page: str, made: World) -> None:
    differences("several", page, made.folder).check()


@pytest.mark.parametrize(
    ("old", "new", "seen"),
    [
        (">1,335</td>", ">1,336</td>", "-.*1,335"),  # a cell
        ("Every figure below", "Each figure below", "-.*Every figure below"),  # a sentence
        ('<th scope="col" class="number">changed</th>', "", "-.*changed"),  # a column
        ('<th scope="col" class="number">changed', "<th>changed", "-.*number"),  # its alignment
        ("<h2>Coverage", "<h2>Reach", "h2: Reach"),  # a heading
        ('"type":"rect"', '"type":"bar"', "mark.type: 'rect' is now 'bar'"),  # a mark
        ('"padding":0.04', '"padding":0.05', "padding: 0.04 is now 0.05"),  # an encoding
    ],
)
def test_a_change_of_a_page_is_seen(page: str, made: World, old: str, new: str, seen: str) -> None:
    if old not in page:  # JSON in the page may have spaces
        old, new = (text.replace(":", ": ") for text in (old, new))
    assert old in page
    with pytest.raises(AssertionError, match=seen):
        differences("several", page.replace(old, new, 1), made.folder).check()


@pytest.mark.parametrize(
    ("now", "seen"),
    [
        ({"a": 1, "b": [1.0, 2.5], "c": "x"}, None),
        ({"a": 1, "b": [1.0, 2.500001], "c": "x"}, None),
        ({"a": 1, "b": [1.0, 2.51], "c": "x"}, ".b[1]: 2.5 is now 2.51"),
        ({"a": 2, "b": [1.0, 2.5], "c": "x"}, ".a: 1 is now 2"),
        ({"a": True, "b": [1.0, 2.5], "c": "x"}, ".a: 1 is now True"),
        ({"a": 1, "b": [1.0], "c": "x"}, ".b: 2 items are now 1"),
        ({"a": 1, "b": [1.0, 2.5]}, ": gone are ['c']"),
        ({"a": 1, "b": [1.0, 2.5], "c": "x", "d": 0}, ": new are ['d']"),
        ({"a": None, "b": [1.0, 2.5], "c": "x"}, ".a: 1 is now None"),
    ],
)
def test_a_change_of_data_is_seen(now: Any, seen: str | None) -> None:
    assert same({"a": 1, "b": [1.0, 2.5], "c": "x"}, now) == seen


def test_packing_loses_nothing() -> None:
    records = [{"n": name, "in": {"x": place, "y": [place]}} for place, name in enumerate("abc")]
    rows = [["a", 0, [0]], ["b", 1, [1]], ["c", 2, [2]]]
    columns = ["n", "in.x", "in.y"]
    assert packed(records) == {"columns": columns, "rows": rows}
    by_name = dict(zip("abc", records, strict=True))
    assert packed(by_name) == {"columns": columns, "rows": dict(zip("abc", rows, strict=True))}
    assert packed([{"n": 1}, {"m": 1}]) == [{"n": 1}, {"m": 1}]
    assert json.loads(json.dumps(packed(records))) == packed(records)
