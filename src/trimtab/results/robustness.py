"""The result of a robustness probe: the effect of noise in each set of elements on a model.

Intervals are over seeds, each with its own sets and noise; the questions are always the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from typing import Annotated, Any, ClassVar, TypedDict

from trimtab.results.records import CheckpointRecord, MaskRecord
from trimtab.results.result import Result
from trimtab.results.schema import Count, Like, Provenance
from trimtab.results.statistics import CONFIDENCE, over_seeds
from trimtab.words import one_line, plural

MASK_ARM = "mask"
"""The arm that the others are compared with."""


@dataclass(frozen=True)
class Cell:
    """One perturbed model.

    Attributes:
        noise: Kind of noise.
        level: Its level.
        arm: The set of elements that was perturbed.
        seed: Seed of the set and of the noise.
        num_chosen: Elements of the set.
        num_in_mask: Those of them that the mask selects.
        num_changed: Elements whose bits the noise changed.
        relative_norm: Norm of the noise ÷ norm of the set, as stored; None for a set of zeros.
        num_correct: Questions answered right, greedily; None if none were asked.
        kl: KL(unperturbed || perturbed) per token of the text, in nats.
    """

    noise: str
    level: float
    arm: str
    seed: int
    num_chosen: int
    num_in_mask: int
    num_changed: int
    relative_norm: float | None
    num_correct: int | None
    kl: float

    def problems(self) -> Iterator[str]:
        """Values that are impossible."""
        for name in ("num_in_mask", "num_changed"):
            if not 0 <= getattr(self, name) <= self.num_chosen:
                yield f"{name} is {getattr(self, name)} of {self.num_chosen} chosen elements"

    def problems_with(self, num_questions: int | None) -> Iterator[str]:
        """Values that are impossible with this number of questions."""
        if (self.num_correct is not None) != (num_questions is not None):
            yield "answers, or questions, are missing"
        elif not 0 <= (self.num_correct or 0) <= (num_questions or 0):
            yield f"num_correct is {self.num_correct} of {num_questions} questions"


class Questions(TypedDict):
    """The questions."""

    num_questions: Count
    source: str


class Text(TypedDict):
    """The text."""

    source: str
    num_tokens: Count


class Settings(TypedDict):
    """Settings of the probe."""

    noises: tuple[str, ...]
    levels: tuple[float, ...]
    seeds: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Robustness(Result):
    """The effect of noise on a model, inside a mask and elsewhere.

    Attributes:
        checkpoint: The model that was perturbed.
        base: The base that the mask was made against.
        mask: The mask.
        questions: Record of the questions: `num_questions`, ...; None if none were asked.
        num_correct: Questions that the unperturbed model answers right; None if none were asked.
        text: Record of the text on which the models are compared.
        arms: Names of the sets of elements; the mask comes first.
        cells: One for every noise, level, seed and arm.
        settings: Seeds, dtype and the like.
        provenance: trimtab version, command, date, device, versions.
    """

    FORMAT = "trimtab.robustness"
    NAME = "robustness probe"
    COMMAND = "trimtab robustness"
    ROWS = "cells"
    DERIVES = True
    PLAIN: ClassVar = (
        *("provenance", "provenance.checkpoint=checkpoint", "provenance.base=base"),
        *("provenance.mask=mask", "settings", "confidence=_confidence", "questions"),
        *("num_correct", "text", "arms", "summaries", "cells"),
    )
    _confidence: ClassVar = CONFIDENCE

    checkpoint: CheckpointRecord
    base: CheckpointRecord
    mask: MaskRecord
    questions: Annotated[Mapping[str, Any], Like(Questions, is_open=True)] | None
    num_correct: int | None
    text: Annotated[Mapping[str, Any], Like(Text, is_open=True)]
    arms: tuple[str, ...]
    cells: tuple[Cell, ...]
    settings: Annotated[Mapping[str, Any], Like(Settings, is_open=True)]
    provenance: Provenance = field(default_factory=dict)

    def __repr__(self) -> str:
        conditions = plural(len(self.conditions), "condition")
        return one_line(self, f"{self.checkpoint.id}, {self.mask.id}: {conditions}")

    @property
    def num_questions(self) -> int | None:
        """Questions asked; None if none were."""
        return None if self.questions is None else int(self.questions["num_questions"])

    @property
    def conditions(self) -> tuple[tuple[str, float], ...]:
        """Noise and level of each group of cells, in order."""
        return tuple(dict.fromkeys((cell.noise, cell.level) for cell in self.cells))

    def cells_of(self, condition: tuple[str, float], arm: str) -> list[Cell]:
        """The cells of one condition and arm, by seed."""
        cells = [c for c in self.cells if (c.noise, c.level) == condition and c.arm == arm]
        return sorted(cells, key=lambda cell: cell.seed)

    def summaries(self) -> list[dict[str, Any]]:
        """For each condition, the effect of each arm over seeds, and the mask compared with it."""
        return [
            {
                "noise": condition[0],
                "level": condition[1],
                "arms": [
                    {
                        "arm": arm,
                        **self._summary(self.cells_of(condition, arm)),
                        "mask_beside_it": None
                        if arm == MASK_ARM
                        else self._paired(
                            self.cells_of(condition, MASK_ARM), self.cells_of(condition, arm)
                        ),
                    }
                    for arm in self.arms
                ],
            }
            for condition in self.conditions
        ]

    def _summary(self, cells: Sequence[Cell]) -> dict[str, Any]:
        norms = [cell.relative_norm for cell in cells if cell.relative_norm is not None]
        return {
            "num_chosen": cells[0].num_chosen,
            "share_in_mask": over_seeds(
                [cell.num_in_mask / max(cell.num_chosen, 1) for cell in cells]
            ),
            "num_changed": over_seeds([cell.num_changed for cell in cells]),
            "relative_norm": over_seeds(norms) if norms else None,
            "accuracy": self._over(self._accuracies(cells)),
            "kl": over_seeds([cell.kl for cell in cells]),
        }

    def _paired(self, mask: Sequence[Cell], other: Sequence[Cell]) -> dict[str, Any]:
        """The mask minus an arm, paired by seed, and the ratio of their divergences.

        The ratio is a geometric mean, with the interval of the mean of its logarithm; None if a
        divergence is 0, as when rounding removes all of the noise.
        """
        pairs = list(zip(mask, other, strict=True))
        accuracies = zip(self._accuracies(mask), self._accuracies(other), strict=True)
        ratio = None
        if all(ours.kl > 0 and theirs.kl > 0 for ours, theirs in pairs):
            logs = over_seeds([log(ours.kl / theirs.kl) for ours, theirs in pairs])
            ratio = {
                key: value if key == "n" or value is None else exp(value)
                for key, value in logs.items()
            }
        return {
            "accuracy_difference": self._over([ours - theirs for ours, theirs in accuracies]),
            "kl_difference": over_seeds([ours.kl - theirs.kl for ours, theirs in pairs]),
            "kl_ratio": ratio,
        }

    def _accuracies(self, cells: Sequence[Cell]) -> Iterator[float]:
        for cell in cells:
            if cell.num_correct is not None and self.num_questions:
                yield cell.num_correct / self.num_questions

    def _over(self, values: Sequence[float] | Iterator[float]) -> dict[str, Any] | None:
        values = list(values)
        return over_seeds(values) if values else None

    def problems(self) -> Iterator[str]:
        """Values that `robustness` does not produce."""
        if not self.cells or self.arms[:1] != (MASK_ARM,):
            yield "no cells, or no arm of the mask before the others"
            return
        for index, cell in enumerate(self.cells):
            for problem in cell.problems_with(self.num_questions):
                yield f"cells[{index}]: {problem}"
        if (self.num_correct is None) != (self.questions is None) or not (
            0 <= (self.num_correct or 0) <= (self.num_questions or 0)
        ):
            yield f"num_correct is {self.num_correct} of {self.num_questions} questions"
        present = [(c.noise, c.level, c.seed, c.arm) for c in self.cells]
        seeds = {cell.seed for cell in self.cells}
        num_expected = len(self.conditions) * len(seeds) * len(self.arms)
        if len(present) != num_expected or {
            (*condition, seed, arm)
            for condition in self.conditions
            for seed in seeds
            for arm in self.arms
        } != set(present):
            yield "cells are missing or duplicated"
        elif set(self.settings["noises"]) != {cell.noise for cell in self.cells}:
            yield "settings.noises are not those of the cells"
