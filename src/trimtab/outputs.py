"""Write an output file or folder whole or not at all.

The content goes to a draft in the same folder, which is renamed to the target at the end: a reader
never sees half a file, and an interrupted write leaves the old one unchanged. A writer locks its
draft; drafts without a lock, left by killed writers, are removed when the same output is written
again. Links are followed. Terminals, `/dev/null` and pipes are written to; disks are refused.
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

if sys.platform == "win32":  # no locks: drafts of killed writers stay
    fcntl: Any = None
else:
    import fcntl

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers of a file that cannot grow."""

TORCH_FAILED = re.compile("inline_container.*(unexpected pos|failed writing)|iostream error")
"""Messages of torch for a failed write."""

OPEN_FILE = re.compile(r"/dev/(?:std(?P<name>out|err)|fd/(?P<number>\d+))|/proc/self/fd/(\d+)")
"""Paths of files that this process has open already."""

STANDARD = {"out": 1, "err": 2}

NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
"""Flag to refuse a link, where there is one."""


def ensure_free(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Check that an output may be written, before the work that produces it.

    Args:
        path: The file to be written.
        force: Whether an existing file may be replaced; a folder never is.

    Raises:
        OutputExistsError: The path exists.
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
    """Whether a path is written to rather than replaced: `/dev/stdout`, `/dev/null`, a pipe."""
    if OPEN_FILE.fullmatch(os.fspath(path)):
        return True
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def ensure_distinct(outputs: Mapping[str, str | os.PathLike[str] | None]) -> None:
    """Check that no two outputs of a command are the same file under different names.

    Args:
        outputs: Name of each output -> its path; None is not written.

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
    """Whether two paths lead to one file, which need not exist yet."""
    return bool(_file_of(path) == _file_of(other))


def _file_of(path: str | os.PathLike[str]) -> Any:
    """A key that two paths of one file share, whether or not it exists yet."""
    real = Path(os.path.realpath(path))
    for at, rest in ((real, ""), (real.parent, real.name)):
        with suppress(OSError):
            status = at.stat()
            return status.st_dev, status.st_ino, rest
    return real


@contextmanager
def new_file(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write to, which takes its name when the block succeeds.

    Missing parent folders are created. If the path is a stream, the content is copied to it at the
    end.

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
        if not force:
            with suppress(OSError):  # it may have appeared while the draft was written
                os.link(draft, target)  # which replaces nothing, unlike a rename
                return
        ensure_free(path, force=force)
        draft.replace(target)


def write_text(path: str | os.PathLike[str], text: str, *, force: bool = False) -> None:
    """Write text as UTF-8, whole or not at all.

    Args:
        path: The file to write.
        text: Its content. Characters that UTF-8 cannot encode (from file names that are not text)
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

    Missing parent folders are created. An existing folder is never replaced: it may contain
    anything.

    Args:
        path: The folder to create.

    Raises:
        OutputExistsError: The path exists.
        WriteError: There is no room for it.
    """
    target = Path(path)
    ensure_no_folder(target)
    with explain_no_room(target), _draft_of(target, is_folder=True) as draft:
        yield draft
        ensure_no_folder(target)  # it may have appeared while the draft was filled
        draft.rename(target)


@contextmanager
def scratch_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder to work in, beside a path and hidden; removed when the block ends.

    One that a killed process left is removed when the same path is given again, or by
    `remove_drafts`.

    Raises:
        WriteError: There is no room for what is written there.
    """
    with explain_no_room(path), _draft_of(Path(path), is_folder=True) as draft:
        yield draft


def remove_drafts(folder: Path) -> None:
    """Remove all drafts in a folder whose writers no longer run."""
    _remove_left(folder, is_draft)


def ensure_no_folder(path: str | os.PathLike[str]) -> None:
    """Check that a folder may be created, before the work that fills it.

    Raises:
        OutputExistsError: The path exists.
    """
    if os.path.lexists(path):
        raise OutputExistsError(
            f"{os.fspath(path)} exists already: choose another folder, or delete it first"
        )


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables to dotted name -> value; empty tables are dropped."""
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
    """Check that an existing output was made with the current settings.

    Args:
        previous: The settings that it was made with, as plain data; anything, if it was altered.
        wanted: The current settings.
        holds: Start of the message: `OUT holds an unfinished run`.
        cure: What to do if they differ.
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
    """Append to a file, all or nothing.

    Args:
        path: The file.
        content: The bytes to append.
        syncs: Return only when they are on disk.

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
    """Turn the error of a full disk, of whatever library, into one that names the file.

    Args:
        path: The file that is being written.
        cure: What to do.

    Raises:
        WriteError: The block failed because there was no room.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, WriteError) or (why := _no_room(error)) is None:
            raise
        raise WriteError(f"{os.fspath(path)} cannot be written: {why}: {cure}") from error


