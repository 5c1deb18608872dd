"""Check TOML tables against the fields of a dataclass: names, types and choices.

Used for the tables of a run file and for the configuration classes of TRL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from enum import Enum
from math import isnan
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from trimtab.results.schema import BAD, SCALARS, Reader, hints_of, nearest

Made = TypeVar("Made")

MAX_TEXT = 4096
"""Maximum length of a string: that of a path."""

MAX_KEYS = 12
"""If no known key is similar to an unknown one, up to this many are listed."""


def check_table(
    cls: type, given: Mapping[str, Any], where: str, problems: list[str]
) -> dict[str, Any]:
    """Check a table against the fields of a dataclass.

    Args:
        cls: The dataclass.
        given: The table, as parsed.
        where: Prefix of a key in messages: `trainer.`, or empty.
        problems: One sentence is added for each key that is unknown or has a wrong value.

    Returns:
        The valid part of the table, with whole numbers as floats if a float is expected.
    """
    hints = hints_of(cls)
    known = [field.name for field in fields(cls) if field.init]
    valid = {}
    for key, value in given.items():
        if key not in known:
            problems.append(unknown_key(key, known, where))
            continue
        reader = _TableReader()
        read = reader.read(hints[key], value, f"{where}{key}")
        problems += reader.problems[:1]
        if not reader.problems:
            valid[key] = read if isinstance(read, float) else value
    return valid


def made_from_table(cls: type[Made], given: Any, where: str, problems: list[str]) -> Made | None:
    """Make an object of a dataclass from a table; keys with defaults are optional.

    Args:
        cls: The dataclass.
        given: The table, as parsed.
        where: Name of the table, for messages: `claim table-1`.
        problems: One sentence is added for each key that is missing, unknown or has a wrong value.

    Returns:
        The object; None if there is a problem.
    """
    if not isinstance(given, Mapping):
        problems.append(f"{where} is not a table")
        return None
    before = len(problems)
    valid = check_table(cls, given, f"{where}: ", problems)
    required = [
        field.name
        for field in fields(cls)  # type: ignore[arg-type]
        if field.default is MISSING and field.default_factory is MISSING
    ]
    if missing := [name for name in required if name not in given]:
        problems.append(f"{where} lacks {', '.join(missing)}")
    return None if len(problems) > before else cls(**valid)


def unknown_key(key: str, known: Iterable[str], where: str = "") -> str:
    """The message for an unknown key, with the most similar one, or all if none is similar."""
    known = list(known)
    if (near := nearest(key, known)) is not None:
        return f"there is no key {where}{key}: did you mean {where}{near}?"
    if len(known) <= MAX_KEYS:
        return f"there is no key {where}{key}: expected {', '.join(known)}"
    return f"there is no key {where}{key}"


def shown(value: Any) -> str:
    """A value as in a run file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
    if isinstance(value, int | float):
        return str(value)
    kind = type(value).__name__
    return f"a {'table' if kind == 'dict' else kind}"


class _TableReader(Reader):
    """Reads a TOML value; whole numbers are accepted as floats, and so is infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.scalars = {**SCALARS, float: (_is_number, "a number")}

    def read(self, hint: Any, data: Any, path: str) -> Any:
        """The value, or `BAD` after a problem was added."""
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
        """Data as in a run file."""
        return shown(data)

    def expected(self, hint: Any) -> str:
        """The expected type, without the options that TOML cannot represent."""
        if not _can_be_written(hint):
            return ""
        words = super().expected(hint)
        return {"an object": "a table"}.get(words, words)


_BARE: Mapping[Any, Any] = {list: list[Any], tuple: list[Any], dict: dict[str, Any]}
"""Bare types -> the same with `Any` as arguments."""


def _can_be_written(hint: Any) -> bool:
    """Whether TOML has values of a type: not None, enums or objects of classes."""
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
    """Describes a value that no key accepts: a NUL, or a string or integer that is too large."""
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
