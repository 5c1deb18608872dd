"""The result: figures by hand, JSON and back, and files that are no trajectory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import OutputExistsError, ResultFormatError
from trimtab.measure.trajectory_result import Point, PointCounts, SeriesCoverage, Trajectory
from trimtab.results.records import CheckpointRecord

BASE = CheckpointRecord("base", None, "LlamaForCausalLM", 2, 30, {"BF16": 30}, "ab" * 16)


def counts(
    num_elements: int, changed: int, stepped: int, ever: int, in_final: int, ever_in_final: int
) -> PointCounts:
    return PointCounts(
        num_elements, changed, stepped, ever, ever - changed, in_final, ever_in_final
    )


def make_trajectory() -> Trajectory:
    """Two kinds, three points: q_proj has 20 elements, norm has 10."""
    q_proj = [counts(20, 4, 4, 4, 2, 2), counts(20, 9, 7, 10, 8, 9), counts(20, 10, 3, 12, 10, 10)]
    norm = [counts(10, 0, 0, 0, 0, 0), counts(10, 1, 1, 1, 0, 0), counts(10, 0, 1, 1, 0, 0)]
    return Trajectory(
        base=BASE,
        points=tuple(
            Point(f"r/checkpoint-{10 * at}", 10 * at, {"q_proj": q, "norm": n}, BASE)
            for at, (q, n) in enumerate(zip(q_proj, norm, strict=True), 1)
        ),
        observed="checkpoints",
        every=10,
        coverage=SeriesCoverage(
            31, 30, ({"name": "x", "why": "missing", "points": ["p"], "num_elements": 1},)
        ),
        provenance={"command": None, "threads": 2},
    )


def test_figures_by_hand() -> None:
    trajectory = make_trajectory()
    final = trajectory.final.total
    assert final == PointCounts(30, 10, 4, 13, 3, 10, 10)
    assert (final.untouched, final.outside_final) == (17, 3)
    assert trajectory.series()[1] == PointCounts(30, 10, 8, 11, 1, 8, 9)
    assert trajectory.series("norm")[1].outside_final == 1
    assert trajectory.steps == (10, 20, 30)
    assert trajectory.likeness("coverage") == (2 / 10, 8 / 10, 1.0)
    assert trajectory.likeness("jaccard") == (2 / 12, 8 / 12, 1.0)
    assert trajectory.likeness("coverage", "norm") == (None, None, None)
    assert trajectory.likeness("jaccard", "norm") == (None, 0.0, None)
    assert trajectory.settled() == 2
    assert trajectory.settled(kind="norm") is None
    assert trajectory.coverage is not None
    assert not trajectory.coverage.is_complete


def series(*in_final: int, changed: int = 100) -> Trajectory:
    """Points in which so many of the 100 elements of the final mask are changed, and no others."""
    ever, points = 0, []
    for at, num in enumerate((*in_final, changed), 1):
        ever = max(ever, num)
        points.append(Point(f"p{at}", at, {"up_proj": counts(1000, num, num, ever, num, ever)}))
    return Trajectory(BASE, tuple(points), "steps", 1)


@pytest.mark.parametrize(
    ("in_final", "settled"),
    [
        ((), 0),
        ((10, 94), 2),
        ((10, 95), 1),
        ((95, 96, 99), 0),
        ((95, 94, 99), 2),
        ((99, 98, 20), 3),
    ],
)
def test_settled(in_final: tuple[int, ...], settled: int) -> None:
    """The first point from which it stays at 95 % or above, not the first that reaches it."""
    assert series(*in_final).settled("coverage") == settled
    assert series(*in_final).settled("jaccard") == settled


def test_jaccard_settles_later_where_much_comes_back() -> None:
    early = counts(1000, 200, 200, 200, 100, 100)
    late = counts(1000, 100, 100, 200, 100, 100)
    points = tuple(Point(str(at), at, {"norm": c}) for at, c in enumerate((early, late), 1))
    trajectory = Trajectory(BASE, points, "steps", 1)
    assert (trajectory.settled("coverage"), trajectory.settled("jaccard")) == (0, 1)


def test_nothing_changed() -> None:
    trajectory = series(0, changed=0)
    assert trajectory.settled() is None
    assert trajectory.likeness("coverage") == (None, None)


def test_steps_are_used_only_where_they_tell_points_apart() -> None:
    trajectory = make_trajectory()
    first, second, third = trajectory.points
    assert replace(trajectory, points=(first, replace(second, step=None), third)).steps is None
    assert replace(trajectory, points=(first, replace(second, step=10), third)).steps is None


def test_json_and_back(tmp_path: Path) -> None:
    for trajectory in (make_trajectory(), series(1, 2)):
        assert Trajectory.from_dict(json.loads(trajectory.to_json())) == trajectory
        path = tmp_path / f"{len(trajectory.points)}-{trajectory.observed}.json"
        trajectory.save(path)
        assert Trajectory.load(path) == trajectory
        with pytest.raises(OutputExistsError):
            trajectory.save(path)
        trajectory.save(path, force=True)


def test_derived_figures_are_not_trusted_from_a_file() -> None:
    data = make_trajectory().to_dict()
    data["settled"] = {}
    for point in data["points"]:
        point["total"] = dict.fromkeys(point["total"], 7)
    assert Trajectory.from_dict(data) == make_trajectory()


Damage = Callable[[dict[str, Any]], object]


def _norm(data: dict[str, Any], **counts: Any) -> None:
    data["points"][0]["by_kind"]["norm"].update(counts)


def _q_proj(data: dict[str, Any], at: int, **counts: Any) -> None:
    data["points"][at]["by_kind"]["q_proj"].update(counts)


DAMAGES: list[tuple[str, Damage]] = [
    ("points", lambda data: data.pop("points")),
    ("at least one point", lambda data: data.update(points=[])),
    ("base", lambda data: data["provenance"].pop("base")),
    ("observed is 'dreams'", lambda data: data.update(observed="dreams")),
    ("every is a number", lambda data: data.update(every=0)),
    ("every is true", lambda data: data.update(every=True)),
    ("points[0].step is '3'", lambda data: data["points"][0].update(step="3")),
    ("points[0].label is 3", lambda data: data["points"][0].update(label=3)),
    ("points[0].by_kind.norm.more is an unknown key", lambda data: _norm(data, more=1)),
    ("counts are between 0", lambda data: _norm(data, stepped=11)),
    ("counts are between 0", lambda data: _norm(data, stepped=-1)),
    ("stepped is 0.5, expected a whole", lambda data: _norm(data, stepped=0.5)),
    ("changed + returned is ever", lambda data: _q_proj(data, 1, returned=0)),
    ("in_final is at most changed", lambda data: _q_proj(data, 0, in_final=5)),
    ("ever_in_final is at most ever", lambda data: _q_proj(data, 0, ever_in_final=5)),
    ("in_final is changed", lambda data: _q_proj(data, 2, in_final=9)),
    ("has other kinds", lambda data: data["points"][1]["by_kind"].pop("norm")),
    ("does not follow", lambda data: _q_proj(data, 0, ever=11, returned=7)),
    ("provenance.base.id is 3", lambda data: data["provenance"]["base"].update(id=3)),
    ("coverage.num_compared is 'all'", lambda data: data["coverage"].update(num_compared="all")),
    ("not_compared", lambda data: data["coverage"].pop("not_compared")),
]


@pytest.mark.parametrize(("words", "damage"), DAMAGES)
def test_a_damaged_result_is_refused(words: str, damage: Damage) -> None:
    data = make_trajectory().to_dict()
    damage(data)
    with pytest.raises(ResultFormatError, match="damaged trajectory") as error:
        Trajectory.from_dict(data)
    assert words in str(error.value)


@pytest.mark.parametrize("data", [None, [], 3, {}, {"format": "trimtab.comparison"}])
def test_what_is_no_trajectory_is_refused(data: Any) -> None:
    with pytest.raises(ResultFormatError, match="not a trimtab trajectory"):
        Trajectory.from_dict(data)


def test_a_later_version_is_refused() -> None:
    data = make_trajectory().to_dict() | {"format_version": 2}
    with pytest.raises(ResultFormatError, match="format version 2: this trimtab reads version 1"):
        Trajectory.from_dict(data)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"format": "trimtab.identity"}'])
def test_a_file_that_is_no_trajectory(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(ResultFormatError, match=r"t\.json"):
        Trajectory.load(path)