def _no_room(error: BaseException) -> str | None:
    """The reason of an error that comes from a full disk, a quota or a limit; else None."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return os.strerror(error.errno).lower()
    # safetensors passes on the message of Rust; torch says only that a write failed.
    if (match := re.search(r"\(os error (\d+)\)", str(error))) and int(match[1]) in NO_ROOM:
        return os.strerror(int(match[1])).lower()
    if isinstance(error, RuntimeError) and TORCH_FAILED.search(str(error)):
        return "no space left on device, as a rule"
    before = error.__cause__ or error.__context__
    return None if before is None else _no_room(before)


@contextmanager
def lock(path: Path, *, wait: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold a lock file while the block runs, and remove it afterwards.

    A process that ends in any way releases its locks. On a file system without locks, every process
    gets one.

    Args:
        path: The file.
        wait: Called while another process holds it; returns whether to keep waiting.

    Yields:
        Whether it is held.
    """
    while True:
        with explain_no_room(path):
            number = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o666)
        try:
            if _try_to_lock(number):
                if _is_still(path, number):
                    try:
                        yield True
                    finally:
                        path.unlink(missing_ok=True)
                    return
                continue  # its holder has just removed the file
        finally:
            os.close(number)
        if not wait():
            yield False
            return
        sleep(0.1)


def is_draft(path: Path) -> bool:
    """Whether a name is that of a draft, of this version or of a run of version 0.1."""
    return re.fullmatch(r"\..+\.([0-9a-f]{8}\.tmp|partial)", path.name) is not None


@contextmanager
def _draft_of(target: Path, *, is_folder: bool = False) -> Iterator[Path]:
    """Yield a new, locked draft next to a target; removed at the end unless it was renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    name = re.escape(f".{target.name[:100]}.") + r"[0-9a-f]{8}\.tmp"
    _remove_left(target.parent, lambda path: re.fullmatch(name, path.name) is not None)
    with ExitStack() as stack:
        while True:
            draft = target.with_name(f".{target.name[:100]}.{token_hex(4)}.tmp")
            if is_folder:
                draft.mkdir()
            else:
                draft.touch(exist_ok=False)
            stack.callback(_remove, draft)
            try:
                number = os.open(draft, os.O_RDONLY if is_folder else os.O_RDWR)
            except FileNotFoundError:  # another writer took it for one that was left
                continue
            stack.callback(os.close, number)
            _try_to_lock(number, waits=True)
            if _is_still(draft, number):  # no other writer removed it before it was locked
                break
        yield draft


def _remove_left(folder: Path, is_ours: Callable[[Path], bool]) -> None:
    """Remove the drafts of a folder, of those that are meant, whose writers no longer run."""
    if fcntl is None:
        return
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if path.is_symlink() or not is_ours(path):
                continue
            with suppress(OSError):
                number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
                try:
                    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(path)
                finally:
                    os.close(number)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _try_to_lock(number: int, *, waits: bool = False) -> bool:
    """Lock an open file; True also where locks are not supported."""
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
    """Whether a path still leads to an open file."""
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
