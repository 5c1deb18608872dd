"""Average precision from counts, against going down the ranking threshold by threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trimtab.elements.dtypes import DTYPES
from trimtab.errors import MaskError
from trimtab.masks.prediction import LevelCounts, average_precision

few = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 1.0078125, float("inf")])
any_float = st.floats(width=32, allow_nan=False)


def by_thresholds(scores: np.ndarray, is_true: np.ndarray) -> float | None:
    """The definition: at each distinct score, recall gained × precision."""
    if not is_true.any():
        return None
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        now = is_true[chosen].sum() / is_true.sum()
        total += (now - recall) * is_true[chosen].mean()
        recall = now
    return total


def truncated(scores: np.ndarray) -> np.ndarray:
    """The first 16 bits of each score."""
    return (scores.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def levels(scores: np.ndarray) -> np.ndarray:
    """What is told apart: first bits, of which those of a tiny negative number are of less than 0.

    Cut off it is -0.0, which as a number is 0; -1e-50 is no number of 32 bits.
    """
    cut = truncated(scores).astype(np.float64)
    return np.where((cut == 0) & (scores < 0), -1e-50, cut)


@given(st.data(), st.sampled_from([few, any_float]))
def test_it_is_the_definition(data: st.DataObject, elements: st.SearchStrategy[float]) -> None:
    size = data.draw(st.integers(0, 40))
    scores = data.draw(hnp.arrays(np.float32, size, elements=elements))
    is_true = data.draw(hnp.arrays(np.bool_, size))
    counts = LevelCounts()
    for start in range(0, size, 7):
        part = LevelCounts()
        part.add("w", scores[start : start + 7], is_true[start : start + 7])
        counts.add_all(part)
    assert counts.average_precision == pytest.approx(by_thresholds(levels(scores), is_true))
    assert counts.is_exact == np.array_equal(truncated(scores), scores)


def test_the_least_negative_number_is_below_zero() -> None:
    counts = LevelCounts()
    counts.add("w", np.array([-1e-45, 0.0], dtype=np.float32), np.array([False, True]))
    assert counts.average_precision == 1.0


def test_bf16_is_exact() -> None:
    bits = np.arange(1 << 16).astype(np.uint16)
    scores = DTYPES["BF16"].decode(bits[~DTYPES["BF16"].is_nan(bits)]).astype(np.float32)
    is_true = np.random.default_rng(0).random(len(scores)) < 0.3
    counts = LevelCounts()
    counts.add("w", scores, is_true)
    assert counts.is_exact
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(is_true[order])
    # All scores differ but the two zeros; ties of two out of 65,000 do not show.
    expected = (hits / np.arange(1, len(hits) + 1))[is_true[order]].mean()
    assert counts.average_precision == pytest.approx(expected, rel=1e-4)


def test_what_has_no_score_comes_last() -> None:
    counts = LevelCounts()
    counts.add("w", np.array([-np.inf, 3.0], dtype=np.float32), np.array([True, False]))
    counts.add_unranked(6, 1)
    assert counts.average_precision == pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 8)


def test_nan_is_refused_and_nothing_true_is_none() -> None:
    with pytest.raises(MaskError, match="the scores of w hold NaN"):
        LevelCounts().add("w", np.array([np.nan], dtype=np.float32), np.array([True]))
    assert average_precision(np.array([3, 4]), np.array([0, 0])) is None
    assert LevelCounts().average_precision is None
