"""What follows from numbers: the verdict of a trial, and that of a claim with several of them.

A claim holds where the whole interval is on its side of the bound, and does not hold where all of
it is on the other. An interval with the bound in it settles nothing, and neither does a single
seed, which has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trimtab.results.statistics import Estimate, difference_over_seeds, mean_over_seeds

HOLDS = "holds"
DOES_NOT_HOLD = "does not hold"
NOT_SETTLED = "not settled"
NOT_RUN = "not yet run"
NOT_TESTABLE = "not testable here"
VERDICTS = (HOLDS, DOES_NOT_HOLD, NOT_SETTLED, NOT_RUN, NOT_TESTABLE)

BOUNDS = ("above", "below", "within", "equals")
"""What a trial may ask of its figure: beyond a bound; at most so far from 0; a figure, to the
digits that it was printed with."""


def estimate_of(trial: Mapping[str, Any]) -> Estimate | None:
    """The figure of a trial from its stored values: a mean, or a mean difference.

    Returns:
        None if there are no values, or none of what it is set against.
    """
    values, other = trial["values"], trial.get("other_values")
    if not values or other == {}:
        return None
    return mean_over_seeds(values) if other is None else difference_over_seeds(values, other)


def of_trial(trial: Mapping[str, Any]) -> str | None:
    """The verdict of one trial from its stored values and bound; None if it has no bound.

    A trial without a bound is shown beside others, as a control.
    """
    bound: Mapping[str, float] = trial["bound"]
    if not bound:
        return None
    estimate = estimate_of(trial)
    if estimate is None:
        return NOT_RUN
    if "equals" in bound:  # two checkpoints, no seeds: nothing is random
        is_equal = abs(estimate.value - bound["equals"]) <= bound["digits"]
        return HOLDS if is_equal else DOES_NOT_HOLD
    if estimate.low is None or estimate.high is None:
        return NOT_SETTLED
    low, high = estimate.low, estimate.high
    if "within" in bound:
        reach = bound["within"]
        if -reach <= low and high <= reach:
            return HOLDS
        return DOES_NOT_HOLD if low > reach or high < -reach else NOT_SETTLED
    if "above" in bound:
        sides = low > bound["above"], high < bound["above"]
    else:
        sides = high < bound["below"], low > bound["below"]
    return HOLDS if sides[0] else DOES_NOT_HOLD if sides[1] else NOT_SETTLED


def of_claim(trials: Iterable[tuple[str | None, bool]]) -> str:
    """The verdict of a claim: it holds if all of its trials do, and not if one of them does not.

    Args:
        trials: The verdict of each, and whether it is a premise: where one does not hold, what the
            others say settles nothing.
    """
    told = [(verdict, premise) for verdict, premise in trials if verdict is not None]
    if any(premise and verdict == DOES_NOT_HOLD for verdict, premise in told):
        return NOT_SETTLED
    for verdict in (DOES_NOT_HOLD, NOT_RUN, NOT_SETTLED):
        if (verdict, False) in told:
            return verdict
    for verdict, premise in told:
        if premise and verdict != HOLDS:
            return verdict or NOT_SETTLED
    return HOLDS if told else NOT_TESTABLE
