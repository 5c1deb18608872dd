"""Check what people wrote against the fields of a dataclass: names, types and choices.

The same check serves the tables of a run file and the configuration classes of TRL, so a misspelt
key of either is answered with the nearest one that exists.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from math import isnan
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["check_table", "shown", "unknown_key"]

MAX_TEXT = 4096
"""Characters of a text: as many as a path can have."""

_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a table",
}


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
        elif (strange := _strange(value)) is not None:
            problems.append(f"{where}{key} has {strange}")
        elif not _fits(value, hints[key]):
            expected = _expected(hints[key])
            problems.append(
                f"{where}{key} is {shown(value)}, expected {expected}"
                if expected
                else f"{where}{key} takes what cannot be written in a run file: leave the key out"
            )
        elif isinstance(value, int) and not isinstance(value, bool) and not _takes_int(hints[key]):
            good[key] = float(value)
        else:
            good[key] = value
    return good


def unknown_key(key: str, known: Iterable[str], where: str = "") -> str:
    """Say that there is no such key, and which is nearest; all of them if none is near."""
    known = list(known)
    near = get_close_matches(key, known, n=1)
    if near:
        return f"there is no key {where}{key}: did you mean {where}{near[0]}?"
    if len(known) <= 12:
        return f"there is no key {where}{key}: expected {', '.join(known)}"
    return f"there is no key {where}{key}"


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


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    if _is_list(hint):
        part = _part(hint)
        return isinstance(value, list) and all(_fits(entry, part) for entry in value)
    if origin is dict:
        part = get_args(hint)[1]
        return isinstance(value, dict) and all(_fits(entry, part) for entry in value.values())
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool) and not isnan(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint in _NAMES and isinstance(value, hint)


def _is_list(hint: Any) -> bool:
    """Whether a list of TOML is meant: tuples and other sequences are written as one."""
    return (get_origin(hint) or hint) in (list, tuple, Sequence)


def _part(hint: Any) -> Any:
    """What each entry is expected to be; the same for all."""
    return next(iter(get_args(hint)), Any)


def _takes_int(hint: Any) -> bool:
    """Whether a whole number is meant as one: `int`, or a choice between it and others."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(_takes_int(part) for part in get_args(hint))
    return hint in (int, Any)


def _expected(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        words = [_expected(part) for part in get_args(hint)]
        return " or ".join(dict.fromkeys(word for word in words if word))
    if origin is Literal:
        return " or ".join(shown(choice) for choice in get_args(hint))
    if _is_list(hint):
        part = _expected(_part(hint))
        return f"a list, each entry {part}" if part else "a list"
    # Not to be written in TOML: None, enums (their strings are another part of the union).
    return _NAMES.get(origin or hint, "")


def shown(value: Any) -> str:
    """A value as a run file has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
    if isinstance(value, int | float):
        return str(value)
    return _NAMES.get(type(value), f"a {type(value).__name__}")
