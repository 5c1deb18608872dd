"""Conversion of results to plain data for JSON and back, with one strict reader for all formats.

A result is a frozen dataclass, and its annotations are its schema. Reading does not trust the file:
it checks every value against its annotation, calls `problems` of each object, and reports all
problems at once, each with its path: `tensors[3].num_changed.bits`.

If the JSON has another layout than the dataclass, a class attribute `PLAIN` lists its keys in
order. An entry is one of

- `name`: the key holds the attribute of that name;
- `key=name`: the key has another name; `outer.key=name`: it is in a nested object;
- `=name`: the keys of that attribute are merged into this object;
- `key?`, `key?=name`: it is omitted if the attribute is None, or an empty tuple.

A field is written and read; a method `plain_name`, if there is one, returns what is written. Any
other attribute is derived: it is written, and computed again when the file is read.

A class with a method `to_dict` defines its own layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from functools import cache
from math import inf, isfinite
from reprlib import repr as short
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    TypeAlias,
    TypedDict,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import numpy as np

from trimtab.errors import ResultFormatError
from trimtab.escaping import escaped
from trimtab.words import first_few, plural

MAX_DEPTH = 40
"""Deepest nesting of data that no class describes."""

NULL_IS_INFINITE = "null is infinite"
"""In an `Annotated[float, …]`: infinity is written as null, since JSON has none."""


@dataclass(frozen=True)
class Like:
    """In an `Annotated[Mapping[str, Any], …]`: the keys that a row of plain data has.

    Attributes:
        kind: A TypedDict.
        is_open: Whether keys that it does not name may hold any plain data.
    """

    kind: Any
    is_open: bool = False


def _at_least_0(value: float) -> str | None:
    return f"is {value}, fewer than none" if value < 0 else None


def _at_most_1(value: float) -> str | None:
    return None if 0 <= value <= 1 + 1e-6 else f"is {value}, expected a share from 0 to 1"


Count: TypeAlias = Annotated[int, _at_least_0]
Amount: TypeAlias = Annotated[float, _at_least_0]
Share: TypeAlias = Annotated[float, _at_most_1]


class _Provenance(TypedDict, total=False):
    trimtab_version: str
    command: str | None
    date: str


Provenance: TypeAlias = Annotated[Mapping[str, Any], Like(_Provenance, is_open=True)]
"""Keys that every provenance has; any other key holds plain data."""

Made = TypeVar("Made")
BAD: Any = object()
"""In place of a value that could not be read."""

_NONE: Any = object()

_SINGLE = frozenset({int, float, str, bool, NoneType})


def to_plain(value: Any) -> Any:
    """Data for JSON: objects become objects of their keys, tuples and arrays lists."""
    if type(value) in _SINGLE:  # most of a result
        return value
    if hasattr(value, "to_dict"):
        return to_plain(value.to_dict())
    if is_dataclass(value) and not isinstance(value, type):
        return fields_to_plain(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return to_plain(value._asdict())
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: to_plain(item) for key, item in value.items()}
        return [[key, to_plain(item)] for key, item in value.items()]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Enum):
        return value.value
    return [to_plain(item) for item in value] if isinstance(value, tuple | list) else value


def fields_to_plain(value: Any) -> dict[str, Any]:
    """A dataclass as data for JSON, laid out by its attribute `PLAIN`."""
    plain: dict[str, Any] = {}
    kind: Any = type(value)
    for entry in _layout(kind):
        item: Any = getattr(value, f"plain_{entry.attribute}", None)
        item = getattr(value, entry.attribute) if item is None else item
        item = to_plain(item() if callable(item) else item)
        if entry.may_overflow and isinstance(item, float) and not isfinite(item):
            item = None
        target = plain
        for outer in entry.path[:-1]:
            target = target.setdefault(outer, {})
        if not entry.path:
            target.update(item)
        elif not (entry.is_optional and _is_nothing(getattr(value, entry.attribute), item)):
            target[entry.path[-1]] = item
    return plain


def _is_nothing(attribute: Any, plain: Any) -> bool:
    return plain is None or (type(attribute) is tuple and not attribute)


def from_plain(
    kind: type[Made],
    data: Any,
    *,
    what: str,
    derives: bool = False,
) -> Made:
    """The inverse of `to_plain`.

    Args:
        kind: The dataclass.
        data: As JSON has it.
        what: Name of the result, for messages: `comparison`.
        derives: Whether to derive every figure too, since values that are valid one by one can be
            inconsistent.

    Raises:
        ResultFormatError: The data does not fit; the message lists the problems.
    """
    reader = Reader()
    made = reader.read(kind, data, "")
    if reader.problems:
        raise ResultFormatError(f"damaged {what}: {first_few(reader.problems, '; ')}")
    result: Made = made
    if derives:
        try:
            to_plain(result)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = escaped(short(str(error)))
            message = f"damaged {what}: its values are inconsistent ({reason})"
            raise ResultFormatError(message) from None
    return result


@dataclass(frozen=True)
class _Entry:
    """One entry of a layout."""

    path: tuple[str, ...]
    attribute: str
    is_optional: bool
    may_overflow: bool
    is_field: bool


@cache
def _layout(kind: type) -> tuple[_Entry, ...]:
    names = [field.name for field in fields(kind)]
    hints = hints_of(kind)
    entries = []
    for text in getattr(kind, "PLAIN", names):
        key, equals, attribute = text.partition("=")
        is_optional = key.endswith("?")
        key = key.removesuffix("?")
        path = tuple(key.split(".")) if key else ()
        attribute = attribute if equals else path[-1]
        is_field = attribute in names
        marks = getattr(hints.get(attribute), "__metadata__", ())
        may_overflow = not is_field or NULL_IS_INFINITE in marks
        entries.append(_Entry(path, attribute, is_optional, may_overflow, is_field))
    return tuple(entries)


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """The annotations of a class, evaluated."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        name: get_args(hint)[0] if get_origin(hint) is NotRequired else hint
        for name, hint in hints.items()
    }


