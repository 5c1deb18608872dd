"""How well a mask, or the scores that it was made from, predicts another mask.

The result adds to the overlap of PRED (mask A) and TRUE (mask B) how far the smallest weights alone
would get, and how well a ranking puts true elements first.

Average precision: going down a ranking, the precision at every element of TRUE, averaged. Tied
scores
are taken together, with the precision below the last of them:

    AP = Σ (recall_n - recall_{n-1}) precision_n    over the distinct scores n, the highest first

Scores are counted by their first 16 bits (sign, exponent and seven mantissa bits, as in bf16)
rather
than sorted, so scores closer than 0.8 % can count as tied; bf16 scores are exact.

Source: the definition is that of scikit-learn's `average_precision_score`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.names import match_renamed
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.checkpoints.weights import read_weights
from trimtab.elements.dtypes import Bits
from trimtab.errors import MaskMismatchError
from trimtab.masks.header import PackedMask
from trimtab.masks.matching import named_like
from trimtab.masks.on_disk import opened_masks
from trimtab.masks.overlap import overlap
from trimtab.masks.overlap_chance import Shared
from trimtab.masks.overlap_result import Overlap, TensorOverlap
from trimtab.masks.packed import unpacked
from trimtab.masks.selection.scores import ScoreFile, Scores
from trimtab.masks.selection.top_k import ordered_keys
from trimtab.results.by_tensor import by_kind, by_layer, plain_layers
from trimtab.results.records import made_now
from trimtab.results.result import Result
from trimtab.results.schema import Amount, Provenance, Share
from trimtab.words import first_few, one_line, out_of

LEVEL_BITS = 16


def average_precision(num_elements: NDArray[np.int64], num_true: NDArray[np.int64]) -> float | None:
    """Average precision from counts.

    Args:
        num_elements: Elements of each level, the lowest score first.
        num_true: How many of them are true.

    Returns:
        None if nothing is true.
    """
    total = int(num_true.sum())
    if not total:
        return None
    levels = np.flatnonzero(num_true)[::-1]
    seen, hits = (np.cumsum(counts[::-1])[::-1][levels] for counts in (num_elements, num_true))
    return float(np.sum(num_true[levels] / total * (hits / seen)))


class LevelCounts:
    """Counts elements by score, true ones separately.

    Attributes:
        is_exact: Whether no score had more bits than are distinguished.
    """

    def __init__(self) -> None:
        """Start at zero."""
        self.is_exact = True
        self._counts = np.zeros((2, 1 << LEVEL_BITS), dtype=np.int64)

    def add(self, name: str, scores: NDArray[np.float32], is_true: NDArray[np.bool_]) -> None:
        """Count some elements.

        Args:
            name: Name of their tensor, for the message.
            scores: Score of each.
            is_true: Whether each is true.

        Raises:
            MaskError: A score is NaN.
        """
        levels = ordered_keys(name, scores) >> np.uint32(32 - LEVEL_BITS)
        if self.is_exact:
            rest = np.uint32((1 << 32 - LEVEL_BITS) - 1)
            self.is_exact = not (scores.view(np.uint32) & rest).any()
        self._counts[0] += np.bincount(levels, minlength=1 << LEVEL_BITS)
        self._counts[1] += np.bincount(levels[is_true], minlength=1 << LEVEL_BITS)

    def add_unranked(self, num_elements: int, num_true: int) -> None:
        """Count elements without a score, below all that have one."""
        self._counts[:, 0] += num_elements, num_true

    def add_all(self, other: LevelCounts) -> None:
        """Add the counts of another."""
        self._counts += other._counts
        self.is_exact &= other.is_exact

    @property
    def average_precision(self) -> float | None:
        """Average precision of the counts; None if nothing was true."""
        return average_precision(*self._counts)


LOW_MAGNITUDE = "low-magnitude"
"""Key of the lift over the smallest weights of each tensor."""


@dataclass(frozen=True, eq=False)
class Quality:
    """How well PRED predicts TRUE in one scope.

    Attributes:
        shared: What the two share, and would by chance.
        num_low: Elements of TRUE among the smallest weights of each tensor, in the number that PRED
            selects there;
            the mean over every way to break ties. None without a base.
        ranked: Average precision of the ranking by scores; None without one, or if TRUE is empty.
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
        """Average precision of PRED itself: its elements tied, before the rest, tied."""
        if self.recall is None or self.density is None:
            return None
        return self.recall * (self.precision or 0.0) + (1 - self.recall) * self.density

    @property
    def average_precision(self) -> float | None:
        """That of the ranking if there is one, else of PRED itself."""
        return self.binary if self.ranked is None else self.ranked

    @property
    def lifts(self) -> dict[str, float | None]:
        """What both share, over the expectation of each null and of the smallest weights."""
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
    """How well scores rank the elements of TRUE before the others.

    Attributes:
        id: The file of the scores, as the user gave it.
        is_exact: Whether all different scores were distinguished, not only their first 16 bits.
        total: Average precision over all elements; None if TRUE is empty.
        by_layer: The same within each layer; None for the tensors outside the layers.
        by_kind: The same within each kind.
        provenance: How the scores were made, according to their file.
    """

    id: str | None
    is_exact: bool
    total: Share | None
    by_layer: Mapping[int | None, Share | None]
    by_kind: Mapping[str, Share | None]
    provenance: Mapping[str, Any]

    __repr__ = one_line


