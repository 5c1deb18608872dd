"""A folder that carries its name is whole, and one altered by hand is not believed."""

from __future__ import annotations

from pathlib import Path

import pytest
import xxhash

from trimtab.errors import CheckpointError
from trimtab.outputs import new_folder
from trimtab.training.folders import WEIGHTS, read_json, read_record, seal, write_json


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    with new_folder(folder) as draft:
        (draft / WEIGHTS).write_bytes(b"weights")
        seal(draft, "run.json", {"steps": 3})
    return folder


def test_record_names_the_weights(sealed: Path) -> None:
    assert read_record(sealed, "run.json") == {
        "steps": 3,
        "weights": {
            "file": "model.safetensors",
            "num_bytes": 7,
            "xxh3_128": xxhash.xxh3_128_hexdigest(b"weights"),
        },
    }
    assert [path.name for path in sealed.parent.iterdir()] == ["model"]


def test_no_folder_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path / "none", "run.json") is None


def test_failed_attempt_leaves_no_folder_and_is_cleared_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt), new_folder(target) as draft:
        (draft / "half").touch()
        raise KeyboardInterrupt
    assert not target.exists()
    with new_folder(target) as draft:
        assert not list(draft.iterdir())
    assert target.is_dir()


def test_truncated_weights_are_refused(sealed: Path) -> None:
    (sealed / WEIGHTS).write_bytes(b"weight")
    with pytest.raises(CheckpointError, match=r"has 6 bytes, run.json says 7: delete or rename"):
        read_record(sealed, "run.json")


def test_altered_weights_are_refused(sealed: Path) -> None:
    (sealed / WEIGHTS).write_bytes(b"Weights")
    with pytest.raises(CheckpointError, match=r"was changed after run.json was written"):
        read_record(sealed, "run.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_unreadable_record_is_refused(sealed: Path, text: str) -> None:
    (sealed / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match="is not complete"):
        read_record(sealed, "run.json")


@pytest.mark.parametrize("name", [WEIGHTS, "run.json"])
def test_missing_file_is_refused(sealed: Path, name: str) -> None:
    (sealed / name).unlink()
    with pytest.raises(CheckpointError, match="is not complete"):
        read_record(sealed, "run.json")


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": "β"})
    assert read_json(path) == {"a": "β"}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
