"""Read an untrusted file: it must be a regular file, and is read whole, up to a limit.

A pipe cannot hang the reader, nor a device or a sparse file fill the memory: each is refused with a
message. Weights and masks are streamed (`checkpoints.tensors.DataFile`) and opened by
`open_regular`.
"""

from __future__ import annotations

import io
import json
import os
import stat
import tomllib
from collections import Counter
from math import isfinite
from reprlib import repr as short
from typing import Any, NoReturn, TypeAlias

from trimtab.errors import TrimtabError

MAX_CONFIG_BYTES = 64 << 20
"""Longest file that describes something: a configuration, an index, a run file."""

MAX_RESULT_BYTES = 512 << 20
"""Longest result, and longest log of one."""

MAX_DATA_BYTES = 1 << 30
"""Longest file of prompts, answers or text."""

AnyPath: TypeAlias = str | os.PathLike[str]
ErrorClass: TypeAlias = type[TrimtabError]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def identity_of(status: os.stat_result) -> tuple[int, ...]:
    """Device, inode, size and time: these differ once a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def open_regular(path: AnyPath, error: ErrorClass, *, where: str = "") -> io.FileIO:
    """Open a regular file to read, without ever waiting for a writer.

    Args:
        path: The file.
        error: Class of the error.
        where: Prefix of the path in messages: `text: `, or nothing.

    Raises:
        TrimtabError: Of the class `error`: the file does not exist or cannot be read.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise error(f"{where}{os.fspath(path)}: no such file") from None
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        raise error(f"{where}{os.fspath(path)}: {_why(problem)}") from None
    try:
        check_regular(os.fstat(number), path, error, where=where)
    except TrimtabError:
        os.close(number)
        raise
    return io.FileIO(number)


def check_regular(
    status: os.stat_result, path: AnyPath, error: ErrorClass, *, where: str = ""
) -> None:
    """Refuse pipes, devices, sockets and folders.

    Raises:
        TrimtabError: Of the class `error`.
    """
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        actual = _KINDS.get(kind, "something else")
        raise error(f"{where}{os.fspath(path)}: expected a file, found {actual}")


def read_bytes(path: AnyPath, error: ErrorClass, *, limit: int, where: str = "") -> bytes:
    """Read a regular file.

    Raises:
        TrimtabError: Of the class `error`: it cannot be read, or is longer than `limit`.
    """
    with open_regular(path, error, where=where) as raw, io.BufferedReader(raw) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            # Files of /proc say that they are empty: a little is read all the same.
            most = min(limit, max(size, 1 << 20)) + 1
            content = b"" if size > limit else file.read(most)
        except OSError as problem:
            raise error(f"{where}{os.fspath(path)}: {_why(problem)}") from None
    if max(size, len(content)) > limit:
        raise error(
            f"{where}{os.fspath(path)}: too long: it has {max(size, len(content))} bytes, at most "
            f"{limit} are read"
        )
    return content


def read_text(path: AnyPath, error: ErrorClass, *, limit: int, where: str = "") -> str:
    """Read a regular file as UTF-8.

    Raises:
        TrimtabError: Of the class `error`: it cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path, error, limit=limit, where=where).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"{where}{os.fspath(path)}: not UTF-8 ({problem.reason})") from None


def read_json(
    path: AnyPath,
    error: ErrorClass,
    *,
    limit: int = MAX_CONFIG_BYTES,
    strict: bool = False,
    where: str = "",
    expected: str = "",
) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        error: Class of the error.
        limit: Maximum number of bytes.
        strict: As in `parse_json`.
        where: Prefix of the path in messages.
        expected: What the file should have been, in words.

    Raises:
        TrimtabError: Of the class `error`: it cannot be read, or is not JSON.
    """
    text = read_text(path, error, limit=limit, where=where)
    try:
        return parse_json(text, strict=strict)
    except ValueError as problem:
        expected = f": expected {expected}" if expected else ""
        raise error(f"{where}{os.fspath(path)}{expected}: not JSON ({problem})") from None


def read_toml(path: AnyPath, error: ErrorClass) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        TrimtabError: Of the class `error`: it cannot be read, or is not TOML.
    """
    text = read_text(path, error, limit=MAX_CONFIG_BYTES)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise error(f"{os.fspath(path)}: not TOML (it is nested too deeply)") from None
    except ValueError as problem:
        raise error(f"{os.fspath(path)}: not TOML ({problem})") from None


def parse_json(text: str | bytes, *, strict: bool) -> Any:
    """Parse JSON.

    Args:
        text: The JSON; bytes are UTF-8.
        strict: Refuse what parsers treat differently: duplicate keys, and NaN and infinities, which
            are not JSON. Configurations from the Hub contain both.

    Raises:
        ValueError: It is not JSON.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        if strict:
            return json.loads(
                text,
                object_pairs_hook=_unique_keys,
                parse_constant=_no_constant,
                parse_float=_finite,
            )
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {short(twice)} appears twice")
    return keys


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _why(problem: Exception) -> str:
    return f"cannot be read ({getattr(problem, 'strerror', None) or problem})"
