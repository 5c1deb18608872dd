"""The second pass of `--rank` and `--geometry`: whole matrices, one at a time.

Singular values need a whole matrix in memory: as much as the largest that the analyses accept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.align import Aligned, num_columns, num_rows
from trimtab.checkpoints.names import TensorPart, parts_of
from trimtab.checkpoints.stream import Source, chunks_of, new_buffer
from trimtab.results.schema import Count
from trimtab.words import are, plural

MAX_ELEMENTS = 1 << 28
"""Default limit on the elements of a matrix that is analysed."""

READ_MEANWHILE = 4
"""Bytes read in about the time of one multiplication of a decomposition."""


Matrix: TypeAlias = NDArray[np.floating[Any]]


class Skipped(TypedDict):
    """A tensor that was not analysed."""

    name: str
    shape: tuple[Count, ...]
    reason: str


@dataclass
class MatrixAnalysis(ABC):
    """Collects figures of a model's matrices, one at a time; what it cannot analyse is listed.

    Attributes:
        max_elements: Matrices with more elements are listed as skipped.
    """

    max_elements: int = MAX_ELEMENTS
    _by_tensor: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    _skipped: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def add(self, name: str, base: Matrix, tuned: Matrix) -> None:
        """Analyse one tensor, or list it with the reason why not.

        Args:
            name: Name of the tensor.
            base: Its values before training, fp32 or fp64; not modified.
            tuned: After training; same shape and dtype. A stack of matrices (fused experts, 3-D) is
                taken as its matrices, `name[0]`, `name[1]`, ...
        """
        if base.ndim == 3:
            for index, (before, after) in enumerate(zip(base, tuned, strict=True)):
                self.add(f"{name}[{index}]", before, after)
            return
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is skipped
            update = tuned - base
        if (reason := self._reason_to_skip(base, tuned, update)) is not None:
            self.skip(name, base.shape, reason)
        else:
            self._by_tensor[name] = self._figures(name, base, tuned, update)

    def skip(self, name: str, shape: tuple[int, ...], reason: str) -> None:
        """List a tensor as not analysed."""
        self._skipped.append({"name": name, "shape": list(shape), "reason": reason})

    @abstractmethod
    def _reason_to_skip(self, base: Matrix, tuned: Matrix, update: Matrix) -> str | None:
        """Why a tensor cannot be analysed, or None if it can."""

    @abstractmethod
    def _figures(self, name: str, base: Matrix, tuned: Matrix, update: Matrix) -> dict[str, Any]:
        """The row of a matrix in `by_tensor`."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""


def reason_to_skip(matrix: NDArray[Any], max_elements: int) -> str | None:
    """Why a tensor cannot be analysed as a matrix, or None if it can."""
    if matrix.ndim != 2:
        return f"not a matrix: it has {plural(matrix.ndim, 'dimension')}"
    if not matrix.size:
        return "it has no elements"
    if matrix.size > max_elements:
        return f"{matrix.size:,} elements are more than the limit of {max_elements:,}"
    # The sum is finite unless an element is not (or it overflows), which needs no array of flags.
    with np.errstate(invalid="ignore", over="ignore"):
        total = matrix.sum(dtype=np.float64)
    if not np.isfinite(total) and (num := int(np.count_nonzero(~np.isfinite(matrix)))):
        return f"{are(num, 'element')} NaN or infinite"
    return None


def work_of(item: Aligned, config: Mapping[str, Any], num_analyses: int) -> int:
    """The work of analyses on a tensor, in bytes that take about as long to read.

    A decomposition of m x n takes m·n·min(m, n) multiplications: by bytes alone, the last matrices
    of a model would seem as quick as its embeddings.

    Args:
        item: The tensor.
        config: Config of base, to split fused tensors.
        num_analyses: Number of analyses.
    """
    num_bytes = sum(tensor.num_bytes for tensor in item.stored)
    return num_analyses * (num_bytes + READ_MEANWHILE * _multiplications(item, config))


def _multiplications(item: Aligned, config: Mapping[str, Any]) -> int:
    if not item.dtype.is_float or len(item.shape) < 2 or _is_too_large(item, MAX_ELEMENTS):
        return 0
    shapes = [part.shape_in(item.shape) for part in parts_of(item.name, item.shape, config)]
    return sum(prod(shape) * min(shape[-2:]) for shape in shapes)


def analyse_matrices(
    items: Sequence[Aligned],
    config: Mapping[str, Any],
    analyses: Sequence[MatrixAnalysis],
    report: Callable[[int], None],
) -> None:
    """Pass every float tensor, or part of a fused one, to the analyses.

    Args:
        items: The compared tensors.
        config: Config of base, to split fused tensors.
        analyses: Added to.
        report: Called with the `work_of` each tensor when it is done.
    """
    limit = max(analysis.max_elements for analysis in analyses)
    buffer = new_buffer()
    for item in items:
        if item.dtype.is_float:
            _analyse(item, config, analyses, limit, buffer)
        report(work_of(item, config, len(analyses)))


def _analyse(
    item: Aligned,
    config: Mapping[str, Any],
    analyses: Sequence[MatrixAnalysis],
    limit: int,
    buffer: NDArray[np.uint8],
) -> None:
    if _is_too_large(item, limit):
        reason = f"{prod(item.shape):,} elements are more than the limit of {limit:,}"
        for analysis in analyses:
            analysis.skip(item.name, item.shape, reason)
        return
    base, tuned = (
        _values(item, Source(tensor, item.dtype, scale, buffer))
        for tensor, scale in zip(item.stored, item.scales, strict=True)
    )
    for part in parts_of(item.name, item.shape, config):
        before, after = (_part(values, part, item.shape) for values in (base, tuned))
        for analysis in analyses:
            analysis.add(part.name_in(item.name), before, after)


def _is_too_large(item: Aligned, limit: int) -> bool:
    """Stacks of experts are analysed matrix by matrix, so only a single matrix is too large."""
    return len(item.shape) == 2 and prod(item.shape) > limit


def _values(item: Aligned, source: Source) -> NDArray[np.floating[Any]]:
    """All elements as numbers in the 2-D view: fp64 for fp64, else fp32, which holds the rest."""
    dtype = np.float64 if item.dtype.num_bytes == 8 else np.float32
    values = np.empty((num_rows(item.shape), num_columns(item.shape)), dtype)
    for chunk in chunks_of(item.shape):
        rows = slice(chunk.row, chunk.row + chunk.num_rows)
        columns = slice(chunk.column, chunk.column + chunk.num_columns)
        values[rows, columns] = item.dtype.decode(source.read(chunk))
    return values


def _part(
    values: NDArray[np.floating[Any]], part: TensorPart, shape: tuple[int, ...]
) -> NDArray[np.floating[Any]]:
    """A part in the shape of its matrices: `[n]`, `[rows, columns]` or a stack of those."""
    blocks = [
        values[r.row_start : r.row_stop, r.column_start : r.column_stop] for r in part.rectangles
    ]
    if len(shape) < 2:
        return np.concatenate([block.reshape(-1) for block in blocks])
    if len(shape) == 3:
        whole = len(blocks) == 1
        return blocks[0].reshape(shape) if whole else np.stack(blocks)
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
