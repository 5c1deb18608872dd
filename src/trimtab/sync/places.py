"""Where versions are published: files under names, in a folder or an object store.

`open_place` takes a path or a URL. A reader sees each file whole or not at all, as it was before or
after it was replaced. What lies in a place is not trusted: names cannot lead out of it, links and
pipes are refused, and no more is read than was asked for.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from shutil import copyfileobj
from time import sleep
from typing import Any, Protocol, TypeVar
from urllib.request import url2pathname

from trimtab.errors import OutputExistsError, SyncError, TrimtabError
from trimtab.inputs import AnyPath, check_regular
from trimtab.outputs import NO_LINKS, NO_ROOM, new_file, remove_drafts
from trimtab.sync.object_place import ObjectPlace
from trimtab.sync.untrusted import (
    NAME,
    PIECE,
    LocalCopy,
    check_name,
    check_size,
    ensure_within,
    reason_of,
)

PAUSES = (0.1, 0.2, 0.4, 0.8)
"""Seconds after each try to read a file that was replaced meanwhile (NFS)."""

NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
"""Error numbers of a file that was never there, or was removed while it was read (NFS)."""

NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}
"""Error numbers of a place that this user may not read or write."""

Result = TypeVar("Result")


class Place(Protocol):
    """Files under names (`v000012.delta`, `followers/engine-0.json`), each whole or not there.

    What is put is never seen by half, and a name is put again only where this is said. `str(place)`
    is where it lies, for messages. Any method may raise SyncError: the place cannot be reached, or
    the name leads out of it.
    """

    def read(self, name: str, limit: int) -> bytes | None:
        """The content of a small file; None without one.

        Raises:
            SyncError: It is longer than `limit` bytes.
        """

    def fetch(self, name: str, target: Path, num_bytes: int) -> bool:
        """Copy a file to a new local one; False without one.

        At most `num_bytes` are read, and one more to see that it ends there.

        Raises:
            OutputExistsError: `target` exists.
            SyncError: It does not have `num_bytes` bytes; nothing is at `target` then.
            WriteError: There is no room for it; nothing is at `target` then.
        """

    def put(self, name: str, content: bytes | Path) -> None:
        """Store a file, in place of one of that name.

        Raises:
            WriteError: There is no room for it; a file of that name is as it was.
        """

    def claim(self, name: str, content: bytes) -> bool:
        """Store a file only if there is none of that name; whether it was stored.

        Of several that claim a name at the same time, one gets True. The content should be unlike
        that of others (a token): whoever finds its own there, has stored it.

        Raises:
            WriteError: There is no room for it.
        """

    def names(self, folder: str = "") -> Iterator[str]:
        """Names of the files that lie directly in a folder, without it."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


def open_place(where: AnyPath, **options: Any) -> Place:
    """Open a place where versions are published.

    Args:
        where: A folder, which need not exist yet, or the URL of one in an object store:
            `s3://bucket/run`, `gs://`, `az://`, `memory://`, whatever fsspec opens.
        options: Of fsspec's file system, for a URL: `endpoint_url`, `key`, `secret`, ... By
            default they come from the environment, as for the store's own tools.

    Raises:
        MissingExtraError: The library for this kind of URL is not installed.
        SyncError: No such place can be opened.
    """
    location = os.fspath(where)
    scheme, separator, rest = location.partition("://")
    if separator and scheme not in ("file", "local"):
        return ObjectPlace(location, **options)
    if options:
        raise SyncError(
            f"{location} is a folder, which takes no options: found {', '.join(sorted(options))}"
        )
    return FolderPlace(url2pathname(rest) if separator else location)


