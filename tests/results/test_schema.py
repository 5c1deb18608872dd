"""Plain data and types: what is right comes back as it was, what is wrong is told with its path."""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np
import pytest
from numpy.typing import NDArray

from trimtab.errors import ResultFormatError
from trimtab.results.result import Result
from trimtab.results.schema import (
    NULL_IS_INFINITE,
    Amount,
    Count,
    Like,
    Share,
    from_plain,
    to_plain,
)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Pair(NamedTuple):
    left: int
    right: int

    def problems(self) -> Iterator[str]:
        if self.left > self.right:
            yield f"left is {self.left}, right {self.right}"


class Row(TypedDict):
    name: str
    num: Count
    more: NotRequired[str]


@dataclass(frozen=True)
class Inner:
    num: Count
    of: int = 10

    def problems(self) -> Iterator[str]:
        if self.num > self.of:
            yield f"num is {self.num} of {self.of}"


@dataclass(frozen=True)
class Outer:
    PLAIN: ClassVar = (
        *("text", "=inner", "half", "deep.share=share", "deep.sum=sum", "deep.twice=twice"),
        *("pair", "colour", "sides", "free", "free.inside=inside", "rows", "keyed", "array?"),
        "kind",
    )

    text: str
    inner: Inner
    share: Share
    sum: Annotated[float, NULL_IS_INFINITE]
    pair: Pair | None
    colour: Colour
    sides: tuple[int, float, bool]
    inside: Inner
    rows: tuple[Annotated[Mapping[str, Any], Like(Row)], ...]
    keyed: Mapping[int | None, Amount | str]
    array: NDArray[np.int64] | None = None
    kind: Literal["a", "b"] = "a"
    free: Mapping[str, Any] = field(default_factory=dict)

    @property
    def half(self) -> float:
        return self.inner.num / 2

    def twice(self) -> float:
        return 2 * self.sum


GOOD = Outer(
    text="t",
    inner=Inner(3),
    share=0.5,
    sum=math.inf,
    pair=Pair(1, 2),
    colour=Colour.BLUE,
    sides=(1, 2.5, True),
    inside=Inner(1, 2),
    rows=({"name": "n", "num": 1}, {"name": "m", "num": 2, "more": "x"}),
    keyed={None: 1.5, 3: "x"},
    array=np.array([1, 2]),
    free={"any": [1, {"b": None}]},
)


def data(**changed: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(to_plain(GOOD), allow_nan=False))
    return plain | changed


def problems(plain: Any) -> list[str]:
    with pytest.raises(ResultFormatError, match=r"^damaged thing: ") as caught:
        from_plain(Outer, plain, what="thing")
    return str(caught.value).removeprefix("damaged thing: ").split("; ")


def test_there_and_back() -> None:
    plain = data()
    assert list(plain) == [
        *("text", "num", "of", "half", "deep", "pair", "colour", "sides", "free", "rows"),
        *("keyed", "array", "kind"),
    ]
    assert plain["deep"] == {"share": 0.5, "sum": None, "twice": None}
    assert plain["free"] == {"any": [1, {"b": None}], "inside": {"num": 1, "of": 2}}
    assert plain["keyed"] == [[None, 1.5], [3, "x"]]
    again = from_plain(Outer, plain, what="thing")
    assert to_plain(again) == plain
    assert (again.sum, again.pair, again.colour) == (math.inf, Pair(1, 2), Colour.BLUE)
    assert again.array is not None
    assert again.array.dtype == np.int64


