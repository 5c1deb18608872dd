"""Text files; that they are written whole or not at all is tested in `tests/test_outputs.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.errors import OutputExistsError
from trimtab.report.files import write_output


def test_writes_exactly_the_text(tmp_path: Path) -> None:
    path = write_output(tmp_path / "new" / "report.html", "a\nü − 1\n")
    assert path.read_bytes() == "a\nü − 1\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_an_existing_file_stays_without_force(tmp_path: Path) -> None:
    path = tmp_path / "cmp.json"
    path.write_text("old")
    with pytest.raises(OutputExistsError, match=r"cmp\.json exists already: add --force"):
        write_output(path, "new")
    assert path.read_text() == "old"
    write_output(path, "new", force=True)
    assert path.read_text() == "new"


def test_text_that_is_not_unicode_is_escaped(tmp_path: Path) -> None:
    assert write_output(tmp_path / "a", "x\udc80").read_text() == "x\\udc80"
