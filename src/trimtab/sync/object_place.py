"""An object store as the place of versions: S3 and others, through fsspec."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from threading import Lock
from time import sleep
from typing import Any, TypeVar

from trimtab.errors import MissingExtraError, SyncError, TrimtabError
from trimtab.extras import require
from trimtab.outputs import flat
from trimtab.sync.untrusted import (
    NAME,
    PIECE,
    LocalCopy,
    check_name,
    check_size,
    ensure_within,
)

PARALLEL = 4
"""Pieces that are fetched or put at the same time."""

PAUSE = 0.5
"""Seconds before a request is made once more, after the library has given up trying."""

FINAL = (PermissionError, ValueError, TypeError, NotImplementedError, ImportError)
"""Errors of an object store that would come again."""

SECRET = re.compile("key|secret|token|password|credential|sas|signature", re.IGNORECASE)
"""Names of options and environment variables whose values are never shown."""

MAX_PARTS = 9_000
"""Parts of one upload, of which S3 takes 10,000."""

_CLAIMING = Lock()
"""Held while an object is claimed: stores in memory look before they put."""

Result = TypeVar("Result")


class ObjectPlace:
    """An object store, through fsspec: S3 and what speaks like it, Google, Azure, memory.

    An object is replaced at once, as these stores do it. Listings and contents are asked for each
    time, from no cache. A request that fails is made again, a few times. `claim` is exact where the
    store can put an object only if there is none (`If-None-Match: *` of S3, and `memory://`, which
    is of one process); elsewhere it looks first.

    Args:
        url: `s3://bucket/run`.
        options: Of fsspec's file system.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self.url = re.sub("//[^/@]*@", "//", re.split("[?#]", url)[0])  # without a password
        self._scheme = url.partition("://")[0]
        self._secrets = _secrets(options) | _secrets(dict(os.environ))
        if "::" in url:
            raise SyncError(f"{self}: expected one URL, found a chain: a cache hides new versions")
        try:
            self._files, root = require("fsspec", "pip install fsspec").core.url_to_fs(
                url, skip_instance_cache=True, use_listings_cache=False, **options
            )
        except ImportError as error:
            needed = getattr(error.__cause__, "name", None) or error.name
            library = "'trimtab[s3]'" if needed == "s3fs" else needed
            raise MissingExtraError(
                f"{self._scheme}:// needs {needed}: run `pip install {library}`"
            ) from None
        except Exception as error:
            raise SyncError(f"{self} cannot be opened: {self._reason(error)}") from None
        self._root = root.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"ObjectPlace({self.url!r})"

    def read(self, name: str, limit: int) -> bytes | None:
        """The content of a small file; None without one."""
        return ensure_within(self, name, limit, self._start(name, limit + 1))

    def fetch(self, name: str, target: Path, num_bytes: int) -> bool:
        """Copy a file to a new local one; False without one."""
        path = self._path(name)
        with LocalCopy(target) as copy:
            size = self._try(lambda: self._size(path), name, "read")
            if size is None:
                return False
            check_size(self, name, size, num_bytes)
            while (start := copy.num_bytes) < num_bytes:
                end = min(start + PARALLEL * PIECE, num_bytes)
                pieces = self._try(partial(self._pieces, path, start, end), name, "read")
                if pieces is None:
                    return False
                for piece in pieces:
                    copy.write(piece)
                check_size(self, name, copy.num_bytes, end, "while it was read")
            copy.is_whole = True
        return True

    def put(self, name: str, content: bytes | Path) -> None:
        """Store a file, in place of one of that name."""
        path = self._path(name)

        def put() -> bool:
            if isinstance(content, bytes):
                self._files.pipe_file(path, content)
            elif self._scheme == "memory":  # its put_file shows half a file
                self._files.pipe_file(path, content.read_bytes())
            elif self._scheme in ("s3", "s3a"):
                size = max(PIECE, content.stat().st_size // MAX_PARTS + 1)
                self._files.put_file(str(content), path, chunksize=size, max_concurrency=PARALLEL)
            else:
                self._files.put_file(str(content), path)
            return True

        self._put(put, name)

    def claim(self, name: str, content: bytes) -> bool:
        """Store a file only if there is none of that name; whether it was stored."""
        path = self._path(name)

        def put() -> bool:
            try:
                self._files.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            except (NotImplementedError, OSError) as error:
                if isinstance(error, OSError) and error.errno != errno.ENOSYS:
                    raise
                if self._start(name, 1) is not None:
                    return False
                self._files.pipe_file(path, content)
            return True

        with _CLAIMING:
            return self._put(put, name) or self._start(name, len(content) + 1) == content

    def names(self, folder: str = "") -> Iterator[str]:
        """Names of the files that lie directly in a folder, without it."""
        path = self._path(folder) if folder else self._root

        def names() -> list[str]:
            self._files.invalidate_cache()
            found = [
                entry["name"].strip("/").rpartition("/")
                for entry in self._files.ls(path, detail=True)
                if entry["type"] == "file"
            ]
            below = path.strip("/")
            return sorted(name for at, _, name in found if at == below and NAME.fullmatch(name))

        yield from self._try(names, folder or "the folder", "listed") or ()

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        path = self._path(name)
        self._try(lambda: self._files.rm_file(path), name, "removed")

    def _path(self, name: str) -> str:
        check_name(self, name)
        return f"{self._root}/{name}"

    def _size(self, path: str) -> int:
        self._files.invalidate_cache()
        entry = self._files.info(path)
        if entry["type"] != "file":
            raise FileNotFoundError(path)
        return int(entry["size"])

    def _start(self, name: str, num_bytes: int) -> bytes | None:
        """The first bytes of a file; None without one."""
        path = self._path(name)

        def read() -> bytes:
            try:
                return self._files.cat_file(path, start=0, end=num_bytes)
            except OSError as error:
                if error.errno != errno.EINVAL or self._size(path) != 0:
                    raise
                return b""  # no range of an empty object is valid

        return self._try(read, name, "read")

    def _pieces(self, path: str, start: int, end: int) -> list[bytes]:
        """A part of a file, in pieces that are fetched at the same time."""
        starts = list(range(start, end, PIECE))
        ends = [*starts[1:], end]
        return self._files.cat_ranges([path] * len(starts), starts, ends, on_error="raise")

    def _put(self, put: Callable[[], bool], name: str) -> bool:
        done = self._try(put, name, "written")
        if done is None:
            raise SyncError(
                f"{self}: {name} cannot be written: the bucket or container does not exist: make it"
            )
        return done

    def _try(self, action: Callable[[], Result], name: str, verb: str) -> Result | None:
        """The result of an action; None if its file is not there."""
        problem: Exception
        for pause in (PAUSE, None):
            try:
                return action()
            except FileNotFoundError as error:
                if re.search("specified (bucket|container)", str(error)) is None:
                    return None
                problem = error
                break
            except TrimtabError:
                raise
            except Exception as error:
                problem = error
                if pause is None or _is_final(error):
                    break
                sleep(pause)
        cure = "check the network and the endpoint, and try again"
        if isinstance(problem, FileNotFoundError):
            cure = "make it, or mend the URL"
        elif isinstance(problem, PermissionError) or "redential" in type(problem).__name__:
            cure = (
                "give credentials that may read, write, list and delete there (without the right "
                "to list, S3 says this of what is not there, too)"
            )
        raise SyncError(
            f"{self}: {name} cannot be {verb}: {self._reason(problem)}: {cure}"
        ) from None

    def _reason(self, error: Exception) -> str:
        """What a library says, in one line without secrets."""
        text = " ".join(str(error).split())[:300] or type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text.rstrip(".:")


def _secrets(options: Mapping[str, Any]) -> set[str]:
    """Values of options that are never shown."""
    secrets = {str(value) for name, value in flat(options).items() if SECRET.search(name)}
    return {secret for secret in secrets if len(secret) > 5}  # not every "true"


def _is_final(error: Exception) -> bool:
    """Whether a request that failed so would fail again."""
    return (
        isinstance(error, FINAL)
        or "redential" in type(error).__name__
        or (isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.ENOSYS))
    )
