"""Counts add up, and percentages do not lie."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.elements.counts import ChangeCounts, percent
from trimtab.results.schema import from_plain, to_plain

COUNTS = st.builds(
    ChangeCounts,
    num_elements=st.integers(10**12, 2 * 10**12),
    num_changed=st.fixed_dictionaries({"bits": st.integers(0, 10**12)}),
    num_increased=st.integers(0, 10**9),
    num_decreased=st.integers(0, 10**9),
    ulp_histogram=st.dictionaries(st.sampled_from(["-1", "1", "2"]), st.integers(1, 99)),
    update_sum=st.floats(-1, 1),
    update_max_abs=st.floats(0, 1),
)


@given(COUNTS, COUNTS)
def test_addition(left: ChangeCounts, right: ChangeCounts) -> None:
    both = left + right
    assert both.num_elements == left.num_elements + right.num_elements
    assert both.num_changed["bits"] == left.num_changed["bits"] + right.num_changed["bits"]
    assert sum(both.ulp_histogram.values()) == sum(left.ulp_histogram.values()) + sum(
        right.ulp_histogram.values()
    )
    assert both.update_max_abs == max(left.update_max_abs, right.update_max_abs)
    assert ChangeCounts() + left == left == left + ChangeCounts()


@given(COUNTS)
def test_round_trip(counts: ChangeCounts) -> None:
    data = json.loads(json.dumps(to_plain(counts), allow_nan=False))
    assert from_plain(ChangeCounts, data, what="counts") == counts


def test_an_infinite_sum_survives_json() -> None:
    counts = replace(ChangeCounts(num_elements=1), update_sum_squares=float("inf"))
    data = json.loads(json.dumps(to_plain(counts), allow_nan=False))
    assert from_plain(ChangeCounts, data, what="counts") == counts


def test_no_elements_have_no_sparsity() -> None:
    counts = ChangeCounts(num_changed={"bits": 0})
    assert counts.sparsity() is None
    assert counts.density() is None
    assert counts.sign_balance is None


@given(st.integers(0, 10**15), st.integers(1, 10**15), st.integers(0, 4))
def test_0_and_100_only_when_exactly_true(part: int, whole: int, digits: int) -> None:
    part = min(part, whole)
    text = percent(part, whole, digits)
    assert (text == "0 %") == (part == 0)
    assert (text == "100 %") == (part == whole)
    shown = float(text.removesuffix(" %").lstrip("<>"))
    assert shown == pytest.approx(100 * part / whole, abs=10.0**-digits)
