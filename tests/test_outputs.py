from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.errors import OutputExistsError
from trimtab.outputs import ensure_free, new_file, new_folder


def write(path: Path, content: bytes, *, force: bool = False) -> None:
    with new_file(path, force=force) as file:
        file.write(content)


def test_writes_exactly_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "m.safetensors"
    write(path, b"\r\n\0\xff")
    assert path.read_bytes() == b"\r\n\0\xff"
    assert list(path.parent.iterdir()) == [path]


def test_an_existing_file_stays_without_force(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"old")
    with pytest.raises(OutputExistsError, match="m exists already: add --force"):
        write(path, b"new")
    assert path.read_bytes() == b"old"
    write(path, b"new", force=True)
    assert path.read_bytes() == b"new"


def test_a_folder_is_never_replaced(tmp_path: Path) -> None:
    for force in (False, True):
        with pytest.raises(OutputExistsError, match="is a folder"):
            ensure_free(tmp_path, force=force)


def test_a_dangling_link_is_in_the_way(tmp_path: Path) -> None:
    link = tmp_path / "report.html"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExistsError):
        ensure_free(link)


def test_a_block_that_fails_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"old")

    def fail() -> None:
        with new_file(path, force=True) as file:
            file.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_appears_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m"
    monkeypatch.setattr("os.fsync", lambda _: path.write_text("other"))
    with pytest.raises(OutputExistsError):
        write(path, b"new")
    assert path.read_text() == "other"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with new_folder(target) as draft:
        (draft / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert list(target.parent.iterdir()) == [target]

    def fail() -> None:
        with new_folder(tmp_path / "other") as draft:
            (draft / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_a_folder_in_the_way_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(OutputExistsError, match="choose another folder"),
        new_folder(tmp_path / "out"),
    ):
        pass

    def late() -> None:
        with new_folder(tmp_path / "late"):
            (tmp_path / "late").mkdir()

    with pytest.raises(OutputExistsError):
        late()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["late", "out"]
