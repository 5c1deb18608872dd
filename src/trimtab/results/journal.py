"""JSON Lines files that grow during a long computation.

A process that is killed may leave an incomplete last line, which is removed before the next append.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.inputs import MAX_DATA_BYTES, read_bytes
from trimtab.outputs import append, new_file


class Journal:
    """A JSON Lines file.

    Args:
        path: The file, which need not exist.
        error: Raised if it cannot be read.
    """

    def __init__(self, path: Path, error: type[TrimtabError]) -> None:
        self.path = path
        self._error = error

    def begin(self, *rows: Mapping[str, Any]) -> None:
        """Replace the file by these rows."""
        with new_file(self.path, force=True) as file:
            file.write(_lines(rows))

    def lines(self) -> list[bytes]:
        """The complete lines; empty if there is no file."""
        if not os.path.lexists(self.path):
            return []
        return read_bytes(self.path, self._error, limit=MAX_DATA_BYTES).split(b"\n")[:-1]

    def keep(self, lines: Sequence[bytes]) -> None:
        """Truncate the file after these lines, its first ones."""
        os.truncate(self.path, sum(len(line) + 1 for line in lines))

    def append(self, *rows: Mapping[str, Any], syncs: bool = False) -> None:
        """Append rows, all or none.

        Args:
            *rows: Plain data.
            syncs: Wait until they are on disk.

        Raises:
            WriteError: The disk is full.
        """
        append(self.path, _lines(rows), syncs=syncs)


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
