"""Made-up trajectories: elements that walk, come back and settle."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.measure.trajectory_result import Point, PointCounts, SeriesCoverage, Trajectory
from trimtab.results.records import CheckpointRecord

SIZES = {"q_proj": 400, "down_proj": 700, "norm": 30}


def make_record(id: str) -> CheckpointRecord:
    num_elements = sum(SIZES.values())
    dtypes = {"BF16": num_elements}
    return CheckpointRecord(id, None, "LlamaForCausalLM", 3, num_elements, dtypes, "ab" * 16)


def make_trajectory(num_points: int = 12, **changes: Any) -> Trajectory:
    """A series whose elements move less and less, and not at all near the end."""
    paths = {
        kind: _paths(size, num_points, seed) for seed, (kind, size) in enumerate(SIZES.items())
    }
    points = tuple(
        Point(
            label=f"run/checkpoint-{5 * at}",
            step=5 * at,
            by_kind={kind: _counts(path, at) for kind, path in paths.items()},
            checkpoint=make_record(f"run/checkpoint-{5 * at}"),
        )
        for at in range(1, num_points + 1)
    )
    num_elements = sum(SIZES.values())
    parts: dict[str, Any] = {
        "base": make_record("base"),
        "points": points,
        "observed": "checkpoints",
        "every": 5,
        "coverage": SeriesCoverage(num_elements, num_elements),
        "provenance": {"trimtab_version": "0.1.0", "date": "2026-11-21T12:00:00+00:00"},
    }
    return Trajectory(**{**parts, **changes})


def _paths(size: int, num_points: int, seed: int) -> NDArray[np.int64]:
    """Positions at every point, `[points + 1, elements]`; the first is the base."""
    random = np.random.default_rng(seed)
    steps = random.integers(-1, 2, (num_points, size))
    moving = random.random((num_points, size)) < np.linspace(0.3, -0.1, num_points)[:, None]
    return np.concatenate([np.zeros((1, size), np.int64), np.cumsum(steps * moving, axis=0)])


def _counts(path: NDArray[np.int64], at: int) -> PointCounts:
    changed, final = path[at] != path[0], path[-1] != path[0]
    ever = (path[1 : at + 1] != path[0]).any(axis=0)
    return PointCounts(
        num_elements=path.shape[1],
        changed=int(changed.sum()),
        stepped=int((path[at] != path[at - 1]).sum()),
        ever=int(ever.sum()),
        returned=int((ever & ~changed).sum()),
        in_final=int((changed & final).sum()),
        ever_in_final=int((ever & final).sum()),
    )
