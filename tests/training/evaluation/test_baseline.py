"""The best constant answer, against every constant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.results.evaluation import MajorityBaseline, majority_baseline


def test_majority_baseline_is_the_most_frequent_answer() -> None:
    baseline = majority_baseline([3, 3, 9, 9, 2])
    assert baseline == MajorityBaseline(answer=3, num_correct=2, num_questions=5)
    assert baseline.accuracy == 0.4
    assert baseline.to_dict() == {
        "answer": 3,
        "num_correct": 2,
        "num_questions": 5,
        "accuracy": 0.4,
    }


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_no_constant_does_better(answers: list[str]) -> None:
    best = max(sum(answer == constant for answer in answers) for constant in "abc")
    assert majority_baseline(answers).num_correct == best


def test_majority_baseline_needs_questions() -> None:
    with pytest.raises(ValueError, match="no questions"):
        majority_baseline([])
