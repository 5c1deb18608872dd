"""`PaperResult`: each claim with its figures and the verdict that follows from them.

Verdicts are computed from the stored values whenever a result is read: nobody can write one into
the file that the numbers do not give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.checkpoints.record import check_format
from trimtab.errors import ResultFormatError
from trimtab.inputs import MAX_RESULT_BYTES, read_json
from trimtab.papers import verdicts
from trimtab.papers.measures import MEASURES
from trimtab.papers.verdicts import estimate_of
from trimtab.words import one_line, out_of

__all__ = ["FORMAT", "FORMAT_VERSION", "PaperResult"]

FORMAT = "trimtab.paper"
FORMAT_VERSION = 1
"""History: 1, the first."""

OF_A_TRIAL = (
    *("about", "measure", "settings", "arms"),
    *("unit", "bound", "premise", "values", "missing"),
)
STORED = ("id", "source", "place", "claim", "expected", "unit", "note", "why")


@dataclass(frozen=True)
class PaperResult:
    """What came of a paper at a scale.

    Attributes:
        paper: `id`, `title`, `arxiv` and `status`.
        scale: `name`, `base` and `seeds`; `failed`: what failed -> why; and `cells`: name ->
            whether it was finished.
        claims: Each with what the paper says and the `trials`, whose `values` are by seed.
        provenance: trimtab version, command, date, device and packages.
    """

    paper: Mapping[str, Any]
    scale: Mapping[str, Any]
    claims: tuple[Mapping[str, Any], ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        hold = out_of(self.num_by_verdict()["holds"], len(self.claims), "claim")
        return one_line(self, f"{self.paper['id']}, {self.scale['name']}: {hold} found to hold")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with what is derived."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "paper": dict(self.paper),
            "scale": dict(self.scale),
            "verdicts": self.num_by_verdict(),
            "claims": [_derived(claim) for claim in self.claims],
            "provenance": dict(self.provenance),
        }

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
        check_format(data, FORMAT, FORMAT_VERSION, what="paper", command="trimtab paper run")
        try:
            claims = tuple(_stored(claim) for claim in data["claims"])
            result = cls(data["paper"], data["scale"], claims, data["provenance"])
            result.to_dict()  # what is stored must give a verdict
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ResultFormatError(f"a damaged {FORMAT}: {error!r}") from None
        return result

    @classmethod
    def load(cls, path: Path) -> PaperResult:
        """Read a result.

        Raises:
            ResultFormatError: It cannot be read.
        """
        data = read_json(path, ResultFormatError, limit=MAX_RESULT_BYTES, strict=True)
        try:
            return cls.from_dict(data)
        except ResultFormatError as error:
            raise ResultFormatError(f"{path}: {error}") from None


def verdict_of(claim: Mapping[str, Any]) -> str:
    """The verdict of a claim from its stored trials."""
    told = [(verdicts.of_trial(trial), trial["premise"]) for trial in claim["trials"]]
    return verdicts.of_claim(told)


def _stored(claim: Mapping[str, Any]) -> dict[str, Any]:
    trials = [
        {key: trial[key] for key in OF_A_TRIAL}
        | ({"other_values": trial["other_values"]} if "other_values" in trial else {})
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
