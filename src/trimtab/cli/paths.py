"""What every command checks of the paths that it is given, before any of its work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import copy
from functools import wraps
from pathlib import Path
from typing import Any

import click

from trimtab.checkpoints.folder import find_weights, read_config
from trimtab.errors import CheckpointError, OutputExistsError
from trimtab.outputs import ensure_distinct, is_same_file, is_stream

__all__ = ["ensure_ending", "with_paths_checked"]

OUTPUTS = ("output", "html", "survivors", "save_statistics", "scores")
"""Parameters of commands that name a file to write."""

ENDINGS = {
    ".csv": "CSV",
    ".htm": "HTML",
    ".html": "HTML",
    ".json": "JSON",
    ".md": "Markdown",
    ".pdf": "PDF",
    ".png": "PNG",
    ".safetensors": "safetensors",
    ".svg": "SVG",
    ".tsv": "TSV",
    ".xlsx": "XLSX",
}
"""What a file with such a name is taken for by whoever opens it; other names say nothing."""

OTHER_FILES = ("generation_config.json", "tokenizer*", "special_tokens_map.json", "adapter_*")
"""Files of a model that are read by name, beside its weights and its config."""


def with_paths_checked(command: click.Command) -> click.Command:
    """A command that refuses outputs which are one file, or which are what it reads."""
    run = command.callback
    if run is None or isinstance(command, click.Group):
        return command

    @wraps(run)
    def checked(*args: Any, **given: Any) -> Any:
        params = click.get_current_context().params
        names = {of.name: of.opts[0] for of in command.params if of.name is not None}
        _check({names[name]: value for name, value in params.items() if name in names}, names)
        return run(*args, **given)

    guarded = copy(command)
    guarded.callback = checked
    return guarded


def _check(given: Mapping[str, Any], names: Mapping[str, str]) -> None:
    to_write = {names[name] for name in OUTPUTS if name in names}
    outputs = {
        name: path for name, path in given.items() if name in to_write and isinstance(path, Path)
    }
    ensure_distinct(outputs)
    for name, output in outputs.items():
        if is_stream(output) or not output.exists():
            continue
        for value in (value for other, value in given.items() if other not in to_write):
            for path in _read_of(value):
                if is_same_file(path, output):
                    raise OutputExistsError(
                        f"{name} {output}: the command reads that file, so it is never replaced: "
                        "give another name"
                    )


def _read_of(value: Any) -> Iterator[Path]:
    """The files that a command reads where it is given a value."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _read_of(each)
    if not isinstance(value, (str, Path)) or not os.fspath(value):
        return
    path = Path(value)
    with suppress(OSError, ValueError):
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from (of for pattern in OTHER_FILES for of in path.glob(pattern))
            yield path / "config.json"
            with suppress(CheckpointError):
                yield from find_weights(path, read_config(path)).paths
            yield from path.glob("*.index.json")


def ensure_ending(path: Path | None, format: str) -> None:
    """Refuse a name that says that the file is something else than what is written.

    Args:
        path: Where to write; None is not written.
        format: What is written: one of the values of `ENDINGS`.

    Raises:
        click.UsageError: It does.
    """
    if path is None:
        return
    ending = path.suffix.lower()
    if ENDINGS.get(ending, format) != format:
        right = next(of for of, what in reversed(ENDINGS.items()) if what == format)
        raise click.UsageError(
            f"{path}: {format} is written, and {ending} says {ENDINGS[ending]}: give a name that "
            f"ends in {right}"
        )
