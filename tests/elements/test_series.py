"""Histories of elements over a series, against a loop over single elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trimtab.elements.fast import COMPILED_FROM, history_maker
from trimtab.elements.series import COUNTED, HistoryMaker, NumpyHistory
from trimtab.elements.set_kernels import NumbaHistory

MAKERS: list[HistoryMaker] = [NumpyHistory, NumbaHistory]


def one_by_one(series: NDArray[Any]) -> list[dict[str, int]]:
    """The counts at every point of `[points + 1, elements]`, base first, element by element."""
    counts = [dict.fromkeys(COUNTED, 0) for _ in series[1:]]
    for path in series.T.tolist():
        base, points = path[0], path[1:]
        ever = False
        before = base
        for now, row in zip(points, counts, strict=True):
            ever = ever or now != base
            row["changed"] += now != base
            row["stepped"] += now != before
            row["ever"] += ever
            row["in_final"] += now != base and points[-1] != base
            row["ever_in_final"] += ever and points[-1] != base
            before = now
    return counts


def followed(make: HistoryMaker, series: NDArray[Any]) -> list[dict[str, int]]:
    history = make(series[0], series[-1])
    counts = np.zeros((len(series) - 1, len(COUNTED)), np.int64)
    for point in range(1, len(series)):
        history.advance(series[point - 1], series[point], counts[point - 1])
    return [dict(zip(COUNTED, row, strict=True)) for row in counts.tolist()]


@pytest.mark.parametrize("make", MAKERS)
@settings(max_examples=60, deadline=None)
@given(
    width=st.sampled_from([1, 2, 4, 8]),
    num_elements=st.sampled_from([0, 1, 5, 63, 64, 65, 130]),
    num_points=st.integers(1, 6),
    num_values=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_count(
    make: HistoryMaker, width: int, num_elements: int, num_points: int, num_values: int, seed: int
) -> None:
    values = np.random.default_rng(seed).integers(0, num_values, (num_points + 1, num_elements))
    # The highest bit of the widest dtype tells values apart too.
    series = (values << (8 * width - 2)).astype(f"u{width}")
    assert followed(make, series) == one_by_one(series)


@pytest.mark.parametrize("make", MAKERS)
def test_counts_are_added_to(make: HistoryMaker) -> None:
    base, now = np.zeros(70, np.uint16), np.ones(70, np.uint16)
    counts = np.full(len(COUNTED), 100)
    make(base, now).advance(base, now, counts)
    assert counts.tolist() == [170] * len(COUNTED)


@pytest.mark.parametrize("make", MAKERS)
def test_two_dimensions(make: HistoryMaker) -> None:
    series = np.random.default_rng(0).integers(0, 3, (4, 9, 23)).astype(np.uint32)
    assert followed(make, series) == one_by_one(series.reshape(4, -1))


def test_compiled_where_there_is_much_to_follow() -> None:
    assert history_maker(COMPILED_FROM - 1) is NumpyHistory
    assert history_maker(COMPILED_FROM) is NumbaHistory
