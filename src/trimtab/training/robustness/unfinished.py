"""The finished cells of a probe under way, in a file beside its result, so that it can go on.

The first line says what is probed with what, and where it computes: a cell is taken from the file
only where all of that is the same, since only then is it what would be measured again. Every other
line is a cell, on disk before the next one begins; a line that was cut short is measured again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from trimtab.errors import OutputExistsError, ResultFormatError
from trimtab.inputs import MAX_RESULT_BYTES, read_bytes
from trimtab.training.robustness.result import Cell
from trimtab.training.runs.dotted import differences

__all__ = ["Key", "Unfinished", "key_of"]

FORMAT = "trimtab.robustness.unfinished"
FORMAT_VERSION = 1
"""History: 1, the first."""

Key: TypeAlias = tuple[int, str, float, str]
"""Seed, noise, level and arm of a cell."""


def key_of(cell: Cell) -> Key:
    """Which cell it is."""
    return cell.seed, cell.noise, cell.level, cell.arm


class Unfinished:
    """The cells of a probe that are finished.

    Attributes:
        cells: By key.
    """

    def __init__(
        self,
        path: Path | None,
        probed: Mapping[str, Any],
        wanted: Iterable[Key],
        num_questions: int | None,
    ) -> None:
        """Begin, or go on with what an earlier call left.

        Args:
            path: Where the cells are kept; None to keep them in memory alone.
            probed: What is probed, with what and where; plain data.
            wanted: The cells that there will be.
            num_questions: Asked of each; None if none are.

        Raises:
            OutputExistsError: The file is of another probe.
            ResultFormatError: It is no such file, or a damaged one.
        """
        self.cells: dict[Key, Cell] = {}
        self._path = path
        if path is None:
            return
        opening = {"format": FORMAT, "format_version": FORMAT_VERSION, **probed}
        lines = _whole_lines(path)
        if lines:
            self.cells = _read(path, lines, json.loads(json.dumps(opening)), num_questions)
            if self.cells.keys() - set(wanted):
                raise _damaged(path, "cells that this probe does not have")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(opening)

    def add(self, cell: Cell) -> None:
        """Keep a finished cell."""
        self.cells[key_of(cell)] = cell
        self._append(cell.__dict__)

    def _append(self, row: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        with self._path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of a file, none if there is no file; one that was cut short is removed."""
    if not os.path.lexists(path):
        return []
    content = read_bytes(path, ResultFormatError, limit=MAX_RESULT_BYTES)
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
    return content[:end].splitlines()


def _read(
    path: Path, lines: list[bytes], opening: dict[str, Any], num_questions: int | None
) -> dict[Key, Cell]:
    try:
        found, *rows = map(json.loads, lines)
        if found["format"] != FORMAT:
            raise ValueError(f"the format {found['format']!r}")
        differ = differences(found, opening)
        cells = [] if differ else [Cell(**row) for row in rows]
        for cell in cells:
            cell.check(num_questions)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(path, repr(error)) from None
    if differ:
        raise OutputExistsError(
            f"{path} holds the finished part of a probe with {', '.join(differ)}: use the same to "
            "go on, or delete the file to begin anew"
        )
    return {key_of(cell): cell for cell in cells}


def _damaged(path: Path, why: str) -> ResultFormatError:
    return ResultFormatError(
        f"{path}: not the finished part of a probe, or a damaged one ({why}): delete the file to "
        "begin anew"
    )
