from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trimtab.errors import OutputExistsError, WriteError
from trimtab.outputs import (
    append,
    ensure_distinct,
    ensure_free,
    is_draft,
    is_stream,
    lock,
    new_file,
    new_folder,
    write_text,
)


def write(path: Path, content: bytes, *, force: bool = False) -> None:
    with new_file(path, force=force) as file:
        file.write(content)


def test_writes_exactly_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "m.safetensors"
    write(path, b"\r\n\0\xff")
    assert path.read_bytes() == b"\r\n\0\xff"
    assert list(path.parent.iterdir()) == [path]


def test_text_is_utf_8_and_what_is_not_unicode_is_escaped(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a", "a\nü − 1\n")
    assert (tmp_path / "new" / "a").read_bytes() == "a\nü − 1\n".encode()
    write_text(tmp_path / "b", "x\udc80")
    assert (tmp_path / "b").read_text() == "x\\udc80"


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


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there" / "m", tmp_path / "link"
    link.symlink_to(real)
    write(link, b"new", force=True)  # it leads nowhere yet
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    with pytest.raises(OutputExistsError, match="link exists already"):
        write(link, b"newer")
    write(link, b"newer", force=True)
    assert real.read_bytes() == b"newer"
    assert {path.name for path in tmp_path.iterdir()} == {"there", "link"}
    assert list((tmp_path / "there").iterdir()) == [real]


def test_a_stream_is_written_to_and_stays(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    write(fifo, b"through", force=True)
    reader.join()
    assert read == [b"through"]
    assert is_stream(fifo)
    for force in (False, True):
        write(Path("/dev/null"), b"away", force=force)
        assert Path("/dev/null").is_char_device()


def test_what_is_open_already_is_written_to_and_not_emptied(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    message = (
        "from trimtab.outputs import new_file\n"
        "with new_file('/dev/stdout') as file: file.write(b'result')"
    )
    with log.open("ab") as file:
        subprocess.run([sys.executable, "-c", message], stdout=file, check=True)
    assert log.read_text() == "before\nresult"


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    file, link, hard = tmp_path / "a", tmp_path / "link", tmp_path / "hard"
    (tmp_path / "folder").symlink_to(tmp_path)
    ensure_distinct({"-o": file, "--html": tmp_path / "b", "--survivors": None})
    ensure_distinct({"-o": "/dev/null", "--html": "/dev/null"})
    same = "-o and --html are one file"
    for other in (file, tmp_path / "folder" / "a", f"{tmp_path}/./a"):
        with pytest.raises(OutputExistsError, match=same):
            ensure_distinct({"-o": file, "--html": other})
    file.touch()
    link.symlink_to(file)
    hard.hardlink_to(file)
    for other in (link, hard):
        with pytest.raises(OutputExistsError, match=same):
            ensure_distinct({"-o": file, "--html": other})


WRITER = """
import sys
from trimtab.outputs import new_file, new_folder
def write(file):
    file.write(b"half")
    file.flush()
def fill(folder):
    (folder / "half").write_text("half")
how, fill = {"file": (new_file, write), "folder": (new_folder, fill)}[sys.argv[1]]
with how(sys.argv[2]) as draft:
    fill(draft)
    print("begun", flush=True)
    sys.stdin.read()
"""


@contextmanager
def writing(kind: str, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has begun an output, and ends it when its input does."""
    command = [sys.executable, "-c", WRITER, kind, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_goes_and_that_of_a_living_one_stays(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "out"
    strangers = [tmp_path / ".out.tmp", tmp_path / ".other.0123abcd.tmp", tmp_path / ".out.x.tmp"]
    for stranger in strangers:
        stranger.write_text("not ours")
    with writing(kind, path) as killed:
        killed.kill()
    (left,) = {file for file in tmp_path.iterdir() if file not in strangers}
    assert is_draft(left)
    with writing(kind, path):
        (under_way,) = {file for file in tmp_path.iterdir() if file not in strangers}
        assert under_way != left
        if kind == "file":
            write(path, b"whole")  # does not touch what the other writes
        else:
            with new_folder(path):
                pass
        assert under_way.exists()
    # The other found the name taken, and took its draft away.
    assert {file for file in tmp_path.iterdir() if file not in strangers} == {path}


def test_a_lock_is_held_by_one_and_goes_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with lock(path) as mine:
        assert mine
        with lock(path) as yours:
            assert not yours
    assert not path.exists()
    held = (
        "import sys; from pathlib import Path; from trimtab.outputs import lock\n"
        "with lock(Path(sys.argv[1])) as mine: print(mine, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", held, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"True\n"
        with lock(path) as mine:
            assert not mine
        asked: list[bool] = []

        def wait() -> bool:
            process.send_signal(signal.SIGKILL)
            asked.append(True)
            return True

        with lock(path, wait=wait) as mine:
            assert mine
        assert asked


@contextmanager
def room(num_bytes: int) -> Iterator[None]:
    """Files of this process cannot become longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_for_which_there_is_no_room_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"old")
    with room(1000), pytest.raises(WriteError, match="m cannot be written: file too large: make"):
        write(path, bytes(2000), force=True)
    with room(1000), pytest.raises(WriteError, match="m cannot be written"):
        append(path, bytes(2000))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(WriteError, match="/dev/full cannot be written: no space left on device"):
        write(Path("/dev/full"), b"new")
    append(path, b" and new")
    assert path.read_bytes() == b"old and new"


@pytest.mark.parametrize("library", ["safetensors", "torch", "json"])
def test_whatever_library_finds_that_there_is_no_room(library: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    def fill(folder: Path) -> None:
        tensors = {"a": torch.zeros(1000)}
        if library == "safetensors":
            save_file(tensors, folder / "model.safetensors")
        elif library == "torch":
            torch.save(tensors, folder / "optimizer.pt")
        else:
            with (folder / "state.json").open("w") as file:
                file.write("0" * 4000)

    def make() -> None:
        with new_folder(tmp_path / "out") as folder:
            fill(folder)

    with room(1000), pytest.raises(WriteError, match=r"out cannot be written: (file|no space)"):
        make()
    assert list(tmp_path.iterdir()) == []
