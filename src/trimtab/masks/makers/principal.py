"""Elements that carry the principal directions of a matrix, those that do not, and safe ones.

The score of an element is its magnitude in the rank-k part of its matrix, `W V Vᵀ` with V the top k
right singular directions; for elements off the principal directions, its negative. Compare both
with
low magnitude, which resembles the second. A stack of matrices (fused experts, 3-D) is scored matrix
by matrix; a vector is its own rank-1 part, so its principal elements are its largest.

Safe elements are of small magnitude or off the principal directions: the union of a low-magnitude
and an off-principal mask. In arXiv 2511.08567 these have 58.6 % and 50 %, together 74 %; here both
have the same density in each tensor, chosen to give the union its size. The score of an element is
the larger of its two ranks, as shares of its tensor.

Source: arXiv 2511.08567 sec. 4 (principal mask: top α by |rank-k reconstruction|) and Tables 4-5
(principal, its complement, both at 50 %).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.checkpoints.weights import elements_of
from trimtab.elements.spectrum import PRINCIPAL_SHARE, principal_directions, principal_part
from trimtab.errors import MaskError
from trimtab.masks.header import BaseTensor
from trimtab.masks.makers.weight_scores import WeightScores, low_magnitude_scores
from trimtab.masks.selection.scores import Scores, in_chunks
from trimtab.masks.selection.top_k import ordered_keys

Matrix = NDArray[np.floating[Any]]


class PrincipalScores(WeightScores):
    """Magnitude in the rank-k part of the matrix, or its negative.

    Memory is one matrix and a few of min(m, n)² fp64 numbers; time is proportional to m·n·min(m,
    n). The
    directions of the last matrix are cached, so a selection per tensor computes them once, and one
    by `total` four times.
    """

    def __init__(
        self,
        base: Checkpoint,
        names: Iterable[str] | None = None,
        *,
        share: float = PRINCIPAL_SHARE,
        off: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """As for `WeightScores`.

        Args:
            base: An open checkpoint, which must stay open.
            names: Names of its tensors.
            share: k as a share of min(m, n), rounded up.
            off: Score the elements off the principal directions highest.
            progress: Called while base is read for the first time.

        Raises:
            MaskError: `share` is not above 0 and at most 1, or a weight is NaN or infinite.
        """
        if not 0 < share <= 1:
            raise MaskError(f"a rank of {share} of the whole: expected a share above 0, at most 1")
        super().__init__(base, names, finite=True, progress=progress)
        self._share = share
        self._sign = np.float32(-1 if off else 1)
        self._last: tuple[tuple[str, int], NDArray[np.float64]] | None = None

    def chunks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """As in `trimtab.masks.selection.scores.Scores`."""
        return in_chunks(
            self._scores(name, index, matrix)
            for index, matrix in enumerate(_matrices(self._checkpoint.tensors[name]))
        )

    def _scores(self, name: str, index: int, matrix: Matrix) -> NDArray[np.float32]:
        """The scores of one matrix, flat."""
        if not matrix.size:
            return np.zeros(0, dtype=np.float32)
        if self._last is None or self._last[0] != (name, index):
            count = ceil(self._share * min(matrix.shape))
            _, right = principal_directions(matrix, count)
            self._last = (name, index), right
        part = principal_part(matrix, self._last[1]).ravel()
        np.abs(part, out=part)
        return np.multiply(part, self._sign, out=part).astype(np.float32, copy=False)


def _matrices(tensor: StoredTensor) -> Iterator[Matrix]:
    """The matrices of a tensor, fp32; fp64 if stored so."""
    vector = len(tensor.shape) < 2
    rows, columns = (tensor.num_elements, 1) if vector else tensor.shape[-2:]
    dtype = np.float64 if tensor.dtype.num_bytes == 8 else np.float32
    for first in range(0, tensor.num_elements, max(rows * columns, 1)):
        values: Matrix = np.empty(rows * columns, dtype)
        filled = 0
        for bits in elements_of(tensor, first, first + values.size):
            values[filled : filled + len(bits)] = tensor.dtype.decode(bits)
            filled += len(bits)
        yield values.reshape(rows, columns)


KEY_BITS = 16
"""Bits of a score that determine its rank: bf16 precision, exact for bf16 weights."""


def safe_scores(
    base: Checkpoint,
    names: Iterable[str] | None = None,
    *,
    share: float = PRINCIPAL_SHARE,
    progress: Progress | None = None,
) -> UnionScores:
    """Safe elements of a base first. Arguments as for `PrincipalScores`."""
    off = PrincipalScores(base, names, share=share, off=True, progress=progress)
    return UnionScores(low_magnitude_scores(base, off.shapes, progress=progress), off)


class UnionScores:
    """Scores that select a union of equally large masks of several scores.

    Attributes:
        shapes: Name -> shape of each tensor.
        base: The base tensors.
    """

    def __init__(self, *scores: Scores) -> None:
        """Combine scores of the same tensors."""
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
