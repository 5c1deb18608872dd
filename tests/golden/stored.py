"""Golden files: read, compared, and written again on request."""

from __future__ import annotations

import json
from collections.abc import Callable
from difflib import unified_diff
from pathlib import Path
from typing import Any

from tests.golden.normal import (
    Skeleton,
    data_of,
    numberless,
    packed,
    refilled,
    same,
    shape_of,
    text_of,
    written,
)

STORED = Path(__file__).parent / "stored"


class Golden:
    """The golden files of one name, and what differs from them.

    Args:
        name: Their folder below `stored/`.
        folder: Where pytest makes its folders, whose names no golden file has.
        update: Write them instead.
    """

    def __init__(self, name: str, folder: Path, *, update: bool = False) -> None:
        self._stored = STORED / name
        self._made_in = folder
        self._update = update
        self._differences: list[str] = []
        self._seen: set[str] = set()

    def text(self, name: str, now: str, *, figures: bool = True) -> None:
        """Compare a text, without `figures` but for the numbers in it."""
        now = text_of(now, self._made_in)
        self._compare(name, now if figures else refilled(numberless(now)))

    def _compare(self, name: str, now: str) -> None:
        path = self._place(name)
        if self._update:
            path.write_text(now, encoding="utf-8")
        golden = path.read_text("utf-8") if path.exists() else ""
        lines = unified_diff(golden.splitlines(), now.splitlines(), str(path), "now", n=1)
        self._differences += ["\n".join(lines)] if golden != now else []

    def data(self, name: str, now: Any, *, figures: bool = True) -> None:
        """Compare plain data, without `figures` its shape."""
        path = self._place(name)
        now = packed(data_of(now, self._made_in)) if figures else shape_of(now)
        if self._update:
            path.write_text(written(now), encoding="utf-8")
        golden = json.loads(path.read_text("utf-8")) if path.exists() else None
        difference = same(golden, now)
        self._differences += [f"{path}{difference}"] if difference else []

    def page(self, html: str, *, figures: bool = True) -> None:
        """Compare a page: `page.txt` is what a reader sees, `charts.json` what it draws."""
        skeleton = Skeleton(html)
        lines = text_of("\n".join([*skeleton.lines, ""]), self._made_in)
        self._compare("page.txt", lines if figures else numberless(lines))
        self.data("charts.json", skeleton.charts, figures=figures)

    def check(self) -> None:
        """All at once.

        Raises:
            AssertionError: Something differs, or a file is no longer asked for.
        """
        for path in self._stored.iterdir() if self._stored.exists() else ():
            if path.name not in self._seen:
                path.unlink() if self._update else self._differences.append(f"{path}: not made now")
        hint = "If that is intended: pytest tests/golden --update-golden, and review the diff."
        assert not self._differences, "\n\n".join([*self._differences, hint])

    def _place(self, name: str) -> Path:
        self._seen.add(name)
        if self._update:
            self._stored.mkdir(parents=True, exist_ok=True)
        return self._stored / name


Compare = Callable[[str], Golden]
"""The fixture `golden`: gives the golden files of a name."""
