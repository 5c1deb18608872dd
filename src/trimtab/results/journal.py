"""Rows of JSON in a file that grows while long work goes on, one a line.

A process that is killed leaves whole lines, or behind them the beginning of one more, which is
removed before the file is added to.
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
    """A file of rows.

    Args:
        path: Where it is, or will be.
        error: What is raised if it cannot be read.
    """

    def __init__(self, path: Path, error: type[TrimtabError]) -> None:
        self.path = path
        self._error = error

    def begin(self, *rows: Mapping[str, Any]) -> None:
        """Write these rows, in the place of an old file."""
        with new_file(self.path, force=True) as file:
            file.write(_lines(rows))

    def lines(self) -> list[bytes]:
        """The whole lines, as JSON; none if there is no file."""
        if not os.path.lexists(self.path):
            return []
        return read_bytes(self.path, self._error, limit=MAX_DATA_BYTES).split(b"\n")[:-1]

    def keep(self, lines: Sequence[bytes]) -> None:
        """Remove all that comes after these, the first lines of the file."""
        os.truncate(self.path, sum(len(line) + 1 for line in lines))

    def append(self, *rows: Mapping[str, Any], syncs: bool = False) -> None:
        """Add rows, whole or not at all.

        Args:
            *rows: Plain data.
            syncs: Wait until they are on the disk.

        Raises:
            WriteError: There is no room for them.
        """
        append(self.path, _lines(rows), syncs=syncs)


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
