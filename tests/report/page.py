"""Reads a report back: its tables, its chart data and every attribute, with the stdlib's parser."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any


def unpacked(part: Any) -> Any:
    """A specification whose rows have the names of their columns, as the page's script makes it."""
    if isinstance(part, list):
        return [unpacked(item) for item in part]
    if not isinstance(part, dict):
        return part
    if "columns" in part:
        rows = [dict(zip(part["columns"], row, strict=True)) for row in part["values"]]
        return {**{key: entry for key, entry in part.items() if key != "columns"}, "values": rows}
    return {key: unpacked(item) for key, item in part.items()}


@dataclass
class PageTable:
    """A table as a reader sees it."""

    title: str
    rows: list[list[str]] = field(default_factory=list)

    @property
    def headings(self) -> list[str]:
        return self.rows[0]

    @property
    def body(self) -> list[list[str]]:
        return self.rows[1:]


class Page(HTMLParser):
    """The parts of a report page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[PageTable] = []
        self.specs: list[dict[str, Any]] = []
        self.scripts: list[str] = []
        self.sections: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._title = ""
        self._open = ""
        self._data = ""
        self.feed(text)

    def table(self, title: str) -> PageTable:
        (found,) = [table for table in self.tables if table.title == title]
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in ("h2", "h3", "summary", "th", "td", "script", "style", "title"):
            self._open, self._data = tag, ""
        if tag == "script":
            self._open = "json" if ("type", "application/json") in attrs else "script"
        if tag == "table":
            self.tables.append(PageTable(self._title))
        if tag == "tr":
            self.tables[-1].rows.append([])

    def handle_data(self, data: str) -> None:
        self._data += data
        if self._open not in ("json", "script", "style"):
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h3", "summary"):
            self._title = self._data
        elif tag == "h2":
            self.sections.append(self._data)
        elif tag in ("th", "td"):
            self.tables[-1].rows[-1].append(self._data)
        elif tag == "script":
            if self._open == "json":
                self.specs.append(unpacked(json.loads(self._data)))
            else:
                self.scripts.append(self._data)
        self._open = ""
