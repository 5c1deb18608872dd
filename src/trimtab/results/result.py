"""What every result of a verb can do: become JSON, and be read from it years later."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from reprlib import repr as short
from typing import Any, ClassVar, Self

from trimtab.errors import ResultFormatError
from trimtab.inputs import MAX_RESULT_BYTES, read_json
from trimtab.outputs import new_file
from trimtab.results.schema import from_plain, to_plain

__all__ = ["Result"]


class Result:
    """Base of the dataclasses of results.

    A result is complete in itself: tables and reports are drawn from it, or from its JSON, without
    opening a checkpoint or a mask again.

    Attributes:
        FORMAT: What the key `format` of its JSON says.
        FORMAT_VERSION: Version of that format.
        NAME: What it is, in words: `comparison`.
        COMMAND: The command that makes it.
        DERIVES: Whether reading derives every figure too, because of values that are right one by
            one some do not exist.
    """

    FORMAT: ClassVar[str]
    FORMAT_VERSION: ClassVar[int] = 1
    NAME: ClassVar[str]
    COMMAND: ClassVar[str]
    DERIVES: ClassVar[bool] = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, in the format of the docs page "Formats"."""
        return {"format": self.FORMAT, "format_version": self.FORMAT_VERSION, **to_plain(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; what is derived is derived again.

        Raises:
            ResultFormatError: The data is another result, of another version, or damaged.
        """
        if not isinstance(data, Mapping) or data.get("format") != cls.FORMAT:
            raise ResultFormatError(f"not a trimtab {cls.NAME}: expected format {cls.FORMAT!r}")
        found = data.get("format_version")
        if type(found) is not int or found != cls.FORMAT_VERSION:
            raise ResultFormatError(
                f"{cls.NAME} of format version {short(found)}: this trimtab reads version "
                f"{cls.FORMAT_VERSION}; run `{cls.COMMAND}` again"
            )
        body = {key: data[key] for key in data if key not in ("format", "format_version")}
        return from_plain(cls, body, what=cls.NAME, derives=cls.DERIVES)

    def to_json(self) -> str:
        """The result as JSON text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write `to_json`, whole or not at all.

        Raises:
            OutputExistsError: The file exists and `force` is not set, or the path is a folder.
        """
        with new_file(path, force=force) as file:
            file.write(self.to_json().encode("utf-8", errors="backslashreplace"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            ResultFormatError: The file is no JSON, or no such result of this version.
        """
        data = read_json(
            path,
            ResultFormatError,
            limit=MAX_RESULT_BYTES,
            strict=True,
            expected=f"the JSON of a {cls.NAME}",
        )
        try:
            return cls.from_dict(data)
        except ResultFormatError as error:
            raise ResultFormatError(f"{os.fspath(path)}: {error}") from None
