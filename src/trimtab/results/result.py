"""The base class of results: conversion to JSON, files and data frames."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from trimtab.errors import ResultFormatError
from trimtab.extras import require
from trimtab.inputs import MAX_RESULT_BYTES, read_json
from trimtab.outputs import write_text
from trimtab.results.schema import fields_to_plain, from_plain

if TYPE_CHECKING:
    import pandas as pd

Made = TypeVar("Made")


class Result:
    """Base of the dataclasses of results.

    Tables and reports are drawn from a result or its JSON, without opening a checkpoint or a mask
    again. `trimtab.report`, which draws it, is imported when needed; no other lower layer imports
    a higher one.

    Attributes:
        FORMAT: Value of the key `format` in its JSON.
        FORMAT_VERSION: Version of that format.
        NAME: Name of the kind of result: `comparison`.
        COMMAND: The command that produces it.
        DERIVES: Whether reading also derives every figure, since values that are valid one by one
            can be inconsistent.
        ROWS: Path, with dots, of the list in its JSON that becomes the rows of a data frame.
    """

    FORMAT: ClassVar[str]
    FORMAT_VERSION: ClassVar[int] = 1
    NAME: ClassVar[str]
    COMMAND: ClassVar[str]
    DERIVES: ClassVar[bool] = False
    ROWS: ClassVar[str] = "tensors"

    if TYPE_CHECKING:  # a field of every result

        @property
        def provenance(self) -> Mapping[str, Any]:
            """Version, command, date and settings."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, in the format of the docs page "Formats"."""
        header = {"format": self.FORMAT, "format_version": self.FORMAT_VERSION}
        return {**header, **fields_to_plain(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; derived figures are derived again.

        Raises:
            ResultFormatError: The data is another kind of result, another version, or damaged.
        """
        if not isinstance(data, Mapping) or data.get("format") != cls.FORMAT:
            raise ResultFormatError(f"not a trimtab {cls.NAME}: expected format {cls.FORMAT!r}")
        version = data.get("format_version")
        if type(version) is not int or version != cls.FORMAT_VERSION:
            raise ResultFormatError(
                f"{cls.NAME} of format version {short(version)}: this trimtab reads version "
                f"{cls.FORMAT_VERSION}; run `{cls.COMMAND}` again"
            )
        body = {key: data[key] for key in data if key not in ("format", "format_version")}
        return from_plain(cls, body, what=cls.NAME, derives=cls.DERIVES)

    def to_json(self) -> str:
        """The result as JSON text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write `to_json` to a file, atomically.

        Raises:
            OutputExistsError: The file exists and `force` is not set, or the path is a folder.
        """
        write_text(path, self.to_json(), force=force)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            ResultFormatError: The file is not JSON, or not such a result of this version.
        """
        return read_result_file(path, cls.from_dict, expected=f"the JSON of a {cls.NAME}")

    def to_dataframe(self, table: str | None = None) -> pd.DataFrame:
        """The result as a data frame.

        Args:
            table: Title of a table of the report. By default, one row per tensor (per point of a
                trajectory, per model of an evaluation, and so on), with the keys of the JSON as
                columns: `num_elements`, `num_changed[bits]`, ...

        Raises:
            KeyError: The report has no such table; the message lists its tables.
            MissingExtraError: pandas is not installed.
        """
        frame = require("pandas", "pip install pandas").DataFrame
        if table is None:
            rows: Any = self.to_dict()
            for key in self.ROWS.split("."):
                rows = rows[key]
            return frame(list(map(_flat, rows)))
        return import_module("trimtab.report.tables").frame_of(self, table)

    def _repr_html_(self) -> str:
        """Headline and tables, for a notebook."""
        return import_module("trimtab.report.tables").fragment_of(self)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its objects flattened into columns: `num_changed[bits]`."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}[{inner}]": each for inner, each in _flat(value).items()}
        else:
            flat[key] = value
    return flat


def read_result_file(
    path: str | os.PathLike[str], read: Callable[[Any], Made], *, expected: str
) -> Made:
    """Read the JSON of a result.

    Args:
        path: The file.
        read: Makes the result from the data.
        expected: Describes the file, for messages.

    Raises:
        ResultFormatError: The file is not JSON, or not such a result of this version.
    """
    data = read_json(
        path, ResultFormatError, limit=MAX_RESULT_BYTES, strict=True, expected=expected
    )
    try:
        return read(data)
    except ResultFormatError as error:
        raise ResultFormatError(f"{os.fspath(path)}: {error}") from None
