"""What follows from values and bounds."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.papers.results import (
    DOES_NOT_HOLD,
    HOLDS,
    NOT_RUN,
    NOT_SETTLED,
    NOT_TESTABLE,
    verdict_of_trial,
    verdict_of_trials,
)


def trial(*values: float, **more: Any) -> dict[str, Any]:
    """A trial with values of seeds 0, 1, ..."""
    return {"values": {str(seed): item for seed, item in enumerate(values)}, **more}


@pytest.mark.parametrize(
    ("bound", "values", "verdict"),
    [
        ({"above": 0.5}, (0.8, 0.81, 0.82), HOLDS),
        ({"above": 0.5}, (0.2, 0.21, 0.22), DOES_NOT_HOLD),
        ({"above": 0.5}, (0.2, 0.5, 0.9), NOT_SETTLED),
        ({"below": 0.5}, (0.2, 0.21, 0.22), HOLDS),
        ({"below": 0.5}, (0.8, 0.81, 0.82), DOES_NOT_HOLD),
        ({"below": 0.5}, (0.2, 0.5, 0.9), NOT_SETTLED),
        ({"within": 0.1}, (-0.01, 0.0, 0.01), HOLDS),
        ({"within": 0.1}, (0.3, 0.31, 0.32), DOES_NOT_HOLD),
        ({"within": 0.1}, (-0.3, -0.31, -0.32), DOES_NOT_HOLD),
        ({"within": 0.1}, (-0.1, 0.0, 0.1), NOT_SETTLED),
        ({"above": 0.5}, (0.9,), NOT_SETTLED),
        ({"above": 0.5}, (), NOT_RUN),
        ({"equals": 0.7604, "digits": 0.00005}, (0.76044,), HOLDS),
        ({"equals": 0.7604, "digits": 0.00005}, (0.76046,), DOES_NOT_HOLD),
    ],
)
def test_the_whole_interval_decides(
    bound: dict[str, float], values: tuple[float, ...], verdict: str
) -> None:
    assert verdict_of_trial(trial(*values, bound=bound)) == verdict


def test_a_control_has_no_verdict() -> None:
    assert verdict_of_trial(trial(0.5, 0.6, bound={})) is None


def test_a_difference_needs_both_arms() -> None:
    alone = trial(0.5, 0.6, bound={"above": 0}, other_values={})
    assert verdict_of_trial(alone) == NOT_RUN
    both = trial(0.5, 0.6, bound={"above": 0}, other_values={"0": 0.1, "1": 0.2})
    assert verdict_of_trial(both) == HOLDS


@pytest.mark.parametrize(
    ("trials", "verdict"),
    [
        ([], NOT_TESTABLE),
        ([(None, False)], NOT_TESTABLE),
        ([(HOLDS, False), (None, False)], HOLDS),
        ([(HOLDS, False), (DOES_NOT_HOLD, False), (NOT_RUN, False)], DOES_NOT_HOLD),
        ([(HOLDS, False), (NOT_RUN, False)], NOT_RUN),
        ([(HOLDS, False), (NOT_SETTLED, False)], NOT_SETTLED),
        ([(HOLDS, False), (HOLDS, True)], HOLDS),
        ([(HOLDS, False), (DOES_NOT_HOLD, True)], NOT_SETTLED),
        ([(DOES_NOT_HOLD, False), (DOES_NOT_HOLD, True)], NOT_SETTLED),
        ([(DOES_NOT_HOLD, False), (HOLDS, True)], DOES_NOT_HOLD),
        ([(HOLDS, False), (NOT_RUN, True)], NOT_RUN),
        ([(HOLDS, False), (NOT_SETTLED, True)], NOT_SETTLED),
    ],
)
def test_a_claim_is_as_good_as_its_worst_trial(
    trials: list[tuple[str | None, bool]], verdict: str
) -> None:
    assert verdict_of_trials(trials) == verdict
