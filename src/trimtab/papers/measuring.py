"""The files that measures are read from: each is made once, beside its cell, by one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trimtab import compare, identity, overlap, read_tracked
from trimtab.errors import ResultFormatError, TrimtabError
from trimtab.inputs import MAX_RESULT_BYTES, read_json
from trimtab.papers.library import PaperCell, Trial
from trimtab.papers.measures import MEASURES
from trimtab.results.statistics import PAIR
from trimtab.training import evaluate, file_questions
from trimtab.training.evaluation.questions import reward_of
from trimtab.training.runs.settings import RewardTable

OVERLAPS = "overlaps"


def _compare(of: PaperCell, *, rank: bool = False, geometry: bool = False) -> Any:
    # fp32 weights are compared as such: fp32 has every value of the base.
    cast = "fp32" if of.is_saved_as_fp32 else None
    return compare(of.cell.starts_from(), of.cell.model, cast=cast, rank=rank, geometry=geometry)


def _evaluate(of: PaperCell) -> Any:
    asked = of.scale.evaluate
    judge = RewardTable(kind="regex", pattern=asked.pattern)
    questions = file_questions(of.questions, reward_of(judge, Path()))
    return evaluate(
        [str(of.base), str(of.cell.model)],
        questions=replace(questions, max_completion_length=asked.max_tokens),
        num_samples=asked.samples,
        seed=of.seed,
    )


def _identity(of: PaperCell) -> Any:
    assert of.cell.of is not None, "a run in a mask"
    return identity(of.base, of.cell.of.model, of.cell.model, of.cell.mask_file)


SOURCES: Mapping[str, Callable[[PaperCell], Any]] = {
    "comparison": _compare,
    "rank": lambda of: _compare(of, rank=True),
    "geometry": lambda of: _compare(of, geometry=True),
    "evaluation": _evaluate,
    "identity": _identity,
    "trajectory": lambda of: read_tracked(of.cell.out / "updates.trimtab"),
}
"""Name of a file -> what makes the result that is written to it."""


@dataclass(frozen=True)
class Measuring:
    """Makes what is missing and reads figures."""

    _read: dict[Path, Any] = field(default_factory=dict, repr=False)

    def values(self, trial: Trial, cells: Mapping[str, Sequence[PaperCell]]) -> dict[str, Any]:
        """The figures of a trial.

        Args:
            trial: The trial.
            cells: Arm -> its cells that are trained, one for each seed.

        Returns:
            `values` and, if it has another arm to subtract, `other_values`: seed -> figure; for an
            overlap, both seeds.

        Raises:
            TrimtabError: Something cannot be measured.
        """
        if trial.other is not None:
            return {"values": self._overlaps(trial, cells)}
        values = {"values": self._figures(trial, cells[trial.arm])}
        if trial.than is not None:
            values["other_values"] = self._figures(trial, cells[trial.than])
        return values

    def _figures(self, trial: Trial, cells: Sequence[PaperCell]) -> dict[str, float]:
        return {
            str(of.seed): _figure(trial, self._source(of, MEASURES[trial.measure].source), of)
            for of in cells
        }

    def _overlaps(self, trial: Trial, cells: Mapping[str, Sequence[PaperCell]]) -> dict[str, float]:
        """Of masks of one arm, every two seeds; of those of two arms, the same seed of both."""
        assert trial.other is not None
        first, second = cells[trial.arm], cells[trial.other]
        pairs = [
            (one, two)
            for one in first
            for two in second
            if (one.seed < two.seed if trial.arm == trial.other else one.seed == two.seed)
        ]
        return {
            str(one.seed) if one.seed == two.seed else f"{one.seed}{PAIR}{two.seed}": _figure(
                trial, self._overlap(one, two), one
            )
            for one, two in pairs
        }

    def _source(self, of: PaperCell, source: str) -> Any:
        """The content of a file of a trained cell, made if it is not there."""
        if source == "result":
            return self._json(of.cell.result)
        return self._json(of.cell.folder / f"{source}.json", lambda: SOURCES[source](of))

    def _overlap(self, one: PaperCell, two: PaperCell) -> Any:
        names = (of.name.replace("/seed-", "-") for of in (one, two))
        path = one.root / OVERLAPS / f"{'--'.join(names)}.json"
        return self._json(
            path, lambda: overlap(one.cell.changed(), two.cell.changed(), base=one.base)
        )

    def _json(self, path: Path, make: Callable[[], Any] | None = None) -> Any:
        if path not in self._read:
            if make is not None and not path.exists():
                make().save(path, force=True)
            self._read[path] = read_json(path, ResultFormatError, limit=MAX_RESULT_BYTES)
        return self._read[path]


def _figure(trial: Trial, data: Any, of: PaperCell) -> float:
    measure = MEASURES[trial.measure]
    try:
        return measure.read(data, **trial.settings)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise TrimtabError(
            f"{of.name}: no {trial.measure} can be read from its {measure.source} ({error!r})"
        ) from None
