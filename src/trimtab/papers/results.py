"""`PaperResult`: each claim with its figures and the verdict that follows from them.

Verdicts are computed from the stored values whenever a result is read: nobody can write one into
the file that the numbers do not give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypedDict

from trimtab.papers import verdicts
from trimtab.papers.measures import MEASURES
from trimtab.papers.verdicts import estimate_of
from trimtab.results.result import Result
from trimtab.results.schema import Like, Provenance
from trimtab.words import one_line, out_of

OF_A_TRIAL = (
    *("about", "measure", "settings", "arms"),
    *("unit", "bound", "premise", "values", "missing"),
)
STORED = ("id", "source", "place", "claim", "expected", "unit", "note", "why")


def _bound_problem(bound: Mapping[str, float]) -> str | None:
    known: tuple[set[str], ...] = (set(), {"above"}, {"below"}, {"within"}, {"equals", "digits"})
    return None if set(bound) in known else "is no bound that a trial can have"


class Paper(TypedDict):
    """Which paper."""

    id: str
    title: str
    arxiv: str
    status: str


class ScaleRecord(TypedDict):
    """What was run for it."""

    name: str
    base: str
    seeds: tuple[int, ...]
    cells: Mapping[str, bool]
    failed: Mapping[str, str]


class Trial(TypedDict):
    """One figure of a claim; what follows from it is derived again."""

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
        return f"is a figure in {trial['unit']} with values beyond 1"
    return None


class Claim(TypedDict):
    """A claim with its trials; what follows from them is derived again."""

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
    """What came of a paper at a scale.

    Attributes:
        paper: `id`, `title`, `arxiv` and `status`.
        scale: `name`, `base` and `seeds`; `failed`: what failed -> why; and `cells`: name ->
            whether it was finished.
        claims: Each with what the paper says and the `trials`, whose `values` are by seed.
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
        """The claims with what is derived."""
        return [_derived(claim) for claim in self.claims]

    def num_by_verdict(self) -> dict[str, int]:
        """How many claims have each verdict."""
        told = [verdict_of(claim) for claim in self.claims]
        return {verdict: told.count(verdict) for verdict in verdicts.VERDICTS}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PaperResult:
        """The inverse of `to_dict`; what is derived is derived again.

        Raises:
            ResultFormatError: It is something else, or damaged.
        """
        result = super().from_dict(data)
        return replace(result, claims=tuple(map(_stored, result.claims)))


def verdict_of(claim: Mapping[str, Any]) -> str:
    """The verdict of a claim from its stored trials."""
    told = [(verdicts.of_trial(trial), trial["premise"]) for trial in claim["trials"]]
    return verdicts.of_claim(told)


def _stored(claim: Mapping[str, Any]) -> dict[str, Any]:
    trials = [
        {key: trial[key] for key in trial if key in (*OF_A_TRIAL, "other_values")}
        for trial in claim["trials"]
    ]
    return {**{key: claim[key] for key in STORED}, "trials": trials}


def _derived(claim: Mapping[str, Any]) -> dict[str, Any]:
    """A claim with the figures and verdicts that follow from its trials.

    `measured`, `n` and `interval` are those of its first trial.
    """
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
    """That of its measure now: a result of before may call a share a factor."""
    if trial["measure"] not in MEASURES:
        return str(trial["unit"])
    measure = MEASURES[trial["measure"]]
    return measure.unit_of(trial["settings"], is_difference="other_values" in trial)


def _figures(trial: Mapping[str, Any]) -> dict[str, Any]:
    estimate, verdict = estimate_of(trial), verdicts.of_trial(trial)
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
