"""What comes from a place of versions is not trusted: names, sizes, and files that are copied."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as short

from trimtab.errors import OutputExistsError, SyncError, TrimtabError
from trimtab.outputs import explain_no_room

NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}/){0,3}[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
"""A name that means the same file everywhere: no `..`, nothing hidden, no pattern, no escape."""

PIECE = 8 << 20
"""Bytes that are copied at once."""


class OtherFileError(SyncError):
    """A file has another size than it should have."""


class LocalCopy:
    """A new local file, which is removed unless `is_whole` is set when the block ends."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.is_whole = False
        self.num_bytes = 0

    def __enter__(self) -> LocalCopy:
        with self._explained():
            self._file = self.target.open("xb", buffering=0)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            with self._explained():
                self._file.close()
        except BaseException:
            self.is_whole = False
            raise
        finally:
            if kind is not None or not self.is_whole:
                self.target.unlink(missing_ok=True)

    def restart(self) -> None:
        """Write from the start."""
        with self._explained():
            self._file.seek(0)
            self._file.truncate()
        self.num_bytes = 0

    def write(self, piece: bytes) -> None:
        """Append bytes."""
        with self._explained():
            left = memoryview(piece)
            while left:
                left = left[self._file.write(left) :]
        self.num_bytes += len(piece)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with explain_no_room(self.target):
                yield
        except FileExistsError:
            raise OutputExistsError(
                f"{self.target} exists already: expected a new file to fetch to: delete it"
            ) from None
        except OSError as error:
            if isinstance(error, TrimtabError):
                raise
            raise SyncError(f"{self.target} cannot be written: {reason_of(error)}") from error


def check_name(place: object, name: str) -> None:
    """Refuse a name that could lead out of a place.

    Raises:
        SyncError: It is none.
    """
    if NAME.fullmatch(name) is None:
        raise SyncError(
            f"{place}: {short(name)} is no name of a file there: expected letters, digits, '_', "
            "'-' and '.', in folders below it: do not use this place, if you read it there"
        )


def check_size(place: object, name: str, size: int, expected: int, when: str = "") -> None:
    """Refuse a file of another size.

    Raises:
        OtherFileError: It has another one.
    """
    if size != expected:
        more = "more" if size > expected else f"{size:,}"
        raise OtherFileError(
            f"{place}: {name} has {more} bytes{when and ' '}{when}: expected {expected:,}: it was "
            "replaced or cut off: fetch it again, or publish it again"
        )


def ensure_within(place: object, name: str, limit: int, content: bytes | None) -> bytes | None:
    """The start of a file, if that is all of it."""
    if content is not None and len(content) > limit:
        raise SyncError(
            f"{place}: {name} is too long: expected at most {limit:,} bytes, found more: this run "
            "did not write it: do not use this place"
        )
    return content


def reason_of(error: OSError) -> str:
    """The reason of an error of the system."""
    return (error.strerror or str(error) or type(error).__name__).lower()
