"""What a golden file holds of an output: everything but what differs from run to run.

Dates, versions and places become words in brackets. Results of training are not the same on every
machine: of those only the shape is kept (`shape_of`, `numberless`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from textwrap import fill
from typing import Any

WIDTH = 110
"""A list or an object that fits on a line of a golden file is written on one."""

DIGITS = 6
"""Of a number in a golden file."""

_CHANGING = (
    (
        re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?(?:\+\d\d:\d\d| UTC)?)?"),
        "<date>",
    ),
    (re.compile(r"(?<=threads \| )\d+$", re.MULTILINE), "<threads>"),
    (re.compile(r"trimtab \d+\.\d+\.\d+[\w.+-]*"), "trimtab <version>"),
)
_FIGURE = re.compile(r"(?<![\w.-])[+−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w]|\.\d)")
_VOID = {"br", "hr", "img", "input", "link", "meta"}
_DEEPER = {"main", "article", "header", "section", "figure", "details", "nav", "table", "footer"}
_BLOCKS = _DEEPER | {"div", "h1", "h2", "h3", "p", "ul", "ol", "li", "summary", "figcaption", "tr"}
_TOLD = ("id", "aria-label", "style")
"""Attributes that a golden page has."""
_UNSEEN = {"style", "title", "noscript", "sideways"}
"""What is the same on every page, or below every table."""


def text_of(text: str, folder: Path) -> str:
    """A text without dates, versions and the folders that pytest made below `folder`."""
    text = re.sub(re.escape(str(folder)) + r"/[^/\s]+", "<folder>", text)
    for pattern, word in _CHANGING:
        text = pattern.sub(word, text)
    return text


def numberless(text: str) -> str:
    """A text whose numbers are `#`."""
    return _FIGURE.sub("#", text)


def refilled(text: str) -> str:
    """A text whose lines break elsewhere: where they did depends on the numbers."""
    parts = [fill(" ".join(part.split()), WIDTH) for part in text.split("\n\n")]
    return "\n\n".join(parts) + "\n"


def data_of(data: Any, folder: Path) -> Any:
    """Plain data in the same way; floats have `DIGITS` digits."""
    if isinstance(data, dict):
        return {
            key: f"<{key}>" if _is_of_a_run(key, value) else data_of(value, folder)
            for key, value in data.items()
        }
    if isinstance(data, list):
        return [data_of(item, folder) for item in data]
    if isinstance(data, float):
        return float(f"{data:.{DIGITS}g}")
    return text_of(data, folder) if isinstance(data, str) else data


def _is_of_a_run(key: str, value: Any) -> bool:
    if key == "threads" or (key.startswith("seconds") and isinstance(value, float)):
        return True
    return isinstance(value, str) and (key == "date" or key.endswith("_version"))


def shape_of(data: Any) -> Any:
    """Plain data with the names of types in place of values.

    Of a list it has the distinct items, and of records of one shape their names and that shape.
    """
    if isinstance(data, dict):
        shapes = {key: shape_of(value) for key, value in data.items()}
        first = next(iter(shapes.values()), None)
        if (
            len(shapes) > 1
            and isinstance(first, dict)
            and all(one == first for one in shapes.values())
        ):
            return {"names": list(shapes), "of each": first}
        return shapes
    if isinstance(data, list):
        items: list[Any] = []
        for shape in map(shape_of, data):
            if shape not in items:
                items.append(shape)
        return items
    return "null" if data is None else type(data).__name__


def same(golden: Any, now: Any, where: str = "") -> str | None:
    """Where two pieces of plain data differ first, in words; floats may by rounding."""
    if float in (type(golden), type(now)) and {type(golden), type(now)} <= {int, float}:
        close = abs(golden - now) <= max(1e-9, 1e-4 * abs(golden))
        return None if close else f"{where}: {golden} is now {now}"
    if isinstance(golden, dict) and isinstance(now, dict):
        if gone := [key for key in golden if key not in now]:
            return f"{where}: gone are {gone}"
        if new := [key for key in now if key not in golden]:
            return f"{where}: new are {new}"
        return next(
            filter(None, (same(golden[key], now[key], f"{where}.{key}") for key in golden)), None
        )
    if isinstance(golden, list) and isinstance(now, list):
        if len(golden) != len(now):
            return f"{where}: {len(golden)} items are now {len(now)}"
        places = enumerate(zip(golden, now, strict=True))
        return next(filter(None, (same(*pair, f"{where}[{at}]") for at, pair in places)), None)
    return (
        None
        if golden == now and type(golden) is type(now)
        else f"{where}: {golden!r} is now {now!r}"
    )


def written(data: Any) -> str:
    """JSON that a person can review: short parts on one line, rows of records below one heading."""
    return _written(data, "") + "\n"


def _written(data: Any, indent: str) -> str:
    flat = json.dumps(data, ensure_ascii=False)
    if len(flat) <= WIDTH - len(indent) or not isinstance(data, (dict, list)):
        return flat
    opening, closing = "{}" if isinstance(data, dict) else "[]"
    deeper = indent + " "
    names = (
        [f"{json.dumps(key, ensure_ascii=False)}: " for key in data]
        if isinstance(data, dict)
        else [""] * len(data)
    )
    values = list(data.values()) if isinstance(data, dict) else data
    lines: list[str] = []
    is_open = False  # whether the last line takes more: those of short parts do
    for at, (name, value) in enumerate(zip(names, values, strict=True)):
        part = name + _written(value, deeper) + ("," if at + 1 < len(values) else "")
        is_short = not isinstance(value, (dict, list))
        if is_open and is_short and len(lines[-1]) + len(part) < WIDTH:
            lines[-1] += f" {part}"
        else:
            lines.append(deeper + part)
        is_open = is_short
    return "\n".join([opening, *lines, indent + closing])


def packed(data: Any) -> Any:
    """Plain data whose alike records are `columns` and `rows`, so that no name is repeated.

    Records are alike that have the same keys; those of records in them join the columns, by dots.
    """
    if isinstance(data, dict):
        if "columns" in data and "values" in data:  # as a page holds the rows of a chart
            rest = {key: value for key, value in data.items() if key not in ("columns", "values")}
            return {**packed(rest), "values": {"columns": data["columns"], "rows": data["values"]}}
        if columns := _columns(list(data.values())):
            rows = list(map(list, zip(*columns.values(), strict=True)))
            return {"columns": list(columns), "rows": dict(zip(data, rows, strict=True))}
        return {key: packed(value) for key, value in data.items()}
    if not isinstance(data, list):
        return data
    if columns := _columns(data):
        return {
            "columns": list(columns),
            "rows": list(map(list, zip(*columns.values(), strict=True))),
        }
    return [packed(item) for item in data]


def _columns(records: Sequence[Any]) -> dict[str, list[Any]]:
    """The values of alike records by name; empty if they are not alike, or no records."""
    if len(records) < 2 or not all(isinstance(record, dict) and record for record in records):
        return {}
    if any(list(record) != list(records[0]) for record in records):
        return {}
    columns: dict[str, list[Any]] = {}
    for key in records[0]:
        values = [record[key] for record in records]
        if inner := _columns(values):
            columns |= {f"{key}.{name}": item for name, item in inner.items()}
        else:
            columns[key] = list(map(packed, values))
    return columns


class Skeleton(HTMLParser):
    """A page as lines: what opens, indented, and the text of headings, sentences and cells.

    `charts` are the specifications in it, in their order; `config` is told of the first only.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.charts: list[Any] = []
        self._open: list[str] = []
        self._label = ""
        self._text = ""
        self._cells: list[str] = []
        self._script = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        classes = values.get("class", "").split()
        if tag == "script":
            self._script, self._text = values.get("type", ""), ""
        elif tag in _BLOCKS and tag != "tr" and "frame" not in classes:
            self._end_line()
            result = [f"{name}={values[name]}" for name in _TOLD if name in values]
            self._label = " ".join([".".join([tag, *classes]), *result])
            if tag in _DEEPER:
                self._end_line()
        elif classes and tag in ("i", "span", "th"):
            self._text += f"({'.'.join(classes)})"
        if tag not in _VOID:
            self._open.append("sideways" if "sideways" in classes else tag)

    def handle_data(self, data: str) -> None:
        if not _UNSEEN.intersection(self._open):
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            if self._script == "application/json":
                chart = json.loads(self._text)
                if self.charts and chart["config"] == self.charts[0]["config"]:
                    chart["config"] = "that of the first"
                self.charts.append(chart)
                self._label = f"chart {len(self.charts)}"
            self._text = ""
            self._end_line()
        elif tag in ("td", "th"):
            self._cells.append(" ".join(self._text.split()))
            self._text = ""
        elif tag == "tr":
            self._text, self._cells = " | ".join(self._cells), []
            self._end_line()
        elif tag in _BLOCKS:
            if tag not in _DEEPER | {"div"} and not self._text.strip():
                self._label = ""
            self._end_line()
        self._open.pop()

    def _end_line(self) -> None:
        text = " ".join(self._text.split())
        if line := ": ".join(filter(None, (self._label, text))):
            depth = sum(tag in _DEEPER for tag in self._open)
            self.lines.append("  " * depth + line)
        self._label = self._text = ""