@cache
def _required(kind: Any) -> frozenset[str]:
    """Required keys of a TypedDict; `__required_keys__` is wrong for annotations as strings."""
    hints = get_type_hints(kind, include_extras=True) if kind.__total__ else {}
    return frozenset(name for name, hint in hints.items() if get_origin(hint) is not NotRequired)


class _Taken(dict[str, Any]):
    """A copy of an object, from which the keys that were read are removed."""


class _Broken(_Taken):
    """Replaces a value that is not an object, after its problem was reported."""


class Reader:
    """Reads data by its annotation and collects the problems.

    Attributes:
        problems: The problems, each with its path.
        scalars: Types of single values -> a check of the data, and the name of the type.
    """

    scalars: Mapping[type, tuple[Callable[[Any], bool], str]]

    def __init__(self) -> None:
        self.scalars = SCALARS
        self.problems: list[str] = []

    def read(self, hint: Any, data: Any, path: str) -> Any:
        """The value, or `BAD` after a problem was added."""
        origin = get_origin(hint)
        if origin is Annotated:
            return self._annotated(hint, data, path)
        if origin in (Union, UnionType):
            return self._union(get_args(hint), data, path)
        if origin is Literal:
            return self._literal(get_args(hint), data, path)
        if hint is Any:
            return data if _is_plain(data) else self._wrong(path, data, "plain data")
        if hint in (None, NoneType):
            return None if data is None else self._wrong(path, data, "null")
        if isinstance(hint, type) and hint in self.scalars:
            is_right, expected = self.scalars[hint]
            return data if is_right(data) else self._wrong(path, data, expected)
        if is_dataclass(hint):
            return self._object(hint, data, path)
        if is_typeddict(hint):
            return self._typed_dict(hint, data, path, is_open=False)
        if isinstance(hint, type) and issubclass(hint, Enum):
            values = {member.value: member for member in hint}
            known = self._literal(tuple(values), data, path)
            return known if known is BAD else values[known]
        if isinstance(hint, type) and issubclass(hint, tuple):
            return self._named_tuple(hint, data, path)
        if origin is np.ndarray:
            listed = self._list((int, ...), data, path)
            return listed if listed is BAD else np.asarray(listed, dtype=np.int64)
        if origin is tuple:
            return self._list(get_args(hint), data, path)
        if origin in (list, Sequence):
            listed = self._list((*get_args(hint), ...), data, path)
            return listed if listed is BAD else list(listed)
        if origin in (dict, Mapping):
            keys, values = get_args(hint)
            return self._mapping(keys, values, data, path)
        raise TypeError(f"{path}: unsupported annotation {hint}")

    def shown(self, data: Any) -> str:
        """Data as shown in messages."""
        return _shown(data)

    def expected(self, hint: Any) -> str:
        """The expected type, in words."""
        origin = get_origin(hint)
        if isinstance(hint, type) and hint in self.scalars:
            return self.scalars[hint][1]
        if origin in (Union, UnionType):
            return self._any_of(get_args(hint))
        if origin is Literal:
            return " or ".join(map(self.shown, get_args(hint)))
        return "a list" if origin in (list, tuple, Sequence) else "an object"

    def _any_of(self, options: Iterable[Any]) -> str:
        return " or ".join(dict.fromkeys(filter(None, map(self.expected, options))))

    def problem(self, path: str, message: str) -> Any:
        """Add a problem; returns `BAD`."""
        self.problems.append(f"{path or 'it'} {message}")
        return BAD

    def _wrong(self, path: str, data: Any, expected: str) -> Any:
        return self.problem(path, f"is {self.shown(data)}, expected {expected}")

    def _annotated(self, hint: Any, data: Any, path: str) -> Any:
        kind, *marks = get_args(hint)
        if data is None and NULL_IS_INFINITE in marks:
            return inf
        like = next((mark for mark in marks if isinstance(mark, Like)), None)
        if like is not None:
            value = self._typed_dict(like.kind, data, path, is_open=like.is_open)
        else:
            value = self.read(kind, data, path)
        if value is not BAD:
            for check in marks:
                if callable(check) and (message := check(value)) is not None:
                    return self.problem(path, message)
        return value

    def _union(self, options: tuple[Any, ...], data: Any, path: str) -> Any:
        if data is None and NoneType in options:
            return None
        options = tuple(option for option in options if option is not NoneType)
        if len(options) == 1:
            return self.read(options[0], data, path)
        # int before float, so that a whole number stays an int.
        for option in sorted(options, key=lambda option: option is not int):
            attempt = type(self)()
            value = attempt.read(option, data, path)
            if not attempt.problems:
                return value
        return self._wrong(path, data, self._any_of(options))

    def _literal(self, choices: tuple[Any, ...], data: Any, path: str) -> Any:
        for choice in choices:
            if type(choice) is type(data) and choice == data:
                return choice
        return self._wrong(path, data, " or ".join(map(self.shown, choices)))

    def _list(self, items: tuple[Any, ...], data: Any, path: str) -> Any:
        if not isinstance(data, list | tuple):
            return self._wrong(path, data, "a list")
        if items[1:] == (...,):
            items = (items[0],) * len(data)
        elif len(items) != len(data):
            return self.problem(
                path, f"has {plural(len(data), 'entry', 'entries')}, expected {len(items)}"
            )
        read = [
            self.read(item, value, f"{path}[{index}]")
            for index, (item, value) in enumerate(zip(items, data, strict=True))
        ]
        return BAD if any(value is BAD for value in read) else tuple(read)

    def _mapping(self, keys: Any, values: Any, data: Any, path: str) -> Any:
        if keys is not str and isinstance(data, list | tuple):  # as pairs: JSON's keys are strings
            pairs = self._list((tuple[keys, values], ...), data, path)
            return pairs if pairs is BAD else dict(pairs)
        if keys is not str or not isinstance(data, Mapping):
            return self._wrong(path, data, "an object" if keys is str else "a list of pairs")
        read = {key: self.read(values, value, _at(path, key)) for key, value in data.items()}
        return BAD if any(value is BAD for value in read.values()) else read

    def _typed_dict(self, kind: Any, data: Any, path: str, *, is_open: bool) -> Any:
        if not isinstance(data, Mapping):
            return self._wrong(path, data, "an object")
        before, hints = len(self.problems), hints_of(kind)
        for name in sorted(_required(kind) - data.keys()):
            self.problem(_at(path, name), "is missing")
        for key, value in data.items():
            if key in hints:
                self.read(hints[key], value, _at(path, key))
            elif not is_open:
                self._unknown(path, key, hints)
            elif not _is_plain(value):
                self._wrong(_at(path, key), value, "plain data")
        return BAD if len(self.problems) > before else dict(data)

    def _named_tuple(self, kind: Any, data: Any, path: str) -> Any:
        if not isinstance(data, Mapping):
            return self._wrong(path, data, "an object")
        before, hints = len(self.problems), hints_of(kind)
        for key in data.keys() - hints.keys():
            self._unknown(path, key, hints)
        values = {}
        for name, hint in hints.items():
            if name in data:
                values[name] = self.read(hint, data[name], _at(path, name))
            else:
                self.problem(_at(path, name), "is missing")
        return BAD if len(self.problems) > before else self._made(kind, values, path)

    def _object(self, kind: Any, data: Any, path: str) -> Any:
        if not isinstance(data, Mapping):
            return self._wrong(path, data, "an object")
        remaining = _Taken(data)
        made = self._take(kind, remaining, path)
        self._left_over(remaining, kind, path)
        return made

    def _left_over(self, remaining: _Taken, kind: type, path: str) -> None:
        for key, value in remaining.items():
            if isinstance(value, _Taken):
                self._left_over(value, kind, _at(path, key))
            else:
                self._unknown(path, key, [entry.path[-1] for entry in _layout(kind) if entry.path])

    def _unknown(self, path: str, key: str, known: Iterable[str]) -> None:
        near = nearest(key, known)
        self.problem(
            _at(path, key), f"is an unknown key{f': did you mean {near}?' if near else ''}"
        )

    def _take(self, kind: Any, remaining: _Taken, path: str) -> Any:
        """Read an object of a class, removing its keys from a JSON object."""
        before, values, hints = len(self.problems), {}, hints_of(kind)
        # The longest paths first: the rest of an object that holds them is a mapping itself.
        for entry in sorted(_layout(kind), key=lambda entry: -len(entry.path)):
            if not entry.path:
                values[entry.attribute] = self._take_inline(hints[entry.attribute], remaining, path)
                continue
            item, item_path = self._pop(entry, remaining, path)
            if item is BAD or not entry.is_field:  # reported already, or derived
                continue
            if item is not _NONE:
                values[entry.attribute] = self.read(hints[entry.attribute], item, item_path)
            elif not entry.is_optional:
                self.problem(item_path, "is missing")
        if len(self.problems) > before:
            return BAD
        return self._made(kind, values, path)

    def _take_inline(self, hint: Any, remaining: _Taken, path: str) -> Any:
        """Read an attribute whose keys are merged into those of the object."""
        if is_dataclass(hint):
            return self._take(hint, remaining, path)
        known = hints_of(hint.__metadata__[0].kind)
        keys = [key for key in remaining if key in known]
        return self.read(hint, {key: remaining.pop(key) for key in keys}, path)

    def _pop(self, entry: _Entry, remaining: _Taken, path: str) -> tuple[Any, str]:
        """Remove and return the item of an entry with its path; `_NONE` if it is missing."""
        for outer in entry.path[:-1]:
            inner = remaining.get(outer, _NONE)
            path = _at(path, outer)
            if inner is _NONE:
                return _NONE, _at(path, entry.path[-1])
            if not isinstance(inner, Mapping):
                self._wrong(path, inner, "an object")
                inner = remaining[outer] = _Broken()
            if isinstance(inner, _Broken):
                return BAD, path
            if not isinstance(inner, _Taken):
                remaining[outer] = _Taken(inner)
            remaining = remaining[outer]
        item = remaining.pop(entry.path[-1], _NONE)
        return (dict(item) if isinstance(item, _Taken) else item), _at(path, entry.path[-1])

    def _made(self, kind: Any, values: Mapping[str, Any], path: str) -> Any:
        try:
            made = kind(**values)
        except (ValueError, TypeError) as error:
            return self.problem(path, f"cannot be: {error}")
        wrong = list(made.problems()) if hasattr(made, "problems") else []
        for message in wrong:
            self.problems.append(f"{path}: {message}" if path else message)
        return BAD if wrong else made


