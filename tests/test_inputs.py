"""Files of strangers: what is no file is refused at once, and nothing is read without a limit."""

from __future__ import annotations

import ast
import os
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trimtab
from trimtab import inputs
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.checkpoints.folder import check_files
from trimtab.errors import CheckpointError, ResultFormatError, SettingsError, TrimtabError

GIB = 1 << 30


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path)


def dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 3 * GIB)


def plug(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # a socket's path has at most 108 bytes
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(before)


ODD: dict[Callable[[Path], None], str] = {
    pipe: "expected a file, found a pipe",
    device: "expected a file, found a device",
    Path.mkdir: "expected a file, found a folder",
    plug: r"cannot be read \(No such device",
    loop: r"cannot be read \(Too many levels",
    dangling: "no such file",
    sparse: "too long: it has 3221225472 bytes",
}

READERS: dict[str, tuple[Callable[[Path], Any], type[TrimtabError]]] = {
    "text": (lambda path: inputs.read_text(path, SettingsError, limit=GIB), SettingsError),
    "json": (lambda path: inputs.read_json(path, ResultFormatError), ResultFormatError),
    "toml": (lambda path: inputs.read_toml(path, SettingsError), SettingsError),
    "trajectory": (trimtab.Trajectory.load, ResultFormatError),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "odd"
    make(path)
    read, error = READERS[name]
    tracemalloc.start()
    with pytest.raises(error, match=ODD[make]) as caught:
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert peak < 4_000_000


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("make", [make for make in ODD if make is not sparse])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "shard"]
)
def test_weights_that_are_no_file(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if name == "shard":
        index = '{"weight_map": {"w": "a.safetensors"}}'
        (folder / "model.safetensors.index.json").write_text(index)
        make(folder / "a.safetensors")
    else:
        make(folder / name)
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("make", ODD)
def test_a_config_that_is_no_file_is_not_taken_for_absent(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=ODD[make]):
        open_checkpoint(tmp_path)


def test_a_pipe_among_what_transformers_reads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    check_files(tmp_path)
    pipe(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: expected a file, found a pipe"):
        check_files(tmp_path)


def test_a_name_with_a_nul(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        inputs.read_toml(f"{tmp_path}/a\0b", SettingsError)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' appears twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": [-Infinity]}', "-Infinity is not a JSON number"),
        ('{"a": 1e999}', "1e999 is too large a number"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "limit"),
        ("", "Expecting value"),
    ],
)
def test_what_readers_take_differently_is_no_json(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        inputs.parse_json(text, strict=True)


def test_configurations_of_the_hub_have_infinities(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"limit": [0.0, Infinity], "a": 1, "a": 2}')
    assert inputs.read_json(tmp_path / "config.json", CheckpointError)["a"] == 2


def test_nothing_else_opens_files_for_their_text() -> None:
    """Files of the package, files that were just written and append-only files are no strangers."""
    source = Path(trimtab.__file__).parent
    own = {
        "example.py",  # its own files again
        *("report/html.py", "report/figures.py", "training/runtime.py"),
        *("papers/bases.py", "papers/cells.py", "papers/training.py", "papers/measuring.py"),
        *("papers/run.py", "sync/object_place.py"),
    }
    for path in sorted(source.rglob("*.py")):
        name = path.relative_to(source).as_posix()
        found = {
            node.func.attr
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if node.func.attr in ("read_text", "read_bytes")
            and not ast.unparse(node.func.value).startswith(("inputs", "files("))
        }
        assert not found or name in own, f"{name} calls {found}: use trimtab.inputs"
