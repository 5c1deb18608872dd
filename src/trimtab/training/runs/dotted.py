"""Dotted names of what is in tables: `trainer.beta` is the key `beta` of the table `trainer`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["look_up", "with_keys"]


def look_up(content: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value of a key of a run file, or the default if it is not there."""
    table, _, name = key.rpartition(".")
    place = content.get(table) if table else content
    return place.get(name, default) if isinstance(place, Mapping) else default


def with_keys(
    content: Mapping[str, Any], settings: Mapping[str, Any], without: Iterable[str] = ()
) -> dict[str, Any]:
    """A run file with other values of some keys.

    Args:
        content: As TOML has it; it is not changed. What should be a table and is none stays what
            it is, to be told of when the run file is checked.
        settings: Dotted keys -> values.
        without: Dotted keys to take away before.
    """
    whole = {key: dict(of) if isinstance(of, dict) else of for key, of in content.items()}
    for key in without:
        table, _, name = key.rpartition(".")
        place = whole.get(table) if table else whole
        if isinstance(place, dict):
            place.pop(name, None)
    for key, value in settings.items():
        table, _, name = key.rpartition(".")
        place = whole.setdefault(table, {}) if table else whole
        if isinstance(place, dict):
            place[name] = value
    return whole
