"""The result of `trimtab mask score`: how well one mask predicts another.

It is an overlap of the two, PRED and TRUE, which are its masks A and B, with what an overlap does
not know: how far the smallest weights alone would get, and how well a ranking puts what is true
before the rest. Everything else is derived.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trimtab.masks.overlap.result import Overlap
from trimtab.masks.overlap.shared import Shared
from trimtab.results.schema import Amount, Provenance, Share, from_plain, to_plain
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
    total: Share | None
    by_layer: Mapping[int | None, Share | None]
    by_kind: Mapping[str, Share | None]
    provenance: Mapping[str, Any]

    __repr__ = one_line


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

    PLAIN: ClassVar = (
        *("provenance", "total=_plain_total", "by_layer=_plain_layers", "by_kind=_plain_kinds"),
        *("ranking", "num_low", "overlap"),
    )

    overlap: Overlap
    num_low: Mapping[str, Amount]
    ranking: Ranking | None
    provenance: Provenance = field(default_factory=dict)

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
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **to_plain(self)}

    def _plain_total(self) -> dict[str, Any]:
        return self.total.to_dict()

    def _plain_layers(self) -> dict[str, Any]:
        return {
            "outside" if layer is None else str(layer): quality.to_dict()
            for layer, quality in self.by_layer().items()
        }

    def _plain_kinds(self) -> dict[str, Any]:
        return {kind: quality.to_dict() for kind, quality in self.by_kind().items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PredictionScore:
        """The inverse of `to_dict`; what is derived is derived again.

        Raises:
            ResultFormatError: The data is no prediction, of another version, or damaged.
        """
        return from_plain(
            cls,
            data,
            what="prediction",
            format=FORMAT,
            version=FORMAT_VERSION,
            command="trimtab mask score",
        )

    def problems(self) -> Iterator[str]:
        """What no prediction can score."""
        tensors = {tensor.name: tensor for tensor in self.overlap.tensors}
        if len(self.overlap.masks) != 2:
            yield f"overlap is of {len(self.overlap.masks)} masks, expected 2"
        elif self.num_low.keys() != (tensors.keys() if self.overlap.base else set()):
            yield "num_low is not of the tensors of the overlap"
        else:
            for name, num in self.num_low.items():
                if num > tensors[name].num_elements * (1 + 1e-9):
                    yield f"num_low is {num} of {tensors[name].num_elements} ({name[:100]!a})"
