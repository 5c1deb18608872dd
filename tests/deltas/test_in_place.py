"""A delta applied in place: killed at any point, a rerun completes it or nothing had changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import trimtab
from tests.deltas.building import content_of, moved, random_bits, write_folder
from tests.deltas.killing import killed_at_every_step
from tests.deltas.test_deltas import made, pair
from trimtab.errors import CheckpointError, DeltaError
from trimtab.outputs import lock

UNDO = {".trimtab-undo.delta", ".trimtab-undo.json"}


def test_there_and_back(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    delta = made(base, tuned, tmp_path / "x.delta")
    (base / "notes.md").write_text("mine")
    before = content_of(base)
    trimtab.apply_in_place(base, delta)
    assert content_of(base) == {**content_of(tuned), "notes.md": b"mine"}
    assert {path.name for path in base.iterdir() if path.name.startswith(".")} == UNDO
    with pytest.raises(DeltaError, match="the delta was applied before; nothing was changed"):
        trimtab.apply_in_place(base, delta)
    assert content_of(base) == {**content_of(tuned), "notes.md": b"mine"}
    trimtab.revert(base)
    assert content_of(base) == before
    with pytest.raises(DeltaError, match="no delta was applied to it in place"):
        trimtab.revert(base)


def test_revert_removes_the_files_that_were_added(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    (tuned / "chat_template.jinja").write_text("{{ messages }}")
    (tuned / "vocab.json").write_text("{}")
    (tuned / "merges.txt").write_text("a b")
    (base / "merges.txt").write_text("b a")
    before = content_of(base)
    trimtab.apply_in_place(base, made(base, tuned, tmp_path / "x.delta"))
    assert content_of(base) == content_of(tuned)
    (base / "vocab.json").write_text("mine")
    trimtab.revert(base)
    assert content_of(base) == {**before, "vocab.json": b"mine"}
    assert not UNDO.intersection(path.name for path in base.iterdir())


def test_links_become_files(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    before = content_of(base)
    (tmp_path / "links").mkdir()
    for path in base.iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    trimtab.apply_in_place(tmp_path / "links", made(base, tuned, tmp_path / "x.delta"))
    assert content_of(tmp_path / "links") == content_of(tuned)
    assert content_of(base) == before


def test_other_shards_in_place(tmp_path: Path) -> None:
    a, b = random_bits("BF16", (30, 8), 0), random_bits("F32", (5, 5), 1)
    base = write_folder(tmp_path / "base", {"a": ("BF16", a)}, {"b": ("F32", b)})
    tuned = write_folder(
        tmp_path / "tuned", {"b": ("F32", b), "a": ("BF16", moved(a, 0.3, 1))}, config={"x": 2}
    )
    before = content_of(base)
    trimtab.apply_in_place(base, made(base, tuned, tmp_path / "x.delta"))
    assert content_of(base) == content_of(tuned)
    trimtab.revert(base)
    assert content_of(base) == before


def test_without_undo_and_under_another_process(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    delta = made(base, tuned, tmp_path / "x.delta")
    with lock(base / ".trimtab-delta.lock"), pytest.raises(DeltaError, match="another process"):
        trimtab.apply_in_place(base, delta)
    with pytest.raises(DeltaError, match="nothing was interrupted there"):
        trimtab.apply_in_place(base)
    trimtab.apply_in_place(base, delta, keep_undo=False)
    assert content_of(base) == content_of(tuned)
    with pytest.raises(DeltaError, match="or without its undo file"):
        trimtab.revert(base)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills the children of a fork")
@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_killed_at_every_step(tmp_path: Path, verb: str) -> None:
    """Killed before each call that opens, renames or removes: what loads is one of the two."""
    base, tuned = pair(tmp_path, rows=6)
    delta = made(base, tuned, tmp_path / "x.delta")
    start = tmp_path / "start"
    shutil.copytree(base, start)
    work = f"trimtab.apply_in_place(folder, {str(delta)!r}, threads=1)"
    if verb == "revert":
        trimtab.apply_in_place(start, delta)
        work = "trimtab.revert(folder, threads=1)"
    old, new = content_of(start), content_of(base if verb == "revert" else tuned)
    killed, last = killed_at_every_step(start, tmp_path / "folders", work)
    assert content_of(last) == new
    assert len(killed) > 30
    ends = set()
    for folder in killed:
        found = content_of(folder)
        is_ready = (folder / ".trimtab-delta" / "ready.json").exists()
        ends.add("old" if found == old else "new" if found == new else "mixed")
        if "config.json" in found:
            assert found in (old, new)
        else:  # files of both, which nothing loads for want of a config
            assert is_ready
        if is_ready:
            trimtab.apply_in_place(folder)
        elif found == old and verb == "revert":
            trimtab.revert(folder)
        elif found == old:
            trimtab.apply_in_place(folder, delta)
        else:
            with pytest.raises(DeltaError, match="nothing was interrupted there"):
                trimtab.apply_in_place(folder)
        assert content_of(folder) == new
        hidden = {path.name for path in folder.iterdir() if path.name.startswith(".")}
        assert hidden in (set(), UNDO)
    assert ends == {"old", "new", "mixed"}


def test_a_damaged_delta_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    delta = made(base, tuned, tmp_path / "x.delta")
    content = bytearray(delta.read_bytes())
    content[-len(content) // 3] ^= 4
    delta.write_bytes(content)
    before = content_of(base)
    with pytest.raises((DeltaError, CheckpointError)):
        trimtab.apply_in_place(base, delta)
    assert content_of(base) == before
    assert not (base / ".trimtab-delta").exists()
