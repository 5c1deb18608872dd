"""The result of a robustness probe: what noise in each set of elements did to a model.

A `Robustness` is complete in itself: tables and reports are drawn from it (or from its JSON, years
later) without opening a checkpoint again. Intervals are over seeds, each of which draws the sets
and the noise anew; the questions are the same throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, isfinite, log
from typing import Any

from trimtab.checkpoints.record import CheckpointRecord, check_format
from trimtab.errors import ResultFormatError
from trimtab.masks.identity.result import MaskRecord
from trimtab.training.sweeps.seeds import CONFIDENCE, over_seeds
from trimtab.words import one_line, plural

__all__ = ["FORMAT", "FORMAT_VERSION", "Cell", "Robustness"]

FORMAT = "trimtab.robustness"
FORMAT_VERSION = 1
"""History: 1, the first."""

MASK_ARM = "mask"
"""The arm that the others are set beside."""


@dataclass(frozen=True)
class Cell:
    """One perturbed model.

    Attributes:
        noise: Kind of noise.
        level: How much of it.
        arm: Which set of elements was perturbed.
        seed: Of the set and of the noise.
        num_chosen: Elements of the set.
        num_in_mask: Those of them that the mask selects.
        num_changed: Elements whose bits the noise changed.
        relative_norm: Norm of the noise ÷ norm of the set, as stored; None for a set of zeros.
        num_correct: Questions answered right, greedily; None if none were asked.
        kl: KL(unperturbed || perturbed) of a token of the text, in nats.
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

    def check(self, num_questions: int | None) -> None:
        """Raise ValueError if it is not such as a probe makes it."""
        counts = (self.num_chosen, self.num_in_mask, self.num_changed)
        if not all(isinstance(count, int) and 0 <= count <= self.num_chosen for count in counts):
            raise ValueError(f"{self}: counts that cannot be")
        if not all(isinstance(name, str) for name in (self.noise, self.arm)):
            raise ValueError(f"{self}: names that are no texts")
        numbers = (self.level, self.kl, self.seed, self.relative_norm or 0.0)
        if not all(isinstance(number, int | float) and isfinite(number) for number in numbers):
            raise ValueError(f"{self}: numbers that are not finite")
        has_answers = self.num_correct is not None
        if has_answers != (num_questions is not None):
            raise ValueError(f"{self}: answers, or questions, are missing")
        if has_answers and not 0 <= (self.num_correct or 0) <= (num_questions or 0):
            raise ValueError(f"{self}: more right answers than questions")


@dataclass(frozen=True, eq=False)
class Robustness:
    """How a model bears noise inside a mask, and elsewhere.

    Attributes:
        checkpoint: The model that was perturbed.
        base: What the mask was made against.
        mask: The mask.
        questions: What was asked: `num_questions` and what else is recorded of it; None if nothing.
        num_correct: Questions that the unperturbed model answers right; None if none were asked.
        text: What both models read.
        arms: Names of the sets of elements; the mask comes first.
        cells: One for every noise, level, seed and arm.
        settings: Seeds, dtype and the like.
        provenance: trimtab version, command, date, device, versions.
    """

    checkpoint: CheckpointRecord
    base: CheckpointRecord
    mask: MaskRecord
    questions: Mapping[str, Any] | None
    num_correct: int | None
    text: Mapping[str, Any]
    arms: tuple[str, ...]
    cells: tuple[Cell, ...]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)

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
        found = [c for c in self.cells if (c.noise, c.level) == condition and c.arm == arm]
        return sorted(found, key=lambda cell: cell.seed)

    def summaries(self) -> list[dict[str, Any]]:
        """For each condition, what each arm did over seeds, and the mask beside it."""
        return [
            {
                "noise": condition[0],
                "level": condition[1],
                "arms": [
                    {
                        "arm": arm,
                        **self._told(self.cells_of(condition, arm)),
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

    def _told(self, cells: Sequence[Cell]) -> dict[str, Any]:
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
        """The mask less an arm, seed by seed, and the ratio of their divergences.

        The ratio is a geometric mean, with the interval of the mean of its logarithm; None where a
        divergence is 0, as where rounding takes all of the noise.
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
        found = list(values)
        return over_seeds(found) if found else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, in the format of the docs page "Formats"."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "provenance": {
                **self.provenance,
                "checkpoint": self.checkpoint.to_dict(),
                "base": self.base.to_dict(),
                "mask": self.mask.to_dict(),
            },
            "settings": dict(self.settings),
            "confidence": CONFIDENCE,
            "questions": None if self.questions is None else dict(self.questions),
            "num_correct": self.num_correct,
            "text": dict(self.text),
            "arms": list(self.arms),
            "summaries": self.summaries(),
            "cells": [dict(cell.__dict__) for cell in self.cells],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Robustness:
        """The inverse of `to_dict`; figures are computed anew.

        Raises:
            ResultFormatError: The data is no robustness probe, of another version, or damaged.
        """
        check_format(
            data, FORMAT, FORMAT_VERSION, what="robustness probe", command="trimtab robustness"
        )
        try:
            provenance = dict(data["provenance"])
            result = cls(
                checkpoint=CheckpointRecord(**provenance.pop("checkpoint")),
                base=CheckpointRecord(**provenance.pop("base")),
                mask=MaskRecord(**provenance.pop("mask")),
                questions=data["questions"],
                num_correct=data["num_correct"],
                text=dict(data["text"]),
                arms=tuple(data["arms"]),
                cells=tuple(Cell(**row) for row in data["cells"]),
                settings=dict(data["settings"]),
                provenance=provenance,
            )
            result._check()
            result.to_dict()  # derives every figure: what cannot be is damaged
        except (
            *(KeyError, TypeError, ValueError, AttributeError),
            *(IndexError, ZeroDivisionError, OverflowError),
        ) as error:
            raise ResultFormatError(
                f"damaged robustness probe: {error!r} while reading it"
            ) from error
        return result

    def _check(self) -> None:
        """Raise ValueError or TypeError if it is not such as `robustness` makes them."""
        if not self.cells or self.arms[0] != MASK_ARM:
            raise ValueError("no cells, or no arm of the mask before the others")
        for cell in self.cells:
            cell.check(self.num_questions)
        found = [(c.noise, c.level, c.seed, c.arm) for c in self.cells]
        seeds = {cell.seed for cell in self.cells}
        wanted = {
            (*condition, seed, arm)
            for condition in self.conditions
            for seed in seeds
            for arm in self.arms
        }
        if len(found) != len(wanted) or set(found) != wanted:
            raise ValueError("cells that are missing, or there twice")
        if not isinstance(self.text["source"], str):
            raise TypeError("a text without a source")
