"""Places from a file of tracked updates, against sets replayed one by one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.measure.checkpoints import save
from tests.measure.test_tracked import HEADER, point, write
from trimtab.checkpoints.checkpoint import Checkpoint, open_checkpoint
from trimtab.errors import AnalysisError, ResultFormatError, TensorMismatchError
from trimtab.measure.tracked import TrackedPoints
from trimtab.results.records import record_of

torch = pytest.importorskip("torch")

SIZES = {"a": 100, "b": 40}
PARTS = [["a", "norm", "BF16", 100, 0], ["b", "embed", "BF16", 40, 0]]


def digests_of(base: Checkpoint) -> dict[str, str]:
    return {
        name: xxhash.xxh3_128_hexdigest(tensor.read().tobytes())
        for name, tensor in base.tensors.items()
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tracked") / "base"
    save(
        folder, {name: torch.ones(item, dtype=torch.bfloat16) for name, item in SIZES.items()}, None
    )
    with open_checkpoint(folder) as opened:
        yield opened


def tracked(
    path: Path, points: Sequence[Sequence[Sequence[int]]], parts: Any = PARTS, **more: Any
) -> Path:
    records = [point(step, toggled) for step, toggled in enumerate(points, 1)]
    return write(path, *records, header={**HEADER, "parts": parts, **more})


POSITIONS = st.lists(st.integers(0, 99), unique=True, max_size=8).map(sorted)


@settings(max_examples=40, deadline=None)
@given(st.lists(POSITIONS, min_size=1, max_size=6), st.integers(1, 7))
def test_times_changed(
    tmp_path_factory: pytest.TempPathFactory, base: Checkpoint, toggled: list[list[int]], last: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "u"
    points = TrackedPoints(tracked(path, [(one, []) for one in toggled]), base, last)
    assert points.steps == tuple(range(1, min(last, len(toggled)) + 1))
    now: set[int] = set()
    times = np.zeros(100, int)
    for one in toggled[:last]:
        now ^= set(one)
        times[list(now)] += 1
    assert points.times_changed("a").tolist() == times.tolist()
    assert not points.times_changed("b").any()


def test_no_point_so_early(tmp_path: Path, base: Checkpoint) -> None:
    path = write(tmp_path / "u", point(5, ([1], [])), header={**HEADER, "parts": PARTS})
    with pytest.raises(AnalysisError, match="no point up to step 4: the first is 5"):
        TrackedPoints(path, base, 4)


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([PARTS[0], ["qkv.q", "embed", "BF16", 40, 0]], "of base: b, qkv.q. Use"),
        ([PARTS[0], ["b", "embed", "BF16", 39, 0]], "of base: b. Use"),
        ([PARTS[0], ["b", "embed", "BF16", 40, 0], ["b", "embed", "BF16", 40, 1]], "processes"),
    ],
)
def test_parts_that_are_no_tensors(
    tmp_path: Path, base: Checkpoint, parts: Any, problem: str
) -> None:
    path = tracked(tmp_path / "u", [tuple([1] for _ in parts)], parts)
    with pytest.raises(TensorMismatchError, match="does not track the whole tensors") as caught:
        TrackedPoints(path, base)
    assert problem.replace("base", base.id) in str(caught.value)


def test_another_base(tmp_path: Path, base: Checkpoint) -> None:
    digests = digests_of(base)
    record = record_of(base, digests).to_dict()
    TrackedPoints(tracked(tmp_path / "u", [([1], [])], base=record), base).check(digests)
    other = TrackedPoints(tracked(tmp_path / "v", [([1], [])]), base)
    with pytest.raises(TensorMismatchError, match=f"with the hash {'0' * 32}, and .* has "):
        other.check(digests)


def test_a_file_that_is_none(tmp_path: Path, base: Checkpoint) -> None:
    path = tmp_path / "u"
    path.write_text(json.dumps({}))
    with pytest.raises(ResultFormatError, match="not a file of tracked updates"):
        TrackedPoints(path, base)
