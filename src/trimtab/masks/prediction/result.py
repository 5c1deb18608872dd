"""The result of `trimtab mask score`: how well one mask predicts another.

It is an overlap of the two, PRED and TRUE, which are its masks A and B, with what an overlap does
not know: how far the smallest weights alone would get, and how well a ranking puts what is true
before the rest. Everything else is derived.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from trimtab.checkpoints.record import check_format
from trimtab.errors import ResultFormatError
from trimtab.masks.overlap.result import Overlap
from trimtab.masks.overlap.shared import Shared
from trimtab.words import one_line, out_of

__all__ = ["FORMAT", "FORMAT_VERSION", "LOW_MAGNITUDE", "PredictionScore", "Quality", "Ranking"]

FORMAT = "trimtab.prediction"
FORMAT_VERSION = 1
"""History: 1, the first."""

LOW_MAGNITUDE = "low-magnitude"
"""What a lift is over, beside the nulls of an overlap: the smallest weights, as many per tensor."""


@dataclass(frozen=True, eq=False)
class Quality:
    """How well PRED predicts TRUE in one scope.

    Attributes:
        shared: What the two share there, and would by chance.
        num_low: Elements of TRUE among the smallest weights, as many in each tensor as PRED
            selects; the mean over every way to break ties. None without a base.
        ranked: Average precision of the ranking by scores; None without one, or where TRUE is
            empty.
    """

    shared: Shared
    num_low: float | None
    ranked: float | None

    def __repr__(self) -> str:
        came_true = out_of(self.shared.intersection, self.shared.num_first, "predicted element")
        return one_line(self, f"{came_true} came true, of {self.shared.num_second:,} to be found")

    @property
    def precision(self) -> float | None:
        """Share of PRED that is in TRUE; None if PRED is empty."""
        return self.shared.o1

    @property
    def recall(self) -> float | None:
        """Share of TRUE that is in PRED; None if TRUE is empty."""
        return self.shared.o2

    @property
    def density(self) -> float | None:
        """Share of the elements that is in TRUE: the precision of any guess."""
        shared = self.shared
        return shared.num_second / shared.num_elements if shared.num_elements else None

    @property
    def binary(self) -> float | None:
        """Average precision of PRED itself: what it selects tied before the rest, tied."""
        if self.recall is None or self.density is None:
            return None
        return self.recall * (self.precision or 0.0) + (1 - self.recall) * self.density

    @property
    def average_precision(self) -> float | None:
        """That of the ranking if there is one, else of PRED itself."""
        return self.binary if self.ranked is None else self.ranked

    @property
    def lifts(self) -> dict[str, float | None]:
        """What PRED and TRUE share, over what each null and the smallest weights would give."""
        lifts: dict[str, float | None] = {
            null: against.lift for null, against in self.shared.nulls.items()
        }
        if self.num_low is not None:
            lifts[LOW_MAGNITUDE] = self.shared.intersection / self.num_low if self.num_low else None
        return lifts

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "num_elements": self.shared.num_elements,
            "num_predicted": self.shared.num_first,
            "num_true": self.shared.num_second,
            "num_both": self.shared.intersection,
            "num_low": self.num_low,
            "density": self.density,
            "precision": self.precision,
            "recall": self.recall,
            "average_precision": self.average_precision,
            "lifts": self.lifts,
        }


@dataclass(frozen=True, eq=False)
class Ranking:
    """How well scores put the elements of TRUE before the others.

    Attributes:
        id: The file of the scores, as it was given.
        is_exact: Whether scores were told apart wherever they differ; if not, where they differ in
            their first 16 bits.
        total: Average precision over all elements; None if TRUE is empty.
        by_layer: The same within each layer; None for the tensors outside the layers.
        by_kind: The same within each kind.
        provenance: How the scores were made, as their file says.
    """

    id: str | None
    is_exact: bool
    total: float | None
    by_layer: Mapping[int | None, float | None]
    by_kind: Mapping[str, float | None]
    provenance: Mapping[str, Any]

    __repr__ = one_line

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        by_layer = [[layer, ap] for layer, ap in self.by_layer.items()]
        return {
            **self.__dict__,
            "by_layer": by_layer,
            "by_kind": dict(self.by_kind),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ranking:
        """The inverse of `to_dict`."""
        by_layer = {layer: _share(ap) for layer, ap in data["by_layer"]}
        by_kind = {kind: _share(ap) for kind, ap in data["by_kind"].items()}
        provenance, is_exact = dict(data["provenance"]), data["is_exact"]
        if not isinstance(is_exact, bool):
            raise TypeError(f"is_exact is {is_exact!r}")
        return cls(data["id"], is_exact, _share(data["total"]), by_layer, by_kind, provenance)


@dataclass(frozen=True, eq=False)
class PredictionScore:
    """How well PRED predicts TRUE.

    Attributes:
        overlap: What the two share; its mask A is PRED, B is TRUE.
        num_low: Name -> elements of TRUE among as many of the smallest weights of the tensor as
            PRED selects; empty without a base.
        ranking: What the scores say; None without them.
        provenance: trimtab version, command, date.
    """

    overlap: Overlap
    num_low: Mapping[str, float]
    ranking: Ranking | None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        total = self.total.shared
        came_true = out_of(total.intersection, total.num_first, "predicted element")
        return one_line(self, f"{came_true} came true")

    @property
    def total(self) -> Quality:
        """In all tensors."""
        names = [tensor.name for tensor in self.overlap.tensors]
        ranked = None if self.ranking is None else self.ranking.total
        return Quality(self.overlap.total(), self._low(names), ranked)

    def by_layer(self) -> dict[int | None, Quality]:
        """By layer, ascending; None for the tensors outside the layers comes last."""
        ranked = {} if self.ranking is None else self.ranking.by_layer
        return {
            layer: Quality(
                shared,
                self._low([t.name for t in self.overlap.tensors if t.layer == layer]),
                ranked.get(layer),
            )
            for layer, shared in self.overlap.by_layer().items()
        }

    def by_kind(self) -> dict[str, Quality]:
        """By kind, in the order in which the kinds first appear."""
        ranked = {} if self.ranking is None else self.ranking.by_kind
        return {
            kind: Quality(
                shared,
                self._low([t.name for t in self.overlap.tensors if t.kind == kind]),
                ranked.get(kind),
            )
            for kind, shared in self.overlap.by_kind().items()
        }

    def _low(self, names: list[str]) -> float | None:
        if self.overlap.base is None:
            return None
        return sum(self.num_low[name] for name in names)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, in the format of the docs page "Formats"."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "provenance": dict(self.provenance),
            "total": self.total.to_dict(),
            "by_layer": {
                "outside" if layer is None else str(layer): quality.to_dict()
                for layer, quality in self.by_layer().items()
            },
            "by_kind": {kind: quality.to_dict() for kind, quality in self.by_kind().items()},
            "ranking": None if self.ranking is None else self.ranking.to_dict(),
            "num_low": dict(self.num_low),
            "overlap": self.overlap.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PredictionScore:
        """The inverse of `to_dict`; what is derived is derived again.

        Raises:
            ResultFormatError: The data is no prediction, of another version, or damaged.
        """
        check_format(data, FORMAT, FORMAT_VERSION, what="prediction", command="trimtab mask score")
        try:
            overlap, ranking = Overlap.from_dict(data["overlap"]), data["ranking"]
            num_low = {name: _amount(num) for name, num in data["num_low"].items()}
            names = {tensor.name for tensor in overlap.tensors}
            if len(overlap.masks) != 2 or num_low.keys() != (names if overlap.base else set()):
                raise ValueError("the smallest weights are not told of the tensors of two masks")
            return cls(
                overlap,
                num_low,
                None if ranking is None else Ranking.from_dict(ranking),
                dict(data["provenance"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ResultFormatError(f"damaged prediction: {error!r} while reading it") from error


def _amount(value: Any) -> float:
    if type(value) not in (int, float) or not (isfinite(value) and value >= 0):
        raise TypeError(f"{value!r} is no number of elements")
    return float(value)


def _share(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise TypeError(f"{value!r} is no share")
    return float(value)
