"""Shared wording: counted nouns, short lists, and short reprs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

MAX_REPR = 200
"""Longest repr of a result or of a part of one."""


def plural(num: int, noun: str, many: str | None = None) -> str:
    """A counted noun: `1 tensor`, `2 tensors`, `1,000 matrices`."""
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {many or noun + 's'}"


def are(num: int, noun: str = "") -> str:
    """A counted noun with its verb: `1 tensor is`, `2 tensors are`; or the verb alone."""
    return f"{plural(num, noun)} {are(num)}" if noun else "is" if num == 1 else "are"


def were(num: int, noun: str) -> str:
    """A counted noun with its verb in the past: `2 tensors were`."""
    return f"{plural(num, noun)} {'was' if num == 1 else 'were'}"


def out_of(num: int, all_of_them: int, noun: str) -> str:
    """A part of a count: `1 of 2,000 elements`."""
    return f"{num:,} of {plural(all_of_them, noun)}"


def one_line(this: object, text: str | None = None) -> str:
    """A short repr of an object that may hold much: its class and a few words.

    As `__repr__ = one_line` in a class body it shows the fields, each shortened.

    Args:
        this: A dataclass or a named tuple, unless `text` is given.
        text: What to show; by default the fields.
    """
    if text is None:
        names = [field.name for field in fields(this)] if is_dataclass(this) else this._fields  # type: ignore[attr-defined]
        text = ", ".join(
            f"{name}={_short(getattr(this, name))}" for name in names if not name.startswith("_")
        )
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    shown = f"{type(this).__name__}({text})"
    return shown if len(shown) <= MAX_REPR else f"{shown[: MAX_REPR - 2]}…)"


def _short(value: Any) -> str:
    """A value in few characters; of a container, its size."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else f"{value[:59]}…")
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"<{value.dtype} {list(value.shape)}>"
    if is_dataclass(value):
        return f"<{type(value).__name__}>"
    text = repr(value)
    is_long = len(text) > 60 or (isinstance(value, Sized) and len(value) > 4)
    if isinstance(value, Sized) and (is_long or isinstance(value, Mapping)):
        return f"<{plural(len(value), 'item')}>"
    return f"<{type(value).__name__}>" if is_long else text


MAX_SHOWN = 5


def first_few(items: Sequence[str], separator: str = ", ") -> str:
    """Join the first few items, and say how many more there are."""
    more = len(items) - MAX_SHOWN
    return separator.join([*items[:MAX_SHOWN], *([f"and {more} more"] if more > 0 else [])])


def distinct_names(paths: Iterable[str], ending: str = "") -> dict[str, str]:
    """The shortest ends of paths that tell them apart: `grpo/mask` and `sft/mask`, or `grpo`.

    Args:
        paths: Paths, or other texts without a slash, which are their own names.
        ending: Ending of file names to leave out: `.safetensors`.
    """
    parts = {path: PurePath(path.removesuffix(ending)).parts for path in paths}
    num_parts = dict.fromkeys(parts, 1)

    def name(path: str) -> str:
        last = parts[path][-num_parts[path] :]
        is_whole = num_parts[path] > len(parts[path]) or not last or last[0] == "/"
        return path if is_whole else "/".join(last)

    while True:
        names = {path: name(path) for path in parts}
        times = Counter(names.values())
        short = [path for path in parts if times[names[path]] > 1 and names[path] != path]
        if not short:
            return names
        for path in short:
            num_parts[path] += 1
