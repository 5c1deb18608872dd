"""`PaperResult`: each claim with its figures and its verdict.

A claim holds if its whole interval is on the right side of the bound, and does not hold if all of
it is on the other side. It is not settled if the interval contains the bound, or if there is only
one seed. Verdicts are computed from the stored values when a result is read, never read from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypedDict

from trimtab.papers.measures import MEASURES
from trimtab.results.result import Result
from trimtab.results.schema import Like, Provenance
from trimtab.results.statistics import Estimate, difference_over_seeds, mean_over_seeds
from trimtab.words import one_line, out_of

HOLDS = "holds"
DOES_NOT_HOLD = "does not hold"
NOT_SETTLED = "not settled"
NOT_RUN = "not yet run"
NOT_TESTABLE = "not testable here"
VERDICTS = (HOLDS, DOES_NOT_HOLD, NOT_SETTLED, NOT_RUN, NOT_TESTABLE)

BOUNDS = ("above", "below", "within", "equals")
"""Bounds of a trial: on one side, on the distance from 0, or equality up to the printed digits."""


def estimate_of(trial: Mapping[str, Any]) -> Estimate | None:
    """The mean, or mean difference, of the stored values of a trial; None without values."""
    values, other = trial["values"], trial.get("other_values")
    if not values or other == {}:
        return None
    return mean_over_seeds(values) if other is None else difference_over_seeds(values, other)


def verdict_of_trial(trial: Mapping[str, Any]) -> str | None:
    """The verdict of one trial from its stored values; None for a control, without bound."""
    bound: Mapping[str, float] = trial["bound"]
    if not bound:
        return None
    estimate = estimate_of(trial)
    if estimate is None:
        return NOT_RUN
    if "equals" in bound:  # a comparison of two checkpoints is not random
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


def verdict_of_trials(trials: Iterable[tuple[str | None, bool]]) -> str:
    """The verdict of a claim: it holds if all of its trials hold.

    Args:
        trials: The verdict of each trial, and whether it is a premise. If a premise does not hold,
            the claim is not settled.
    """
    verdicts = [(verdict, premise) for verdict, premise in trials if verdict is not None]
    if any(premise and verdict == DOES_NOT_HOLD for verdict, premise in verdicts):
        return NOT_SETTLED
    for verdict in (DOES_NOT_HOLD, NOT_RUN, NOT_SETTLED):
        if (verdict, False) in verdicts:
            return verdict
    for verdict, premise in verdicts:
        if premise and verdict != HOLDS:
            return verdict or NOT_SETTLED
    return HOLDS if verdicts else NOT_TESTABLE


OF_A_TRIAL = (
    *("about", "measure", "settings", "arms"),
    *("unit", "bound", "premise", "values", "missing"),
)
STORED = ("id", "source", "place", "claim", "expected", "unit", "note", "why")


def _bound_problem(bound: Mapping[str, float]) -> str | None:
    known: tuple[set[str], ...] = (set(), {"above"}, {"below"}, {"within"}, {"equals", "digits"})
    return None if set(bound) in known else "is not a valid bound of a trial"


class Paper(TypedDict):
    """The paper of a result."""

    id: str
    title: str
    arxiv: str
    status: str


class ScaleRecord(TypedDict):
    """The runs of a result."""

    name: str
    base: str
    seeds: tuple[int, ...]
    cells: Mapping[str, bool]
    failed: Mapping[str, str]


class Trial(TypedDict):
    """One figure of a claim; the optional keys are derived."""

    about: str
    measure: str
    settings: Mapping[str, Any]
    arms: tuple[str, ...]
    unit: Literal["share", "points", "factor"]
    bound: Annotated[Mapping[str, float], _bound_problem]
    premise: bool
    values: Mapping[str, float]
    missing: tuple[str, ...]
    other_values: NotRequired[Mapping[str, float]]
    value: NotRequired[Any]
    n: NotRequired[Any]
    interval: NotRequired[Any]
    method: NotRequired[Any]
    verdict: NotRequired[Any]


def _trial_problem(trial: Mapping[str, Any]) -> str | None:
    figures = [*trial["values"].values(), *trial.get("other_values", {}).values()]
    if trial["unit"] != "factor" and any(abs(figure) > 1 + 1e-6 for figure in figures):
        return f"is a figure in {trial['unit']} with values above 1"
    return None


class Claim(TypedDict):
    """A claim with its trials; the optional keys are derived."""

    id: str
    source: str | None
    place: str
    claim: str
    expected: Mapping[str, float | str]
    unit: str
    note: str | None
    why: str | None
    trials: tuple[Annotated[Mapping[str, Any], Like(Trial), _trial_problem], ...]
    measured: NotRequired[Any]
    n: NotRequired[Any]
    interval: NotRequired[Any]
    verdict: NotRequired[Any]


@dataclass(frozen=True)
class PaperResult(Result):
    """The result of running a paper at a scale.

    Attributes:
        paper: `id`, `title`, `arxiv` and `status`.
        scale: `name`, `base` and `seeds`; `failed`: name -> error; and `cells`: name -> whether
            it was finished.
        claims: Each with the claim of the paper and the `trials`, whose `values` are by seed.
        provenance: trimtab version, command, date, device and packages.
    """

    FORMAT = "trimtab.paper"
    NAME = "paper"
    COMMAND = "trimtab paper run"
    ROWS = "claims"
    DERIVES = True
    PLAIN: ClassVar = ("paper", "scale", "verdicts=num_by_verdict", "claims", "provenance")

    paper: Annotated[Mapping[str, Any], Like(Paper, is_open=True)]
    scale: Annotated[Mapping[str, Any], Like(ScaleRecord, is_open=True)]
    claims: tuple[Annotated[Mapping[str, Any], Like(Claim)], ...]
    provenance: Provenance = field(default_factory=dict)

    def __repr__(self) -> str:
        hold = out_of(self.num_by_verdict()["holds"], len(self.claims), "claim")
        return one_line(self, f"{self.paper['id']}, {self.scale['name']}: {hold} found to hold")

    def plain_claims(self) -> list[dict[str, Any]]:
        """The claims with derived values."""
        return [_derived(claim) for claim in self.claims]

    def num_by_verdict(self) -> dict[str, int]:
        """Number of claims with each verdict."""
        verdicts = [verdict_of(claim) for claim in self.claims]
        return {verdict: verdicts.count(verdict) for verdict in VERDICTS}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PaperResult:
        """The inverse of `to_dict`; derived values are computed again.

        Raises:
            ResultFormatError: The data is not such a result, or damaged.
        """
        result = super().from_dict(data)
        return replace(result, claims=tuple(map(_stored, result.claims)))


def verdict_of(claim: Mapping[str, Any]) -> str:
    """The verdict of a claim from its stored trials."""
    verdicts = [(verdict_of_trial(trial), trial["premise"]) for trial in claim["trials"]]
    return verdict_of_trials(verdicts)


def _stored(claim: Mapping[str, Any]) -> dict[str, Any]:
    trials = [
        {key: trial[key] for key in trial if key in (*OF_A_TRIAL, "other_values")}
        for trial in claim["trials"]
    ]
    return {**{key: claim[key] for key in STORED}, "trials": trials}


def _derived(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Add figures and verdicts to a claim; those of the claim are of its first trial."""
    trials = [{**trial, "unit": _unit(trial), **_figures(trial)} for trial in claim["trials"]]
    first = trials[0] if trials else {"value": None, "n": 0, "interval": None}
    return {
        **claim,
        "measured": first["value"],
        "n": first["n"],
        "interval": first["interval"],
        "verdict": verdict_of(claim),
        "trials": trials,
    }


def _unit(trial: Mapping[str, Any]) -> str:
    """The unit of its measure; results of older releases may call a share a factor."""
    if trial["measure"] not in MEASURES:
        return str(trial["unit"])
    measure = MEASURES[trial["measure"]]
    return measure.unit_of(trial["settings"], is_difference="other_values" in trial)


def _figures(trial: Mapping[str, Any]) -> dict[str, Any]:
    estimate, verdict = estimate_of(trial), verdict_of_trial(trial)
    if estimate is None:
        return {"value": None, "n": 0, "interval": None, "method": None, "verdict": verdict}
    interval = None if estimate.low is None else [estimate.low, estimate.high]
    return {
        "value": estimate.value,
        "n": estimate.n,
        "interval": interval,
        "method": estimate.method,
        "verdict": verdict,
    }