_LARGEST = 2**63


def _is_int(data: Any) -> bool:
    return type(data) is int and -_LARGEST <= data < _LARGEST


def _is_float(data: Any) -> bool:
    return _is_int(data) or (type(data) is float and isfinite(data))


SCALARS: Mapping[type, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda data: isinstance(data, bool), "true or false"),
    int: (_is_int, "a whole number"),
    float: (_is_float, "a finite number"),
    str: (lambda data: isinstance(data, str), "a string"),
}


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The known key that is most similar, if one is similar."""
    return next(iter(get_close_matches(key[:100], list(known), n=1)), None)


def _is_plain(data: Any, depth: int = 0) -> bool:
    """Whether data is plain JSON data, nested no deeper than `MAX_DEPTH`."""
    if depth > MAX_DEPTH:
        return False
    if isinstance(data, Mapping):
        return all(
            isinstance(key, str) and _is_plain(item, depth + 1) for key, item in data.items()
        )
    if isinstance(data, list | tuple):
        return all(_is_plain(item, depth + 1) for item in data)
    return data is None or isinstance(data, bool | str) or _is_float(data)


def _at(path: str, key: str) -> str:
    name = key if key.isidentifier() and key.isascii() else f"[{_shown(key)}]"
    return f"{path}.{name}" if path and not name.startswith("[") else f"{path}{name}"


def _shown(data: Any) -> str:
    if isinstance(data, bool):
        return "true" if data else "false"
    return "null" if data is None else escaped(short(data))
