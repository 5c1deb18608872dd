"""Dotted names of what is in tables: `trainer.beta` is the key `beta` of the table `trainer`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["differences", "flat", "look_up", "with_keys"]


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value, of every entry that is no table; empty tables have none."""
    entries: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            entries |= flat(value, f"{prefix}{key}.")
        else:
            entries[f"{prefix}{key}"] = value
    return entries


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What settings were and what they are now, where that differs: `seed=0 (now 1)`."""
    before, now = flat(found), flat(wanted)
    return [
        f"{name}={before.get(name)!r} (now {now.get(name)!r})"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    ]


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
