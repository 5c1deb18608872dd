"""Write an output file, or a folder of them, whole or not at all.

The content goes to a draft beside the target, which then takes the target's name in one step: a
reader never sees half a file, and an interrupted write leaves the old one as it was. A writer holds
a lock on its draft. What a killed writer left behind has none, and goes when the same output is
written again.

A link is followed: the file that it leads to is written. What cannot be replaced without harm (a
terminal, `/dev/null`, a pipe) is written to; a disk is refused.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from time import sleep
from typing import Any, BinaryIO, cast

from trimtab.errors import OutputExistsError, TrimtabError, WriteError

if sys.platform == "win32":  # no locks: what a killed writer left stays
    fcntl: Any = None
else:
    import fcntl

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""How a system says that a file cannot grow."""

TORCH_FAILED = re.compile("inline_container.*(unexpected pos|failed writing)|iostream error")
"""How torch says that a file write failed."""

OPEN_FILE = re.compile(r"/dev/(?:std(?P<name>out|err)|fd/(?P<number>\d+))|/proc/self/fd/(\d+)")
"""Paths that name what this process has open already."""

STANDARD = {"out": 1, "err": 2}


def ensure_free(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Check that an output may be written, before the work whose result it would hold.

    Args:
        path: The file to be written.
        force: Whether an existing file may be replaced; a folder never is.

    Raises:
        OutputExistsError: Something is in the way.
    """
    if is_stream(path):
        return
    target = Path(path)
    if target.is_dir():
        raise OutputExistsError(f"{target} is a folder: give the name of a file")
    if target.is_block_device():
        raise OutputExistsError(f"{target} is a disk, which is never replaced: give a file")
    if not force and os.path.lexists(target):
        raise OutputExistsError(f"{target} exists already: add --force to replace it")


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a path is one to write to and not to replace: `/dev/stdout`, `/dev/null`, a pipe."""
    if OPEN_FILE.fullmatch(os.fspath(path)):
        return True
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def ensure_distinct(outputs: Mapping[str, str | os.PathLike[str] | None]) -> None:
    """Check that no two outputs of a command are one file, by whatever names.

    Args:
        outputs: What each is called -> where it goes; None is not written.

    Raises:
        OutputExistsError: One of them would replace another.
    """
    seen: dict[Any, str] = {}
    for name, path in outputs.items():
        if path is None or is_stream(path):
            continue
        if (other := seen.setdefault(_file_of(path), name)) != name:
            raise OutputExistsError(
                f"{other} and {name} are one file, {os.fspath(path)}: give each one of its own"
            )


def is_same_file(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two paths lead to one file, be it there yet or not."""
    return bool(_file_of(path) == _file_of(other))


def _file_of(path: str | os.PathLike[str]) -> Any:
    """What is the same for two paths of one file, be it there yet or not."""
    real = Path(os.path.realpath(path))
    for at, rest in ((real, ""), (real.parent, real.name)):
        with suppress(OSError):
            status = at.stat()
            return status.st_dev, status.st_ino, rest
    return real


@contextmanager
def new_file(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write to, which takes its name when the block succeeds.

    Missing parent folders are made. Where the path is a stream, what was written goes to it then.

    Args:
        path: The file to write.
        force: Replace an existing file.

    Raises:
        OutputExistsError: The file exists and `force` is not set, or the path is a folder.
        WriteError: There is no room for it.
    """
    ensure_free(path, force=force)
    if is_stream(path):
        with explain_no_room(path), tempfile.TemporaryFile() as buffer:
            yield cast(BinaryIO, buffer)
            buffer.seek(0)
            with _opened_stream(path) as stream:
                shutil.copyfileobj(buffer, stream)
        return
    target = Path(os.path.realpath(path))
    with explain_no_room(path), _draft_of(target) as draft, draft.open("r+b") as file:
        yield cast(BinaryIO, file)
        file.flush()
        os.fsync(file.fileno())
        ensure_free(path, force=force)  # it may have appeared while the draft was written
        draft.replace(target)


def write_text(path: str | os.PathLike[str], text: str, *, force: bool = False) -> None:
    """Write text as UTF-8, whole or not at all.

    Args:
        path: The file to write.
        text: Its content. Characters that UTF-8 cannot hold (from file names that are not text)
            are written as escapes.
        force: Replace an existing file.

    Raises:
        OutputExistsError: The file exists and `force` is not set, or the path is a folder.
        WriteError: There is no room for it.
    """
    with new_file(path, force=force) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder to fill, which takes its name when the block succeeds.

    Missing parent folders are made. A folder that exists is never replaced: it may hold anything.

    Args:
        path: The folder to make.

    Raises:
        OutputExistsError: Something is in the way.
        WriteError: There is no room for it.
    """
    target = Path(path)
    ensure_no_folder(target)
    with explain_no_room(target), _draft_of(target, is_folder=True) as draft:
        yield draft
        ensure_no_folder(target)  # it may have appeared while the draft was filled
        draft.rename(target)


def ensure_no_folder(path: str | os.PathLike[str]) -> None:
    """Check that a folder may be made, before the work whose result it would hold.

    Raises:
        OutputExistsError: Something is in the way.
    """
    if os.path.lexists(path):
        raise OutputExistsError(
            f"{os.fspath(path)} exists already: choose another folder, or delete it first"
        )


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value, of every entry that is no table; empty tables have none."""
    entries: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            entries |= flat(value, f"{prefix}{key}.")
        else:
            entries[f"{prefix}{key}"] = value
    return entries


def ensure_same_settings(
    previous: Any,
    wanted: Mapping[str, Any],
    *,
    holds: str,
    cure: str,
    error: type[TrimtabError] = OutputExistsError,
) -> None:
    """Check that what an output holds already was made with the settings of now.

    Args:
        previous: The settings that it was made with, as plain data; anything, if it was altered.
        wanted: Those of now.
        holds: What holds what: `OUT holds an unfinished run`.
        cure: What to do, if they differ.
        error: Class of the error.

    Raises:
        TrimtabError: Of the class `error`; it names every setting that differs.
    """
    before, now = flat(previous if isinstance(previous, Mapping) else {}), flat(wanted)
    differ = [
        f"{name}={before.get(name)!r} (now {now.get(name)!r})"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    ]
    if differ:
        raise error(f"{holds} with {', '.join(differ)}: {cure}")


def append(path: str | os.PathLike[str], content: bytes, *, syncs: bool = False) -> None:
    """Write at the end of a file, all or nothing.

    Args:
        path: The file.
        content: What to add.
        syncs: Return only when it is on disk.

    Raises:
        WriteError: There is no room.
    """
    with explain_no_room(path), Path(path).open("ab", buffering=0) as file:
        end, left = file.tell(), memoryview(content)
        try:
            while left:
                left = left[file.write(left) :]
            if syncs:
                os.fsync(file.fileno())
        except BaseException:
            os.truncate(path, end)
            raise


@contextmanager
def explain_no_room(path: str | os.PathLike[str], cure: str = "make room") -> Iterator[None]:
    """Name the file where there is no room for it, whatever library finds that out.

    Args:
        path: What is being written.
        cure: What to do.

    Raises:
        WriteError: The block failed for want of room.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, WriteError) or (why := _no_room(error)) is None:
            raise
        raise WriteError(f"{os.fspath(path)} cannot be written: {why}: {cure}") from error


def _no_room(error: BaseException) -> str | None:
    """How a system said that there is no room, if that is what an error comes from."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return os.strerror(error.errno).lower()
    # safetensors passes on what Rust says, torch only that a file write failed.
    if (match := re.search(r"\(os error (\d+)\)", str(error))) and int(match[1]) in NO_ROOM:
        return os.strerror(int(match[1])).lower()
    if isinstance(error, RuntimeError) and TORCH_FAILED.search(str(error)):
        return "no space left on device, as a rule"
    before = error.__cause__ or error.__context__
    return None if before is None else _no_room(before)


@contextmanager
def lock(path: Path, *, wait: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold a lock file while the block runs; it goes with the lock.

    A process that ends in any way lets go of what it holds. Where a file system has no locks,
    everybody is given one.

    Args:
        path: The file.
        wait: Asked, while another process holds it, whether to go on waiting.

    Yields:
        Whether it is held.
    """
    while True:
        with explain_no_room(path):
            number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _try_to_lock(number):
                if _is_still(path, number):
                    try:
                        yield True
                    finally:
                        path.unlink(missing_ok=True)
                    return
                continue  # its holder has just removed it
        finally:
            os.close(number)
        if not wait():
            yield False
            return
        sleep(0.1)


def is_draft(path: Path) -> bool:
    """Whether a name is one that `new_file`, `new_folder` or a run of version 0.1 gives a draft."""
    return re.fullmatch(r"\..+\.([0-9a-f]{8}\.tmp|partial)", path.name) is not None


@contextmanager
def _draft_of(target: Path, *, is_folder: bool = False) -> Iterator[Path]:
    """A new, locked draft beside a target, gone when the block ends unless it was renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(target)
    with ExitStack() as stack:
        while True:
            draft = target.with_name(f".{target.name[:100]}.{token_hex(4)}.tmp")
            if is_folder:
                draft.mkdir()
            else:
                draft.touch(exist_ok=False)
            stack.callback(_remove, draft)
            number = os.open(draft, os.O_RDONLY if is_folder else os.O_RDWR)
            stack.callback(os.close, number)
            _try_to_lock(number, waits=True)
            if _is_still(draft, number):  # not taken for one that was left, before it was locked
                break
        yield draft


def _remove_left(target: Path) -> None:
    """Remove the drafts of a target whose writers are gone."""
    if fcntl is None:
        return
    ours = re.compile(re.escape(f".{target.name[:100]}.") + r"[0-9a-f]{8}\.tmp")
    with suppress(OSError), os.scandir(target.parent) as entries:
        left = [entry for entry in entries if ours.fullmatch(entry.name) and not entry.is_symlink()]
        for entry in left:
            with suppress(OSError):
                number = os.open(entry.path, os.O_RDONLY if entry.is_dir() else os.O_RDWR)
                try:
                    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(Path(entry.path))
                finally:
                    os.close(number)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _try_to_lock(number: int, *, waits: bool = False) -> bool:
    """Lock an open file; also true where that cannot be done at all."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_still(path: Path, number: int) -> bool:
    """Whether a path is that of an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(number))
    except FileNotFoundError:
        return False


@contextmanager
def _opened_stream(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    match = OPEN_FILE.fullmatch(os.fspath(path))
    if match is None:
        with Path(path).open("wb") as stream:
            yield stream
        return
    sys.stdout.flush()
    sys.stderr.flush()
    number = STANDARD[match["name"]] if match["name"] else int(match["number"] or match[3])
    with open(number, "wb", closefd=False) as stream:
        yield stream
