"""Write a file of tracked updates, point by point, while a run goes on.

A point is one write at the end of the file: a run that is killed leaves the file with its last
whole point, or with a piece of the next that readers pass over and a resumed run cuts off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.compare.tracked_file import FORMAT_VERSION, MAGIC, pack_record
from trimtab.outputs import append, new_file

__all__ = ["UpdateFile"]


class UpdateFile:
    """A file of tracked updates that grows. It is open only while it is written to."""

    def __init__(self, path: Path, version: int = FORMAT_VERSION) -> None:
        self._path = path
        self._version = version

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> UpdateFile:
        """Write a new file, in the place of an old one.

        Args:
            path: Where to.
            header: Plain data.
        """
        content = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
        with new_file(path, force=True) as file:
            file.write(MAGIC + pack_record(content, len(MAGIC)))
        return cls(path)

    @classmethod
    def go_on(cls, path: Path, end: int, version: int) -> UpdateFile:
        """Write points after a byte of a file; what lies beyond is cut off."""
        os.truncate(path, end)
        return cls(path, version)

    def append(self, content: bytes) -> None:
        """Write a record, or nothing.

        Raises:
            WriteError: There is no room for it.
        """
        append(self._path, pack_record(content, self._path.stat().st_size, self._version))
