"""Keys and types against the fields of a dataclass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

import pytest

from trimtab.results.tables import check_table, unknown_key


@dataclass
class Example:
    """One field of each make that run files and TRL have."""

    whole: int = 0
    share: float | None = None
    name: str = ""
    on: bool = False
    choice: Literal["raise", "skip"] = "raise"
    weights: list[float] | None = None
    bounds: tuple[float, float] | None = None
    styles: Sequence[str] = ()
    anything: tuple = ()  # type: ignore[type-arg]
    day: date | None = None
    either: int | str | None = None
    table: dict[str, Any] | str | None = None
    off_or_name: str | Literal[False] | None = None
    derived: int = field(default=0, init=False)


@pytest.mark.parametrize(
    "given",
    [
        {"whole": -3},
        {"share": 0.5},
        {"name": ""},
        {"on": True},
        {"choice": "skip"},
        {"weights": [1, 0.5]},
        {"bounds": [1, 0.5]},
        {"styles": ["a"]},
        {"anything": ["a", 1]},
        {"either": 3},
        {"either": "three"},
        {"table": {"a": [1]}},
        {"off_or_name": False},
        {},
    ],
)
def test_what_fits_is_passed_on_unchanged(given: dict[str, Any]) -> None:
    problems: list[str] = []
    assert check_table(Example, given, "", problems) == given
    assert problems == []


def test_a_whole_number_becomes_a_float_where_one_is_expected() -> None:
    good = check_table(Example, {"share": 1, "whole": 1, "either": 1}, "", [])
    assert {key: type(value) for key, value in good.items()} == {
        "share": float,
        "whole": int,
        "either": int,
    }


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"whole": 1.0}, "t.whole is 1.0, expected a whole number"),
        ({"whole": True}, "t.whole is true, expected a whole number"),
        ({"share": "1e-5"}, 't.share is "1e-5", expected a number'),
        ({"share": float("nan")}, "t.share is nan, expected a number"),
        ({"share": False}, "t.share is false, expected a number"),
        ({"name": 3}, "t.name is 3, expected a string"),
        ({"on": 1}, "t.on is 1, expected true or false"),
        ({"on": "true"}, 't.on is "true", expected true or false'),
        ({"choice": "stop"}, 't.choice is "stop", expected "raise" or "skip"'),
        ({"weights": ["a"]}, 't.weights[0] is "a", expected a number'),
        ({"bounds": ["a"]}, "t.bounds has 1 entry, expected 2"),
        ({"styles": "a"}, 't.styles is "a", expected a list'),
        ({"anything": 1}, "t.anything is 1, expected a list"),
        ({"day": "today"}, "t.day takes what cannot be written in a run file"),
        ({"weights": {}}, "t.weights is a table, expected a list"),
        ({"either": 0.5}, "t.either is 0.5, expected a whole number or a string"),
        ({"off_or_name": True}, "t.off_or_name is true, expected a string or false"),
        ({"derived": 1}, "there is no key t.derived"),
    ],
)
def test_what_does_not_fit(given: dict[str, Any], problem: str) -> None:
    problems: list[str] = []
    assert check_table(Example, given, "t.", problems) == {}
    assert [text.partition(":")[0] for text in problems] == [problem]


def test_unknown_key_names_the_nearest_or_all() -> None:
    known = ["learning_rate", "max_steps"]
    assert unknown_key("learnin_rate", known, "trainer.") == (
        "there is no key trainer.learnin_rate: did you mean trainer.learning_rate?"
    )
    assert unknown_key("x", known) == "there is no key x: expected learning_rate, max_steps"
    assert unknown_key("x", [f"key {i}" for i in range(20)]) == "there is no key x"


def test_all_problems_are_told() -> None:
    problems: list[str] = []
    check_table(Example, {"whole": "a", "nam": "b", "on": True}, "", problems)
    assert len(problems) == 2