class FolderPlace:
    """A folder, on a local disk or shared by the network (NFS).

    A file gets its name by a rename, once it is on disk. Links within the folder are refused, as is
    all else that is no file. What is replaced while it is read, is read again; what is removed
    then, is not there.

    Args:
        folder: The folder; made when the first file is put there.
    """

    def __init__(self, folder: AnyPath) -> None:
        self.folder = Path(folder)
        self._is_swept = False

    def __str__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"FolderPlace({str(self)!r})"

    def read(self, name: str, limit: int) -> bytes | None:
        """The content of a small file; None without one."""
        return ensure_within(self, name, limit, self._start(name, limit + 1))

    def fetch(self, name: str, target: Path, num_bytes: int) -> bool:
        """Copy a file to a new local one; False without one."""

        def fetch() -> bool:
            copy.restart()
            with self._opened(name) as file:
                check_size(self, name, os.fstat(file.fileno()).st_size, num_bytes)
                for piece in _pieces(file, num_bytes):
                    copy.write(piece)
                size = copy.num_bytes + len(file.read(1))
                check_size(self, name, size, num_bytes, "while it was read")
            return True

        with LocalCopy(target) as copy:
            copy.is_whole = self._try(fetch, name, "read") is not None
        return copy.is_whole

    def put(self, name: str, content: bytes | Path) -> None:
        """Store a file, in place of one of that name."""
        self._write(name, content, force=True)

    def claim(self, name: str, content: bytes) -> bool:
        """Store a file only if there is none of that name; whether it was stored."""
        try:
            self._write(name, content, force=False)
        except OutputExistsError:
            return self._start(name, len(content) + 1) == content
        return True

    def names(self, folder: str = "") -> Iterator[str]:
        """Names of the files that lie directly in a folder, without it."""

        def names() -> list[str]:
            with os.scandir(self._path(folder) if folder else self.folder) as entries:
                return sorted(
                    entry.name
                    for entry in entries
                    if entry.is_file(follow_symlinks=False) and NAME.fullmatch(entry.name)
                )

        yield from self._try(names, folder or "the folder", "listed") or ()

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._try(self._path(name).unlink, name, "removed")

    def _start(self, name: str, num_bytes: int) -> bytes | None:
        """The first bytes of a file; None without one."""

        def read() -> bytes:
            with self._opened(name) as file:
                return b"".join(_pieces(file, num_bytes))

        return self._try(read, name, "read")

    def _path(self, name: str) -> Path:
        """The path of a file, which is below the folder, with no link in between."""
        check_name(self, name)
        path = self.folder
        for part in name.split("/"):
            path /= part
            if path.is_symlink():
                raise self._error_of_link(path)
        return path

    def _error_of_link(self, path: Path) -> SyncError:
        return SyncError(
            f"{self}: {path.relative_to(self.folder).as_posix()} is a link, which may lead "
            "anywhere: expected a file or folder: delete it, or use another place"
        )

    def _opened(self, name: str) -> FileIO:
        """A file, opened without following a link or waiting for a writer."""
        path = self._path(name)
        try:
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | NO_LINKS)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._error_of_link(path) from None
            raise
        try:
            check_regular(os.fstat(number), path, SyncError)
        except BaseException:
            os.close(number)
            raise
        return FileIO(number)

    def _write(self, name: str, content: bytes | Path, *, force: bool) -> None:
        path = self._path(name)
        with self._explained(name, "written"):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if path.parent == self.folder and not self._is_swept:
                remove_drafts(self.folder)  # of a publisher that was killed
                self._is_swept = True
            with new_file(path, force=force) as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    with content.open("rb") as source:
                        copyfileobj(source, file, PIECE)
            _sync_folder(path.parent)

    def _try(self, action: Callable[[], Result], name: str, verb: str) -> Result | None:
        """The result of an action; None if its file is not there."""
        with self._explained(name, verb):
            for pause in PAUSES:
                try:
                    return action()
                except OSError as error:
                    if isinstance(error, TrimtabError) or error.errno not in NOT_THERE:
                        raise
                    if error.errno != errno.ESTALE:
                        return None
                    sleep(pause)  # its name leads to another file by now
        return None

    @contextmanager
    def _explained(self, name: str, verb: str) -> Iterator[None]:
        """Turn an error of the file system into one that names the place and the file."""
        try:
            yield
        except OSError as error:
            if isinstance(error, TrimtabError) or error.errno in NO_ROOM:
                raise
            cure = "try again once the folder can be reached"
            if error.errno in NO_RIGHT:
                cure = "this user needs the right to do so"
            elif error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
                cure = "expected a file in a folder: delete what is in its way"
            raise SyncError(
                f"{self}: {name} cannot be {verb}: {reason_of(error)}: {cure}"
            ) from error


def _pieces(file: FileIO, most: int) -> Iterator[bytes]:
    """The first bytes of a file, at most as many as are named."""
    while most > 0 and (piece := file.read(min(most, PIECE))):
        most -= len(piece)
        yield piece


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk, where the file system does so on request."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