def test_what_is_derived_is_not_believed_and_what_is_optional_may_lack() -> None:
    plain = data(half=99, deep={"share": 0.5, "sum": 1.0})
    del plain["array"]
    again = from_plain(Outer, plain, what="thing")
    assert (again.half, again.array) == (1.5, None)
    del plain["kind"], plain["of"]  # that they have defaults is for code, not for files
    assert problems(plain) == ["kind is missing", "of is missing"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"text": 1}, "text is 1, expected a string"),
        ({"text": None}, "text is null, expected a string"),
        ({"num": -1}, "num is -1, fewer than none"),
        ({"num": True}, "num is true, expected a whole number"),
        ({"num": 1.0}, "num is 1.0, expected a whole number"),
        ({"num": 2**63}, f"num is {2**63}, expected a whole number"),
        ({"num": 11}, "num is 11 of 10"),
        ({"deep": {"share": 1.5, "sum": 0}}, "deep.share is 1.5, expected a share from 0 to 1"),
        ({"deep": {"share": math.nan, "sum": 0}}, "deep.share is nan, expected a finite number"),
        ({"deep": {"share": 0, "sum": math.inf}}, "deep.sum is inf, expected a finite number"),
        ({"deep": {"share": 0}}, "deep.sum is missing"),
        ({"deep": [0]}, "deep is [0], expected an object"),
        (
            {"deep": {"share": 0, "sum": 0, "sun": 0}},
            "deep.sun is an unknown key: did you mean sum?",
        ),
        ({"pair": {"left": 1}}, "pair.right is missing"),
        ({"pair": {"left": 3, "right": 2}}, "pair: left is 3, right 2"),
        ({"pair": [1, 2]}, "pair is [1, 2], expected an object"),
        ({"colour": "green"}, "colour is 'green', expected 'red' or 'blue'"),
        ({"kind": "c"}, "kind is 'c', expected 'a' or 'b'"),
        ({"sides": [1, 2]}, "sides has 2 entries, expected 3"),
        ({"sides": [1, "2", True]}, "sides[1] is '2', expected a finite number"),
        ({"free": {"inside": {"num": 3, "of": 2}}}, "free.inside: num is 3 of 2"),
        ({"free": {}}, "free.inside is missing"),
        ({"rows": [{"name": "n", "num": "1"}]}, "rows[0].num is '1', expected a whole number"),
        ({"rows": [{"num": 1}]}, "rows[0].name is missing"),
        ({"rows": [{"name": "n", "num": 1, "a b": 1}]}, "rows[0]['a b'] is an unknown key"),
        ({"keyed": {"3": 1}}, "keyed is {'3': 1}, expected a list of pairs"),
        ({"keyed": [[3, -1]]}, "keyed[0][1] is -1, expected an object or a string"),
        ({"array": [1, 1.5]}, "array[1] is 1.5, expected a whole number"),
        ({"other": 1}, "other is an unknown key"),
        ({"tex": 1}, "tex is an unknown key: did you mean text?"),
        ({"text": "\x1b"}, ""),
    ],
)
def test_what_is_wrong_is_told_with_its_path(changed: dict[str, Any], expected: str) -> None:
    if expected:
        assert problems(data(**changed)) == [expected]
    else:  # a text may hold anything: it is escaped where it is printed
        assert from_plain(Outer, data(**changed), what="thing")


def test_everything_is_told_at_once_and_cut_short() -> None:
    plain = data(text=1, colour=2, sides=3)
    del plain["rows"]
    assert len(problems(plain)) == 4
    assert problems(data(rows=[{}] * 1000))[-1] == "and 1995 more"


def test_no_name_of_a_file_reaches_a_message_raw() -> None:
    for what in problems(data(**{"a\x1b[2J\u202e": 1}, text={"\x1b": "\u202e"})):
        assert what.isprintable()
        assert "\u202e" not in what


def test_free_data_is_not_nested_deeply() -> None:
    nested: Any = 1
    for _ in range(100):
        nested = [nested]
    (what,) = problems(data(free={"inside": {"num": 1, "of": 2}, "a": nested}))
    assert re.match(r"free.a is \[\[\[.*expected plain data", what)


@dataclass(frozen=True)
class Thing(Result):
    """A result with a header."""

    FORMAT = "f"
    NAME = "thing"
    COMMAND = "trimtab thing"

    num: int


def test_a_header_of_another_kind_or_version() -> None:
    read = Thing.from_dict
    assert read({"format": "f", "format_version": 1, "num": 1}) == Thing(1)
    plain: Any
    for plain in (None, [], {}, {"format": "g"}, {"format": ["f"]}):
        with pytest.raises(ResultFormatError, match="not a trimtab thing: expected format 'f'"):
            read(plain)
    for version in (2, None, True, "1", 1.0, ["x" * 10_000]):
        with pytest.raises(ResultFormatError, match="this trimtab reads version 1") as caught:
            read({"format": "f", "format_version": version, "num": 1})
        assert len(str(caught.value)) < 200
