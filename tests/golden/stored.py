"""Golden files: read, compared, and written again on request."""

from __future__ import annotations

import json
from difflib import unified_diff
from pathlib import Path
from typing import Any

from tests.golden.normal import packed, same, written

STORED = Path(__file__).parent / "stored"


class Golden:
    """The golden files of one name, and what differs from them.

    Args:
        name: Their folder below `stored/`.
        update: Write them instead.
    """

    def __init__(self, name: str, *, update: bool) -> None:
        self._folder = STORED / name
        self._update = update
        self._differences: list[str] = []
        self._seen: set[str] = set()

    def text(self, name: str, now: str) -> None:
        """Compare a text."""
        path = self._place(name)
        if self._update:
            path.write_text(now, encoding="utf-8")
        golden = path.read_text("utf-8") if path.exists() else ""
        lines = unified_diff(
            golden.splitlines(), now.splitlines(), str(path), "now", lineterm="", n=1
        )
        self._differences += ["\n".join(lines)] if golden != now else []

    def data(self, name: str, now: Any) -> None:
        """Compare plain data."""
        path, now = self._place(name), packed(now)
        if self._update:
            path.write_text(written(now), encoding="utf-8")
        golden = json.loads(path.read_text("utf-8")) if path.exists() else None
        difference = same(golden, now)
        self._differences += [f"{path}{difference}"] if difference else []

    def check(self) -> None:
        """All at once.

        Raises:
            AssertionError: Something differs, or a file is no longer asked for.
        """
        for path in self._folder.iterdir() if self._folder.exists() else ():
            if path.name not in self._seen:
                path.unlink() if self._update else self._differences.append(f"{path}: not made now")
        hint = "If that is intended: pytest tests/golden --update-golden, and review the diff."
        assert not self._differences, "\n\n".join([*self._differences, hint])

    def _place(self, name: str) -> Path:
        self._seen.add(name)
        if self._update:
            self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / name
