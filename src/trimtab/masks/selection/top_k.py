"""Select an exact number of elements, those with the highest scores.

The threshold is found without sorting or storing the scores: three passes count elements by 11, 11
and 10 bits of their score, the most significant first. A fourth pass selects the elements above the
threshold and, at random, enough of those equal to it: scores tie in the thousands (magnitudes in
bf16
do), and selecting by position would favour the first rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.stream import Progress
from trimtab.errors import MaskError, MaskMismatchError
from trimtab.masks.header import provenance_of
from trimtab.masks.mask import Mask
from trimtab.masks.packed import PackedTensor
from trimtab.masks.random import Lots
from trimtab.masks.selection.quotas import Group, Quotas
from trimtab.masks.selection.scores import Scores
from trimtab.words import first_few

_Chunk: TypeAlias = tuple[NDArray[np.uint32], NDArray[np.uint16]]

_SIGN = np.uint32(1 << 31)
_INFINITY = np.uint32(0xFF800000)
"""The key of infinity; that of minus infinity is its complement, and NaN lies beyond either."""

DIGITS = (11, 11, 10)
"""Bits of a score that each pass counts, the most significant first."""


def select(
    scores: Scores,
    quotas: Quotas,
    *,
    seed: int,
    provenance: Mapping[str, Any],
    progress: Progress | None = None,
) -> Mask:
    """Select the elements with the highest scores, up to the quota of each stratum.

    Args:
        scores: Of at least the tensors of `quotas`; read four times.
        quotas: How many to select.
        seed: With the names of the tensors it decides which of equal scores are selected.
        provenance: The step that made the scores, such as `{"step": "low-magnitude", …}`; the
            origin of `quotas` and the seed are added.
        progress: Called after each chunk, with the bytes of its scores.

    Raises:
        MaskError: A score is NaN.
        MaskMismatchError: A tensor has no scores, or of another shape.
    """
    wrong = [
        f"{name} has shape {shape}, its scores {scores.shapes.get(name, 'do not exist')}"
        for name, shape in quotas.shapes.items()
        if scores.shapes.get(name) != tuple(shape)
    ]
    if wrong:
        raise MaskMismatchError(
            f"the scores do not fit what is to be selected: {first_few(wrong, '; ')}. Make them "
            "from the base of the mask"
        )
    reader = _Reader(scores, quotas, progress)
    selected: dict[str, PackedTensor] = {}
    for group in quotas.groups:
        edges = _edges(reader, group)
        lots = Lots(edges.num_tied.tolist(), edges.num_drawn.tolist(), seed=seed, name=group.name)
        for name in group.names:
            parts = _selected(reader.read(name), edges, lots)
            selected[name] = PackedTensor.of_parts(quotas.shapes[name], parts)
    base = {name: tensor for name, tensor in scores.base.items() if name in selected}
    step = {**provenance, **quotas.origin, "seed": seed}
    ordered = {name: selected[name] for name in quotas.shapes}
    return Mask(ordered, base, provenance_of([step]))


def ordered_keys(name: str, scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Unsigned integers in the order of the scores; -0.0 and 0.0 are equal.

    Raises:
        MaskError: A score is NaN.
    """
    bits = (scores + np.float32(0)).view(np.uint32)
    # Negative numbers are ordered backwards: flip all of their bits, and the sign of the others.
    turned = (bits.view(np.int32) >> 31).view(np.uint32)
    turned |= _SIGN
    bits ^= turned
    if bits.size and (bits.max() > _INFINITY or bits.min() < ~_INFINITY):
        raise MaskError(f"the scores of {name} hold NaN: expected a number for every element")
    return bits


class _Reader:
    """Reads scores as keys, each with the stratum of its element, and reports progress."""

    def __init__(self, scores: Scores, quotas: Quotas, progress: Progress | None) -> None:
        self._scores = scores
        self._quotas = quotas
        self._progress = progress
        num_elements = sum(map(prod, quotas.shapes.values()))
        self._num_bytes = 4 * num_elements * (len(DIGITS) + 1)

    def read(self, name: str) -> Iterator[_Chunk]:
        chunks = self._scores.chunks(name)
        for chunk, strata in zip(chunks, self._quotas.strata(name), strict=True):
            yield ordered_keys(name, chunk), strata
            if self._progress is not None:
                self._progress(chunk.nbytes, self._num_bytes)


@dataclass(frozen=True, eq=False)
class _Edges:
    """Thresholds of the strata of a group.

    Attributes:
        keys: Elements with a larger key are selected.
        num_tied: Elements with exactly this key.
        num_drawn: How many of those are selected too.
    """

    keys: NDArray[np.uint32]
    num_tied: NDArray[np.int64]
    num_drawn: NDArray[np.int64]


def _edges(reader: _Reader, group: Group) -> _Edges:
    num_strata = len(group.sizes)
    every = np.arange(num_strata)
    edges = np.zeros(num_strata, dtype=np.uint32)
    room = group.nums.copy()
    below = 32
    for num_bits in DIGITS:
        above, below = below, below - num_bits
        counts = np.zeros((num_strata, 1 << num_bits), dtype=np.int64)
        for name in group.names:
            for keys, strata in reader.read(name):
                if above < 32:  # only elements with the digits found so far
                    inside = keys >> np.uint32(above) == _of_stratum(edges, strata)
                    keys, strata = keys[inside], strata[inside]
                digits = keys >> np.uint32(below) & np.uint32((1 << num_bits) - 1)
                flat = strata.astype(np.int64) << num_bits | digits
                counts += np.bincount(flat, minlength=counts.size).reshape(counts.shape)
        from_top = np.cumsum(counts[:, ::-1], axis=1)
        position = np.argmax(from_top >= room[:, None], axis=1)  # the first that fills the room
        digit = (1 << num_bits) - 1 - position
        in_bucket = counts[every, digit]
        room -= from_top[every, position] - in_bucket
        edges = edges << np.uint32(num_bits) | digit.astype(np.uint32)
    return _Edges(edges, in_bucket, room)


def _selected(read: Iterator[_Chunk], edges: _Edges, lots: Lots) -> Iterator[NDArray[np.bool_]]:
    for keys, strata in read:
        edge = _of_stratum(edges.keys, strata)
        chosen = keys > edge
        tied = np.flatnonzero(keys == edge)
        chosen[tied] = lots.draw(strata[tied])
        yield chosen


def _of_stratum(
    values: NDArray[np.uint32], strata: NDArray[np.uint16]
) -> NDArray[np.uint32] | np.uint32:
    """The value of each element's stratum."""
    if len(values) == 1:
        only: np.uint32 = values[0]
        return only
    return values[strata]
