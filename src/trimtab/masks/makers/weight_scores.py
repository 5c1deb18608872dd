"""Scores that follow from the weights of a base alone: a few passes over it, and no data.

Scores of single weights are looked up in a table: bf16 has only 65,536 values. The simplest are
-|w|,
|w| and 0. In bf16 a step moves a weight only if it is at least about |w| / 512, so low magnitude
predicts much of what will change, whatever is learned: it is the control of every predictor.

Source: arXiv 2511.08567 (low-magnitude mask, sec. 4 and Table 4); 2602.03839 (absorption).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.quantized import refuse_quantized
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.checkpoints.weights import elements_of, read_weights
from trimtab.elements.dtypes import Bits, DType
from trimtab.errors import MaskError
from trimtab.masks.header import BaseTensor
from trimtab.masks.matching import base_tensors
from trimtab.words import first_few

Function = Callable[[Bits, DType], NDArray[Any]]
"""Maps elements, given as bits, to values."""


class WeightScores(ABC):
    """Scores of the float tensors of a base, which must not contain NaN.

    Attributes:
        shapes: Name -> shape of each tensor.
        base: The base tensors.
    """

    def __init__(
        self,
        base: Checkpoint,
        names: Iterable[str] | None = None,
        *,
        finite: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Read base once, to hash it and to check its weights.

        Args:
            base: An open checkpoint, which must stay open.
            names: Names of its tensors; by default all that are stored as floats.
            finite: Refuse infinite weights too.
            progress: Called after each chunk, from any thread.

        Raises:
            MaskError: A weight is NaN.
            CheckpointError: Weights are quantised.
        """
        chosen = list(base.tensors if names is None else names)
        chosen = [name for name in chosen if base.tensors[name].dtype.is_float]
        needed = base.tensors if names is None else chosen
        refuse_quantized(base.tensors, base.config, needed, base.id)
        count = partial(_num_wrong, finite)
        wrong, digests = read_weights(base, chosen, count, progress=progress)
        if problems := [f"{name} has {num:,}" for name, num in wrong.items() if num]:
            raise MaskError(
                f"{base.id}: weights that are NaN{' or infinite' if finite else ''} have no place "
                f"in an order: {first_few(problems)}"
            )
        self._checkpoint = base
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: base.tensors[name].shape for name in chosen
        }
        self.base: Mapping[str, BaseTensor] = base_tensors(base, digests)

    @abstractmethod
    def chunks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """As in `trimtab.masks.selection.scores.Scores`."""


class Lookup:
    """A function of single weights, tabulated for dtypes of up to 16 bits."""

    def __init__(self, function: Function) -> None:
        """Wrap a function of bits and their dtype, applied element by element."""
        self._function = function
        self._tables: dict[DType, NDArray[Any]] = {}

    def __call__(self, bits: Bits, dtype: DType) -> NDArray[Any]:
        """Its values for some elements. Thread-safe."""
        if dtype.num_bytes > 2:
            return self._function(bits, dtype)
        if dtype not in self._tables:
            every = np.arange(1 << 8 * dtype.num_bytes).astype(dtype.bits)
            self._tables[dtype] = self._function(every, dtype)
        return self._tables[dtype][bits]


class ElementScores(WeightScores):
    """Scores that depend on one weight each."""

    def __init__(
        self,
        function: Function,
        base: Checkpoint,
        names: Iterable[str] | None = None,
        *,
        progress: Progress | None = None,
    ) -> None:
        """As for `WeightScores`; `function` returns the score of a weight."""
        super().__init__(base, names, progress=progress)
        self._scores = Lookup(lambda bits, dtype: _fp32(function(bits, dtype)))

    def chunks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """As in `trimtab.masks.selection.scores.Scores`."""
        tensor = self._checkpoint.tensors[name]
        return (self._scores(bits, tensor.dtype) for bits in elements_of(tensor))


def _fp32(scores: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    # Overflow to infinity keeps the order; NaN occurs only in tables, not in weights.
    with np.errstate(over="ignore", invalid="ignore"):
        return scores.astype(np.float32)


def _num_wrong(finite: bool, tensor: StoredTensor, chunks: Iterator[tuple[int, Bits]]) -> int:
    """Elements that are NaN, or also infinite."""
    dtype = tensor.dtype
    if not finite:
        return sum(int(np.count_nonzero(dtype.is_nan(bits))) for _, bits in chunks)
    return sum(int(np.count_nonzero(~np.isfinite(dtype.decode(bits)))) for _, bits in chunks)


def low_magnitude_scores(
    base: Checkpoint, names: Iterable[str] | None = None, *, progress: Progress | None = None
) -> ElementScores:
    """-|w|: the smallest weights first. Arguments as for `WeightScores`."""
    return ElementScores(
        lambda bits, dtype: -_magnitude(bits, dtype), base, names, progress=progress
    )


def high_magnitude_scores(
    base: Checkpoint, names: Iterable[str] | None = None, *, progress: Progress | None = None
) -> ElementScores:
    """|w|: the largest weights first. Arguments as for `WeightScores`."""
    return ElementScores(_magnitude, base, names, progress=progress)


def no_preference(
    base: Checkpoint, names: Iterable[str] | None = None, *, progress: Progress | None = None
) -> ElementScores:
    """0: a random selection, regardless of weights. Arguments as for `WeightScores`."""
    return ElementScores(lambda bits, dtype: np.zeros(bits.shape), base, names, progress=progress)


def _magnitude(bits: Bits, dtype: DType) -> NDArray[np.float64]:
    return np.abs(dtype.decode(bits))
