"""The finished cells of a probe under way, in a file beside its result, so that it can go on.

The first line says what is probed with what, and where it computes: a cell is taken from the file
only where all of that is the same, since only then is it what would be measured again. Every other
line is a cell, on disk before the next one begins; a line that was cut short is measured again.
A file that does not begin so is somebody else's, and is refused as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from trimtab.errors import OutputExistsError, ResultFormatError
from trimtab.inputs import MAX_RESULT_BYTES, open_regular, read_bytes
from trimtab.outputs import append, lock, new_file
from trimtab.results.schema import from_plain
from trimtab.training.robustness.result import Cell
from trimtab.training.runs.dotted import differences

__all__ = ["Key", "Unfinished", "held", "key_of"]

FORMAT = "trimtab.robustness.unfinished"
FORMAT_VERSION = 1
"""History: 1, the first."""

Key: TypeAlias = tuple[int, str, float, str]
"""Seed, noise, level and arm of a cell."""


def key_of(cell: Cell) -> Key:
    """Which cell it is."""
    return cell.seed, cell.noise, cell.level, cell.arm


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other processes from the file of a probe while the block runs.

    Raises:
        OutputExistsError: Another one has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.with_name(f".{path.name}.lock")) as mine:
        if not mine:
            raise OutputExistsError(f"{path}: another process is at this probe: wait for it to end")
        yield


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
        first = _line(opening)
        is_ours = _is_ours(path)
        content = read_bytes(path, ResultFormatError, limit=MAX_RESULT_BYTES) if is_ours else b""
        if first.startswith(content):  # also what is left of a first line that was cut short
            with new_file(path, force=True) as file:
                file.write(first)
            return
        end = content.rfind(b"\n") + 1
        lines = content[:end].splitlines()
        self.cells = _read(path, lines, json.loads(first), num_questions)
        if self.cells.keys() - set(wanted):
            raise _damaged(path, "cells that this probe does not have")
        os.truncate(path, end)

    def add(self, cell: Cell) -> None:
        """Keep a finished cell."""
        self.cells[key_of(cell)] = cell
        if self._path is not None:
            append(self._path, _line(cell.__dict__), syncs=True)


def _is_ours(path: Path) -> bool:
    """Whether there is a file, and one that a probe began.

    Raises:
        OutputExistsError: It is somebody else's.
    """
    ours = json.dumps({"format": FORMAT})[:-1].encode()
    if not os.path.lexists(path):
        return False
    with open_regular(path, OutputExistsError) as file:
        begin = file.read(len(ours))
    if not ours.startswith(begin):
        raise OutputExistsError(
            f"{path} is in the way: finished cells are kept there until the result is written, and "
            "this is no such file: move it, or give -o another name"
        )
    return True


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _read(
    path: Path, lines: list[bytes], opening: dict[str, Any], num_questions: int | None
) -> dict[Key, Cell]:
    try:
        found, *rows = map(json.loads, lines)
        differ = differences(found, opening)
        cells = [] if differ else [from_plain(Cell, row, what="cell") for row in rows]
        for cell in cells:
            if problems := list(cell.problems_with(num_questions)):
                raise ValueError(problems[0])
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
