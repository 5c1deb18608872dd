"""Files of tracked updates: read, replayed against sets, cut off, and refused when damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.elements import index_coding
from trimtab.errors import ResultFormatError
from trimtab.measure import tracked
from trimtab.measure.tracked import read_steps, read_tracked
from trimtab.measure.tracked_file import (
    FORMAT,
    MAGIC,
    MAGIC_1,
    KindFigures,
    Part,
    StepFigures,
    is_tracked,
    open_tracked,
    pack_point,
    pack_record,
)
from trimtab.measure.trajectory_result import PointCounts

PARTS = (Part("a", "norm", "BF16", 100), Part("b", "embed", "BF16", 40, 1))
BASE = {
    "id": "base",
    "revision": None,
    "architecture": None,
    "num_tensors": 2,
    "num_elements": 140,
    "dtypes": {"BF16": 140},
    "content_hash": "0" * 32,
}
HEADER: Mapping[str, Any] = {
    "format": FORMAT,
    "format_version": 2,
    "every": 1,
    "stored_dtype": "BF16",
    "base": BASE,
    "base_digests": ["", ""],
    "parts": [list(part) for part in PARTS],
    "provenance": {"trimtab_version": "0"},
}
Toggles = Sequence[tuple[Sequence[int], Sequence[int]]]


def coded(positions: Sequence[int]) -> tuple[int, bytes]:
    if not positions:
        return index_coding.EMPTY, b""
    distances = np.diff(positions, prepend=-1) - 1
    return index_coding.GAPS8, distances.astype(np.uint8).tobytes()


def figures(step: int, stepped: int = 3, **more: Any) -> StepFigures:
    return StepFigures(step, {"norm": KindFigures(stepped, **more), "embed": KindFigures(0)})


def point(step: int, toggled: Sequence[Sequence[int]], **more: Any) -> bytes:
    return pack_point(figures(step, **more), [coded(one) for one in toggled])


def write(
    path: Path, *records: bytes, header: Mapping[str, Any] = HEADER, version: int = 2
) -> Path:
    content = MAGIC_1 if version == 1 else MAGIC
    if version == 1:
        header = {**header, "format_version": 1}
    for one in (json.dumps(header).encode(), *records):
        content += pack_record(one, len(content), version)
    path.write_bytes(content)
    return path


def three_points() -> tuple[bytes, ...]:
    return (
        point(1, ([0, 5, 99], [])),
        point(2, ([5, 7], [39])),
        point(4, ([5, 0, 8][1:], [39]), gradient_elements=100, gradient_nonzero=50),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "u", *three_points())


def test_points_that_a_run_adds_meanwhile_do_no_harm_and_others_are_refused(path: Path) -> None:
    content = path.read_bytes()
    opened = open_tracked(path)
    before = [one.tolist() for one in opened.toggles(0)]
    more = pack_record(point(5, ([1], [])), len(content))
    path.write_bytes(content + more)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert [one.tolist() for one in opened.toggles(0)] == before
    # A run that was resumed took the third point back, and moved something else.
    short = open_tracked(path).points[1].end
    path.write_bytes(content[:short] + pack_record(point(4, ([3, 4], [39])), short))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 2))
    with pytest.raises(ResultFormatError, match="changed while it was being read"):
        list(opened.toggles(0))
    assert len(list(open_tracked(path).toggles(0))) == 3
    path.unlink()
    with pytest.raises(ResultFormatError):
        list(opened.toggles(0))


def test_counts_by_hand(path: Path) -> None:
    trajectory = read_tracked(path)
    norm = [point.by_kind["norm"] for point in trajectory.points]
    # changed: {0, 5, 99}, {0, 7, 99}, {7, 8, 99}; the last is final
    assert norm == [
        PointCounts(100, 3, 3, 3, 0, 1, 1),
        PointCounts(100, 3, 3, 4, 1, 2, 2),
        PointCounts(100, 3, 3, 5, 2, 3, 3),
    ]
    embed = [point.by_kind["embed"] for point in trajectory.points]
    assert [point.returned for point in embed] == [0, 0, 1]
    assert [point.step for point in trajectory.points] == [1, 2, 4]
    assert trajectory.points[0].label == "step 1"
    assert trajectory.every is None
    assert trajectory.observed == "steps"
    assert trajectory.base.num_elements == 140
    assert trajectory.provenance == {"trimtab_version": "0"}


def test_figures(path: Path) -> None:
    first, _, last = read_steps(path)
    assert last.total == KindFigures(3, 100, 50)
    assert last.total.gradient_density == 0.5
    assert last.total.absorbed_share is None
    assert first.by_kind["norm"].gradient_density is None


@pytest.mark.parametrize("limit", [0, 1000])
def test_replay_is_that_of_sets(tmp_path: Path, limit: int, monkeypatch: Any) -> None:
    """Whether it keeps all elements of a part, or only those that ever moved."""
    monkeypatch.setattr(tracked, "SPARSE_ABOVE", limit)
    rng = np.random.default_rng(0)
    toggles = [[np.flatnonzero(rng.random(n) < 0.1) for n in (100, 40)] for _ in range(9)]
    records = [
        point(1 + step, [item.tolist() for item in both]) for step, both in enumerate(toggles)
    ]
    found = read_tracked(write(tmp_path / "u", *records))

    for number, kind in enumerate(("norm", "embed")):
        changed: list[set[int]] = [set()]
        for both in toggles:
            changed.append(changed[-1] ^ set(both[number].tolist()))
        ever: set[int] = set()
        for now, item in zip(changed[1:], found.points, strict=True):
            ever |= now
            counts = item.by_kind[kind]
            expected = (now, ever, ever - now, now & changed[-1], ever & changed[-1])
            assert counts[1:2] + counts[3:] == tuple(map(len, expected))


def test_the_cadence_is_told_if_there_is_one(tmp_path: Path) -> None:
    records = [point(step, ([step], [])) for step in (5, 10, 15)]
    assert read_tracked(write(tmp_path / "u", *records)).every == 5


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_cut_off_is_passed_over_and_told(path: Path, version: int) -> None:
    content = write(path, *three_points(), version=version).read_bytes()
    ends = [one.end for one in open_tracked(path).points]
    for size in range(ends[1], ends[2]):
        path.write_bytes(content[:size])
        assert [one.step for one in read_steps(path)] == [1, 2]
        cut_off = {"after_step": 2, "num_bytes": size - ends[1]}
        found = read_tracked(path).provenance
        assert found.get("cut_off") == (cut_off if size > ends[1] else None)
    path.write_bytes(content[: ends[1]] + bytes(ends[2] - ends[1]))  # space that was never filled
    assert [one.step for one in read_steps(path)] == [1, 2]
    assert read_tracked(path).provenance["cut_off"]["num_bytes"] == ends[2] - ends[1]
    for size in range(len(MAGIC), open_tracked(path).points[0].offsets[0] - 100):
        path.write_bytes(content[:size])
        with pytest.raises(ResultFormatError, match=r"ends before its header|has no point yet"):
            read_tracked(path)


def test_the_last_point_is_then_final(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
    assert read_tracked(path).final.by_kind["norm"] == PointCounts(100, 3, 3, 4, 1, 3, 3)


def test_it_is_known_by_its_first_bytes(path: Path, tmp_path: Path) -> None:
    assert is_tracked(path)
    assert not is_tracked(tmp_path)
    assert not is_tracked(tmp_path / "nothing")
    (tmp_path / "other").write_bytes(b"trimtab")
    assert not is_tracked(tmp_path / "other")
    with pytest.raises(ResultFormatError, match="not a file of tracked updates"):
        read_tracked(tmp_path / "other")
    with pytest.raises(ResultFormatError, match="no such file"):
        read_tracked(tmp_path / "nothing")


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_no_flipped_bit_is_taken_for_the_end(path: Path, version: int) -> None:
    """One in a length made 40 points 4, with not a word about the others."""
    content = bytearray(write(path, *three_points(), version=version).read_bytes())
    whole = read_tracked(path).to_dict()
    last = open_tracked(path).points[-2].end
    for place in range(len(content)):
        for bit in range(8):
            content[place] ^= 1 << bit
            path.write_bytes(content)
            content[place] ^= 1 << bit
            try:
                found = open_tracked(path)
            except ResultFormatError as error:
                assert "\n" not in str(error)
                continue
            assert place >= last, f"byte {place}, bit {bit} is read over"
            assert [point.figures.step for point in found.points] == [1, 2]
            assert found.num_cut_off == len(content) - last
    path.write_bytes(content)
    assert read_tracked(path).to_dict() == whole


def test_where_it_is_damaged_and_what_is_left(path: Path) -> None:
    content = bytearray(path.read_bytes())
    first, second, _ = (point.end for point in open_tracked(path).points)
    content[first] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ResultFormatError,
        match=rf"damaged: point 2, at byte {first:,}: its length .* up to step 1, .* {first:,} b",
    ):
        read_tracked(path)
    path.write_bytes(content[:first])  # as it says
    assert [point.step for point in read_steps(path)] == [1]
    content[first] ^= 1
    path.write_bytes(content[:first] + content[second:])  # a point is missing
    with pytest.raises(ResultFormatError, match="point 2, at byte"):
        read_tracked(path)


def altered(**changes: Any) -> Mapping[str, Any]:
    return {**HEADER, **changes}


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ([], "no JSON object"),
        (altered(format="other"), "expected format"),
        (altered(format_version=3), "expected format"),
        (altered(parts=[]), "a list with something in it"),
        (altered(parts=[["a", "norm", "BF16"]]), "its header"),
        (altered(parts=[["a", "norm", "BF15", 3, 0]]), "is no part of a model"),
        (altered(parts=[["a", "norm", "BF16", -3, 0]]), "is no part of a model"),
        (altered(parts=[["a", "norm", "BF16", 2**63, 0]]), "is no part of a model"),
        (altered(parts=[["a", 3, "BF16", 3, 0]]), "is no part of a model"),
        (altered(base={"id": "base"}), "its header"),
        (altered(base={**BASE, "dtypes": {"BF16": "many"}}), "dtypes of base are counts"),
        (altered(provenance=None), "provenance is an object"),
        (altered(every=0), "what a tracker writes"),
        (altered(stored_dtype="I5"), "what a tracker writes"),
        (altered(base_digests=3), "what a tracker writes"),
        ({key: HEADER[key] for key in HEADER if key != "base"}, "its header"),
    ],
)
def test_hostile_headers(tmp_path: Path, header: Any, problem: str) -> None:
    with pytest.raises(ResultFormatError, match=problem) as caught:
        read_tracked(write(tmp_path / "u", point(1, ([1], [])), header=header))
    assert "\n" not in str(caught.value)


def sized(content: bytes, size: int) -> bytes:
    """The first set says that it has another size."""
    at = 8 + int.from_bytes(content[:8], "little") + 2
    return content[:at] + size.to_bytes(8, "little") + content[at + 8 :]


def said(**changes: Any) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        end = 8 + int.from_bytes(content[:8], "little")
        text = json.dumps({**json.loads(content[8:end]), **changes}).encode()
        return len(text).to_bytes(8, "little") + text + content[end:]

    return change


def of_norm(*values: Any) -> Callable[[bytes], bytes]:
    row = [0, None, None, None, None, 0.0, 0.0]
    return said(by_kind={"norm": [*values, *row[len(values) :]], "embed": row})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: content[:20], "too short"),
        (lambda content: b"\xff" * 8 + content[8:], "too short"),
        (lambda content: sized(content, 2**64 - 1), "sets have another size"),
        (lambda content: sized(content, 0), "sets have another size"),
        (said(step=0), "0 is no step"),
        (said(step="1"), "'1' is no step"),
        (said(by_kind={}), "other kinds"),
        (said(by_kind=[]), "other kinds"),
        (of_norm(101), "between 0 and 100"),
        (of_norm(-1), "between 0 and 100"),
        (of_norm(True), "between 0 and 100"),
        (of_norm(1, 2.5), "between 0 and 100"),
        (of_norm(1, 2, 2, 2, 2, "x"), "no sums of squares"),
        (of_norm(1, 2, 2, 2, 2, 1.0, -1.0), "no sums of squares"),
        (said(by_kind={"norm": 3, "embed": 3}), "point 1"),
    ],
)
def test_hostile_points(tmp_path: Path, change: Callable[[bytes], bytes], problem: str) -> None:
    path = write(tmp_path / "u", change(point(1, ([1], []))))
    with pytest.raises(ResultFormatError, match=problem) as caught:
        read_tracked(path)
    assert "damaged" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hostile_sets(tmp_path: Path) -> None:
    sets = [(index_coding.GAPS8, b"\xc8"), (index_coding.EMPTY, b"")]
    path = write(tmp_path / "u", pack_point(figures(1), sets))
    with pytest.raises(ResultFormatError, match="damaged: a at step 1: a gap leads beyond"):
        read_tracked(path)
    path = write(tmp_path / "u", pack_point(figures(1), [(77, b"\0"), (index_coding.EMPTY, b"")]))
    with pytest.raises(ResultFormatError, match="no coding 77"):
        read_tracked(path)


def test_steps_that_do_not_ascend(tmp_path: Path) -> None:
    path = write(tmp_path / "u", point(2, ([1], [])), point(2, ([2], [])))
    with pytest.raises(ResultFormatError, match="step 2 follows step 2"):
        read_steps(path)


def test_a_claim_of_many_elements_takes_no_memory(tmp_path: Path) -> None:
    huge = Part("a", "norm", "BF16", 2**61)
    header = altered(parts=[list(huge), list(PARTS[1])])
    trajectory = read_tracked(write(tmp_path / "u", point(1, ([1, 90], [])), header=header))
    assert trajectory.final.total.changed == 2


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    path = write(tmp_path / "u", point(1, ([1], []), update_squares=float("inf")))
    assert read_steps(path)[0].total.update_norm == float("inf")
