from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.errors import OutputExistsError
from trimtab.report.files import ensure_free, write_output


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


def test_a_folder_is_never_replaced(tmp_path: Path) -> None:
    for force in (False, True):
        with pytest.raises(OutputExistsError, match="is a folder"):
            ensure_free(tmp_path, force=force)


def test_a_dangling_link_is_in_the_way(tmp_path: Path) -> None:
    link = tmp_path / "report.html"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExistsError):
        ensure_free(link)


def test_an_interrupted_write_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cmp.json"
    path.write_text("old")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_output(path, "new", force=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_appears_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cmp.json"
    monkeypatch.setattr("os.fsync", lambda _: path.write_text("other"))
    with pytest.raises(OutputExistsError):
        write_output(path, "new")
    assert path.read_text() == "other"
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_is_not_unicode_is_escaped(tmp_path: Path) -> None:
    assert write_output(tmp_path / "a", "x\udc80").read_text() == "x\\udc80"