@dataclass(frozen=True, eq=False)
class PredictionScore(Result):
    """How well PRED predicts TRUE.

    Attributes:
        overlap: What the two share; its mask A is PRED, B is TRUE.
        num_low: Name -> elements of TRUE among the smallest weights of the tensor, in the number
            that PRED selects there; empty without a base.
        ranking: What the scores say; None without them.
        provenance: trimtab version, command, date.
    """

    FORMAT = "trimtab.prediction"
    NAME = "prediction"
    COMMAND = "trimtab mask score"
    ROWS = "overlap.tensors"
    PLAIN: ClassVar = (
        *("provenance", "total", "by_layer=_plain_layers", "by_kind"),
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
        ranked = None if self.ranking is None else self.ranking.total
        return Quality(self.overlap.total(), self._low(self.overlap.tensors), ranked)

    def by_layer(self) -> dict[int | None, Quality]:
        """By layer, ascending; None for the tensors outside the layers comes last."""
        low = by_layer(self.overlap.tensors, self._low)
        ranked = {} if self.ranking is None else self.ranking.by_layer
        shared = self.overlap.by_layer()
        return {layer: Quality(shared[layer], low[layer], ranked.get(layer)) for layer in shared}

    def by_kind(self) -> dict[str, Quality]:
        """By kind, in the order in which the kinds first appear."""
        low = by_kind(self.overlap.tensors, self._low)
        ranked = {} if self.ranking is None else self.ranking.by_kind
        shared = self.overlap.by_kind()
        return {kind: Quality(shared[kind], low[kind], ranked.get(kind)) for kind in shared}

    def _low(self, tensors: Sequence[TensorOverlap]) -> float | None:
        if self.overlap.base is None:
            return None
        return sum(self.num_low[tensor.name] for tensor in tensors)

    def _plain_layers(self) -> dict[str, Quality]:
        return plain_layers(self.by_layer())

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        tensors = {tensor.name: tensor for tensor in self.overlap.tensors}
        if len(self.overlap.masks) != 2:
            yield f"overlap is of {len(self.overlap.masks)} masks, expected 2"
        elif self.num_low.keys() != (tensors.keys() if self.overlap.base else set()):
            yield "num_low is not of the tensors of the overlap"
        else:
            for name, num in self.num_low.items():
                if num > tensors[name].num_elements * (1 + 1e-9):
                    yield f"num_low is {num} of {tensors[name].num_elements} ({name[:100]!a})"


MAGNITUDE_BITS = 16
"""Leading bits of a magnitude that are distinguished: all of bf16 and fp16."""


def score_prediction(
    pred: str | os.PathLike[str] | PackedMask,
    true: str | os.PathLike[str] | PackedMask,
    *,
    scores: str | os.PathLike[str] | Scores | None = None,
    base: str | os.PathLike[str] | Checkpoint | None = None,
    progress: Progress | None = None,
) -> PredictionScore:
    """Score one mask as a prediction of another.

    Args:
        pred: The prediction, or its file.
        true: The mask to predict, or its file.
        scores: The scores that the prediction was made from, or their file; with them average
            precision is that of the ranking. Elements without a score rank last.
        base: The checkpoint that both were made against: a folder, a file, a hub id, or an open
            checkpoint. With it, the prediction is compared with random ones of its magnitudes, and
            with the smallest weights.
        progress: Called after each chunk of base, from any thread.

    Raises:
        MaskError: A file is not a mask or not scores, or a score is NaN.
        MaskMismatchError: They are of different models, or were made against another base.
        CheckpointError: The base cannot be read.
    """
    with ExitStack() as stack:
        checkpoint = None if base is None else stack.enter_context(opened(base))[0]
        shared = overlap(pred, true, base=checkpoint, progress=progress)
        (true,) = opened_masks([true], stack)
        true = named_like(true, [tensor.name for tensor in shared.tensors])
        num_low: dict[str, float] = {}
        if checkpoint is not None:
            num_predicted = {tensor.name: tensor.num_selected[0] for tensor in shared.tensors}
            count = partial(_num_low, true, num_predicted)
            num_low, _ = read_weights(checkpoint, num_predicted, count, progress=progress)
        ranking = None
        if scores is not None:
            scores_id = None
            if isinstance(scores, str | os.PathLike):
                scores_id = os.fspath(scores)
                scores = stack.enter_context(ScoreFile(scores))
            ranking = _ranking(scores, true, shared.tensors, scores_id)
    return PredictionScore(shared, num_low, ranking, made_now())


def _num_low(
    truth: PackedMask,
    num_predicted: Mapping[str, int],
    tensor: StoredTensor,
    chunks: Iterator[tuple[int, Bits]],
) -> float:
    """True elements among the smallest weights; the mean over ways to break ties."""
    num_bits = 8 * tensor.dtype.num_bytes - 1
    shift = tensor.dtype.bits.type(max(0, num_bits - MAGNITUDE_BITS))
    sign = tensor.dtype.bits.type(1 << num_bits)
    # Elements that are not floats all tie.
    keep = ~sign if tensor.dtype.is_float else tensor.dtype.bits.type(0)
    num_levels = 1 << min(num_bits, MAGNITUDE_BITS)
    counts = np.zeros((2, num_levels), dtype=np.int64)
    packed = truth.packed(tensor.name)
    for start, bits in chunks:
        levels = (bits & keep) >> shift
        is_true = unpacked(packed, start, start + len(bits))
        counts[0] += np.bincount(levels, minlength=num_levels)
        counts[1] += np.bincount(levels[is_true], minlength=num_levels)
    ends = np.cumsum(counts[0])
    room = num_predicted[tensor.name]
    edge = int(np.searchsorted(ends, room))  # the level in which the last of them is
    if not room:
        return 0.0
    part = (room - (ends[edge] - counts[0, edge])) / counts[0, edge]
    return float(counts[1, :edge].sum() + part * counts[1, edge])


def _ranking(
    scores: Scores, truth: PackedMask, tensors: Sequence[TensorOverlap], id: str | None
) -> Ranking:
    """Average precision of the scores, over all and within each layer and kind."""
    problems = []
    renamed = match_renamed([tensor.name for tensor in tensors], scores.shapes)
    for tensor in tensors:
        name = renamed.get(tensor.name, tensor.name)
        shape = scores.shapes.get(name, tensor.shape)
        if shape != tensor.shape:
            problems.append(f"{tensor.name} has shape {tensor.shape}, its scores {shape}")
        base_tensor = scores.base.get(name)
        if base_tensor is not None and base_tensor != truth.base.get(tensor.name, base_tensor):
            problems.append(f"{tensor.name} was another one when it was scored")
    if problems:
        raise MaskMismatchError(
            f"the scores do not fit the masks, in {len(problems)} of {len(tensors)} tensors: "
            f"{first_few(problems, '; ')}. Give those that were made from the base of the masks"
        )
    by_layer: dict[int | None, LevelCounts] = {}
    by_kind: dict[str, LevelCounts] = {}
    for tensor in tensors:
        counts = _levels(scores, renamed.get(tensor.name, tensor.name), truth, tensor)
        by_layer.setdefault(tensor.layer, LevelCounts()).add_all(counts)
        by_kind.setdefault(tensor.kind, LevelCounts()).add_all(counts)
    total = LevelCounts()
    for counts in by_kind.values():
        total.add_all(counts)
    return Ranking(
        id=id,
        is_exact=total.is_exact,
        total=total.average_precision,
        by_layer={layer: counts.average_precision for layer, counts in by_layer.items()},
        by_kind={kind: counts.average_precision for kind, counts in by_kind.items()},
        provenance=dict(getattr(scores, "provenance", {})),
    )


def _levels(scores: Scores, name: str, truth: PackedMask, tensor: TensorOverlap) -> LevelCounts:
    """Count the elements of a tensor by score; `name` is its name in the scores."""
    counts = LevelCounts()
    packed = truth.packed(tensor.name)
    if name not in scores.shapes:
        counts.add_unranked(tensor.num_elements, tensor.num_selected[1])
        return counts
    start = 0
    for chunk in scores.chunks(name):
        is_true = unpacked(packed, start, start + len(chunk))
        counts.add(tensor.name, chunk, is_true)
        start += len(chunk)
    return counts
