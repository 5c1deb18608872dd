"""Keys of a run file that are set from outside: by a sweep, or by `trimtab train --set KEY=VALUE`.

Keys are written with their table (`trainer.learning_rate`). A factor is written as its word alone
(`learning_rate`), and replaces the keys that it stands for. The run file with these keys is then
checked like any other, so values need no checks here.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from trimtab.errors import SettingsError
from trimtab.results.tables import unknown_key
from trimtab.training.runs.factors import FACTORS, with_keys
from trimtab.training.runs.settings import NO_KEYS, TABLES, Settings, read_run_file

KEYS_ALONE = tuple(
    key.name for key in fields(Settings) if key.name not in (*TABLES, *FACTORS, *NO_KEYS, "factors")
)
"""Keys of a run file that are in no table."""

TABLES_WITH_KEYS = tuple(name for name in TABLES if name != "factors")
"""Tables of a run file whose keys can be set."""


def read_settings(path: Path, overrides: Iterable[str]) -> Settings:
    """Read a run file, with keys set on the command line.

    Args:
        path: The run file.
        overrides: Texts `KEY=VALUE`; see `parsed`.

    Raises:
        SettingsError: The file or a key cannot be used; lists all problems.
    """
    problems: list[str] = []
    given = parsed(overrides, problems)
    settings = dotted_keys(given, "", problems)
    if problems:
        raise SettingsError(f"--set: {'; '.join(problems)}")
    path, content = read_run_file(path)
    return Settings.of(path, with_overrides(content, settings), settings)


def parsed(overrides: Iterable[str], problems: list[str]) -> dict[str, Any]:
    """Parse texts `KEY=VALUE`.

    Args:
        overrides: The texts. A value is TOML (`1e-4`, `true`, `[1, 2]`, `"1"`), or else a text
            itself (`fp32`, `random:0.1`, `runs/a`). Dates are texts, since no key takes a date.
        problems: A sentence is added for each text of another form and each key that occurs twice.
    """
    values: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals):
            problems.append(f'"{text}", expected KEY=VALUE')
        elif key in values:
            problems.append(f"{key} occurs twice")
        else:
            values[key] = _value(value)
    return values


def _value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
        json.dumps(table)
    except (ValueError, TypeError, RecursionError):
        return text
    return table["value"] if len(table) == 1 else text


def dotted_keys(given: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    """Return dotted keys of a run file, with their values.

    Args:
        given: Keys -> values; the keys of a table may also be in a table.
        where: Prefix of a key in messages: `sweep.`, or empty.
        problems: A sentence is added for each key that is unknown, or given twice.
    """
    settings: dict[str, Any] = {}
    for key, value in _flat(given):
        table, _, name = key.partition(".")
        full = f"factors.{key}" if key in FACTORS else key
        if not _is_key(full):
            problems.append(_why_no_key(key, table, name, where))
            continue
        if full in settings:
            problems.append(f"{where}{name or key} occurs twice")
        settings[full] = value
    return settings


def _is_key(key: str) -> bool:
    table, _, name = key.partition(".")
    if table == "factors":
        return name in FACTORS
    return key in KEYS_ALONE or (table in TABLES_WITH_KEYS and bool(name) and "." not in name)


def _why_no_key(key: str, table: str, name: str, where: str) -> str:
    if key in TABLES:
        return f"{where}{key} is a table of the run file: name a key of it"
    if table in TABLES_WITH_KEYS:
        whole = f"{table}.{name.partition('.')[0]}"
        return f"{where}{key}: set {whole} as a whole, as {whole} = {{ … }}"
    if name and table != "factors":
        return unknown_key(table, TABLES_WITH_KEYS, where)
    return unknown_key(key, (*FACTORS, *KEYS_ALONE), where)


def _flat(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Flatten tables: in TOML, an unquoted `trainer.beta = …` is a table."""
    for key, value in given.items():
        if isinstance(value, dict) and key in TABLES:
            yield from ((f"{key}.{name}", entry) for name, entry in value.items())
        else:
            yield key, value


def with_overrides(content: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run file with keys set; a factor replaces the keys that it stands for.

    Args:
        content: The parsed run file; not modified.
        settings: Dotted keys -> values, from `dotted_keys`.
    """
    algorithm = str(settings.get("algorithm", content.get("algorithm")))
    factors = [FACTORS[key.rpartition(".")[2]] for key in settings if key.startswith("factors.")]
    replaced = [
        key for factor in factors for key in (*factor.keys.get(algorithm, ()), *factor.instead)
    ]
    return with_keys(content, settings, without=replaced)
