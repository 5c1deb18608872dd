"""Where versions are published: files under names, in a folder or an object store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol


class Place(Protocol):
    """Files under names (`v000012.delta`, `followers/engine-0.json`), each whole or not there.

    What is put is never seen by half, and a name is put again only where this is said. Any method
    may raise SyncError: the place cannot be reached, or the name leads out of it.
    """

    def read(self, name: str, limit: int) -> bytes | None:
        """The content of a small file; None without one.

        Raises:
            SyncError: It is longer than `limit` bytes.
        """

    def fetch(self, name: str, target: Path, num_bytes: int) -> bool:
        """Copy a file to a new local one; False without one.

        At most `num_bytes` are read.

        Raises:
            SyncError: It does not have `num_bytes` bytes; nothing is at `target` then.
        """

    def put(self, name: str, content: bytes | Path) -> None:
        """Store a file, in place of one of that name."""

    def names(self, folder: str = "") -> Iterator[str]:
        """Names of the files that lie directly in a folder, without it."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
