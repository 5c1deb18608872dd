"""`score_prediction`: how well does a mask, or the scores it was made by, predict another mask?

The masks are counted by `trimtab.masks.overlap`. Where a base is given its weights are counted by
magnitude, for what the smallest of them alone would get; where scores are given, they are counted
by level. Each is one streaming pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np

from trimtab.checkpoints import Checkpoint, StoredTensor, opened
from trimtab.checkpoints.names import match_renamed
from trimtab.checkpoints.stream import Progress
from trimtab.elements.dtypes import Bits
from trimtab.errors import MaskMismatchError
from trimtab.masks.naming import named_like
from trimtab.masks.overlap import overlap
from trimtab.masks.overlap.counts import TensorOverlap
from trimtab.masks.packed import PackedMask, unpacked
from trimtab.masks.prediction.average_precision import LevelCounts
from trimtab.masks.prediction.result import PredictionScore, Ranking
from trimtab.masks.selection.scores import ScoreFile, Scores
from trimtab.masks.selection.weights import read_weights
from trimtab.masks.stored import open_mask
from trimtab.results.records import made_now
from trimtab.words import first_few

__all__ = ["score_prediction"]

MAGNITUDE_BITS = 16
"""First bits of a magnitude that are told apart: all of those of bf16 and fp16."""


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
        true: What came true, or its file.
        scores: The scores that the prediction was made by, or their file; with them average
            precision is that of the ranking. Elements that have none rank last.
        base: The checkpoint that both were made against: a folder, a file, a hub id, or an open
            checkpoint. With it, the prediction is set beside random ones of its magnitudes, and
            beside the smallest weights.
        progress: Called after each chunk that is read of base, from any thread.

    Raises:
        MaskError: A file is no mask or no scores, or a score is NaN.
        MaskMismatchError: They are of different models, or were made against another base.
        CheckpointError: The base cannot be read.
    """
    with ExitStack() as stack:
        checkpoint = None if base is None else stack.enter_context(opened(base))[0]
        shared = overlap(pred, true, base=checkpoint, progress=progress)
        if isinstance(true, str | os.PathLike):
            true = stack.enter_context(open_mask(true))
        true = named_like(true, [tensor.name for tensor in shared.tensors])
        num_low: dict[str, float] = {}
        if checkpoint is not None:
            num_predicted = {of.name: of.num_selected[0] for of in shared.tensors}
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
    """True elements among so many of the smallest weights; the mean over ways to break ties."""
    num_bits = 8 * tensor.dtype.num_bytes - 1
    shift = tensor.dtype.bits.type(max(0, num_bits - MAGNITUDE_BITS))
    sign = tensor.dtype.bits.type(1 << num_bits)
    # Elements that are no floats have no magnitude, and all tie.
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
        of = scores.base.get(name)
        if of is not None and of != truth.base.get(tensor.name, of):
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
    """Count the elements of a tensor by score; `name` is that of the scores for it."""
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
