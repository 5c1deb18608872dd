"""Safe elements: of small magnitude, or off the principal directions.

The safe mask of arXiv 2511.08567 (Tables 4-5) is the union of a low-magnitude and an off-principal
mask; there 58.6 % and 50 %, together 74 %. To compare masks of one size, here both have the same
density in each tensor, whatever makes the union the size that is asked for: the score of an element
is the larger of its two ranks, as shares of its tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints import Checkpoint
from trimtab.checkpoints.stream import Progress
from trimtab.elements.spectrum import PRINCIPAL_SHARE
from trimtab.masks.makers.magnitude import low_magnitude
from trimtab.masks.makers.principal import PrincipalScores
from trimtab.masks.packed import BaseTensor
from trimtab.masks.selection.highest import ordered_keys
from trimtab.masks.selection.scores import Scores

__all__ = ["UnionScores", "safe_scores"]

KEY_BITS = 16
"""Bits of a score that its rank is known by: bf16 precision, so that of a bf16 weight is exact."""


def safe_scores(
    base: Checkpoint,
    names: Iterable[str] | None = None,
    *,
    share: float = PRINCIPAL_SHARE,
    progress: Progress | None = None,
) -> UnionScores:
    """The safe elements of a base first. Arguments as for `PrincipalScores`."""
    off = PrincipalScores(base, names, share=share, off=True, progress=progress)
    return UnionScores(low_magnitude(base, off.shapes, progress=progress), off)


class UnionScores:
    """Scores that select a union of equally large masks of several scores.

    Attributes:
        shapes: Name -> shape of each tensor.
        base: What the tensors are.
    """

    def __init__(self, *scores: Scores) -> None:
        """Unite scores of the same tensors."""
        self._scores = scores
        self.shapes: Mapping[str, tuple[int, ...]] = scores[0].shapes
        self.base: Mapping[str, BaseTensor] = scores[0].base
        self._last: tuple[str, list[NDArray[np.float32]]] | None = None

    def chunks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """As in `trimtab.masks.selection.scores.Scores`."""
        if self._last is None or self._last[0] != name:
            self._last = name, [_ranks(scores, name) for scores in self._scores]
        ranks = self._last[1]
        for chunks in zip(*(scores.chunks(name) for scores in self._scores), strict=True):
            each = [rank[_key(name, chunk)] for rank, chunk in zip(ranks, chunks, strict=True)]
            yield np.maximum.reduce(each)


def _ranks(scores: Scores, name: str) -> NDArray[np.float32]:
    """For every key: the share of the tensor's elements that score less, ties counted half."""
    counts = np.zeros(1 << KEY_BITS, dtype=np.int64)
    for chunk in scores.chunks(name):
        counts += np.bincount(_key(name, chunk), minlength=counts.size)
    shares: NDArray[np.float64] = (np.cumsum(counts) - counts / 2) / max(int(counts.sum()), 1)
    return shares.astype(np.float32)


def _key(name: str, chunk: NDArray[np.float32]) -> NDArray[np.uint32]:
    return ordered_keys(name, chunk) >> np.uint32(32 - KEY_BITS)
