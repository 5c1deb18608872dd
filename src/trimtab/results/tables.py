"""Check what people wrote in TOML against the fields of a dataclass: names, types and choices.

The same check serves the tables of a run file and the configuration classes of TRL, so a misspelt
key of either is answered with the nearest one that exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from enum import Enum
from math import isnan
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from trimtab.results.schema import BAD, SCALARS, Reader, nearest

Made = TypeVar("Made")

MAX_TEXT = 4096
"""Characters of a text: as many as a path can have."""

MAX_KEYS = 12
"""Keys that are all named where none is near to one that does not exist."""


def check_table(
    cls: type, given: Mapping[str, Any], where: str, problems: list[str]
) -> dict[str, Any]:
    """Check a table against the fields of a dataclass.

    Args:
        cls: The dataclass; its annotations say what is expected.
        given: The table as TOML has it.
        where: What precedes a key in messages: `trainer.`, or nothing.
        problems: One sentence is added for each key that is unknown or has a wrong value.

    Returns:
        The good part of the table, whole numbers as floats where a float is expected.
    """
    hints = get_type_hints(cls)
    known = [field.name for field in fields(cls) if field.init]
    good = {}
    for key, value in given.items():
        if key not in known:
            problems.append(unknown_key(key, known, where))
            continue
        reader = _TableReader()
        read = reader.read(hints[key], value, f"{where}{key}")
        problems += reader.problems[:1]
        if not reader.problems:
            good[key] = read if isinstance(read, float) else value
    return good


def made_from_table(cls: type[Made], given: Any, where: str, problems: list[str]) -> Made | None:
    """An object of a dataclass from a table that has all its keys but those with defaults.

    Args:
        cls: The dataclass.
        given: The table as TOML has it.
        where: What it is, for messages: `claim table-1`.
        problems: One sentence is added for each key that is missing, unknown or has a wrong value.

    Returns:
        The object; None if there is a problem.
    """
    if not isinstance(given, Mapping):
        problems.append(f"{where} is not a table")
        return None
    before = len(problems)
    good = check_table(cls, given, f"{where}: ", problems)
    needed = [
        field.name
        for field in fields(cls)  # type: ignore[arg-type]
        if field.default is MISSING and field.default_factory is MISSING
    ]
    if missing := [name for name in needed if name not in given]:
        problems.append(f"{where} lacks {', '.join(missing)}")
    return None if len(problems) > before else cls(**good)


def unknown_key(key: str, known: Iterable[str], where: str = "") -> str:
    """Say that there is no such key, and which is nearest; all of them if none is near."""
    known = list(known)
    if (near := nearest(key, known)) is not None:
        return f"there is no key {where}{key}: did you mean {where}{near}?"
    if len(known) <= MAX_KEYS:
        return f"there is no key {where}{key}: expected {', '.join(known)}"
    return f"there is no key {where}{key}"


def shown(value: Any) -> str:
    """A value as a run file has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
    if isinstance(value, int | float):
        return str(value)
    kind = type(value).__name__
    return f"a {'table' if kind == 'dict' else kind}"


class _TableReader(Reader):
    """Reads a value of TOML; whole numbers serve as others, and infinity is a number."""

    def __init__(self) -> None:
        super().__init__()
        self.scalars = {**SCALARS, float: (_is_number, "a number")}

    def read(self, hint: Any, data: Any, path: str) -> Any:
        """The value, or `BAD` after a problem was noted."""
        if (strange := _strange(data)) is not None:
            return self.problem(path, f"has {strange}")
        hint = _BARE.get(hint, hint)
        if not _can_be_written(hint):
            return self.problem(
                path, "takes what cannot be written in a run file: leave the key out"
            )
        value = super().read(hint, data, path)
        return float(value) if hint is float and value is not BAD else value

    def shown(self, data: Any) -> str:
        """Data as a run file has it."""
        return shown(data)

    def expected(self, hint: Any) -> str:
        """What an annotation asks for, as far as it can be written in TOML."""
        if not _can_be_written(hint):
            return ""
        words = super().expected(hint)
        return {"an object": "a table"}.get(words, words)


_BARE: Mapping[Any, Any] = {list: list[Any], tuple: list[Any], dict: dict[str, Any]}
"""Types without their arguments -> with those of anything."""


def _can_be_written(hint: Any) -> bool:
    """Whether TOML has values of a type: no None, no enum, no object of a class."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(map(_can_be_written, get_args(hint)))
    if hint in (None, NoneType) or (isinstance(hint, type) and issubclass(hint, Enum)):
        return False
    return (
        hint is Any
        or hint in SCALARS
        or hint in _BARE
        or origin in (Literal, list, tuple, dict, Sequence, Mapping)
    )


def _is_number(data: Any) -> bool:
    return isinstance(data, int | float) and not isinstance(data, bool) and not isnan(data)


def _strange(value: Any) -> str | None:
    """What no key takes, whatever its type, and what would end in a traceback somewhere."""
    if isinstance(value, dict):
        return next(filter(None, map(_strange, [*value, *value.values()])), None)
    if isinstance(value, list):
        return next(filter(None, map(_strange, value)), None)
    if isinstance(value, str) and "\0" in value:
        return "a NUL character, which no text of a run has"
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"a text of {len(value):,} characters, expected at most {MAX_TEXT:,}"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "a whole number of more than 64 bits"
    return None
