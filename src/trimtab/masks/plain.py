"""Frozen dataclasses from plain data, checked against their annotations.

A result is read back from a file that anybody may have written: what is not of the annotated type
is refused by the name of its field, before anything is drawn from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from math import isfinite
from reprlib import repr as short
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

__all__ = ["from_plain", "to_plain"]

Made = TypeVar("Made")


def to_plain(value: Any) -> Any:
    """Data for JSON: dataclasses become objects of their fields, tuples lists."""
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, tuple | list) else value


def from_plain(kind: type[Made], data: Any) -> Made:
    """The inverse of `to_plain`, for a dataclass.

    Raises:
        TypeError: Something is missing, unknown, or not of its type.
    """
    made: Made = _read(kind, data, kind.__name__)
    return made


def _read(kind: Any, data: Any, where: str) -> Any:
    if isinstance(kind, UnionType):
        if data is None and NoneType in get_args(kind):
            return None
        (kind,) = (option for option in get_args(kind) if option is not NoneType)
    if is_dataclass(kind):
        return _dataclass(kind, data, where)
    if get_origin(kind) is tuple:
        if not isinstance(data, list | tuple):
            raise TypeError(f"{where} is {short(data)}, not a list")
        (item, *_) = get_args(kind)
        return tuple([_read(item, value, f"{where}[{place}]") for place, value in enumerate(data)])
    if kind is float:
        if type(data) not in (int, float) or not isfinite(data):
            raise TypeError(f"{where} is {short(data)}, not a finite number")
        return float(data)
    expected = Mapping if get_origin(kind) is Mapping else kind
    if not isinstance(data, expected) or (isinstance(data, bool) and kind is not bool):
        raise TypeError(f"{where} is {short(data)}, not of the type {expected.__name__}")
    return data


def _dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise TypeError(f"{where} is {short(data)}, not an object")
    names = [field.name for field in fields(kind)]
    if odd := sorted(set(names) ^ set(data)):
        raise TypeError(f"{where} lacks or should not have {short(odd)}")
    hints = get_type_hints(kind)
    return kind(**{name: _read(hints[name], data[name], f"{where}.{name}") for name in names})
