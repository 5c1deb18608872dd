"""Scores: a number for every element of a model; the highest are selected first.

Predictors of masks produce scores, from which `select` makes a mask of any size. Scores are fp32,
four
bytes an element, so they are computed or read a million at a time, as often as needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.safetensors import file_start
from trimtab.checkpoints.tensors import Pooled
from trimtab.checkpoints.weights import CHUNK_ELEMENTS, elements_of
from trimtab.errors import MaskError
from trimtab.inputs import parse_json
from trimtab.masks.header import BaseTensor, check_format, opened_tensors
from trimtab.outputs import new_file
from trimtab.results.records import made_now
from trimtab.words import first_few

FORMAT = "trimtab.scores"
FORMAT_VERSION = 1
"""History: 1, the first."""


class Scores(Protocol):
    """A number for every element of some tensors; NaN is refused."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape of each tensor."""

    @property
    def base(self) -> Mapping[str, BaseTensor]:
        """The tensors that the scores are of; may be incomplete."""

    def chunks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """The scores of a tensor, flat in C order, `weights.CHUNK_ELEMENTS` at a time.

        The last chunk is shorter. May be called repeatedly.
        """


def in_chunks(parts: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Regroup flat parts of any size into the chunks of `Scores`."""
    waiting = np.zeros(0, dtype=np.float32)
    for part in parts:
        waiting = np.concatenate((waiting, part)) if len(waiting) else part
        whole = len(waiting) - len(waiting) % CHUNK_ELEMENTS
        for start in range(0, whole, CHUNK_ELEMENTS):
            yield waiting[start : start + CHUNK_ELEMENTS]
        waiting = waiting[whole:]
    if len(waiting):
        yield waiting


class ArrayScores:
    """Scores held in memory."""

    def __init__(
        self,
        arrays: Mapping[str, NDArray[np.floating[Any]]],
        base: Mapping[str, BaseTensor] | None = None,
    ) -> None:
        """Store arrays of any floating dtype, which are rounded to fp32."""
        self._arrays = arrays
        self.shapes = {name: array.shape for name, array in arrays.items()}
        self.base = dict(base or {})

    def chunks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """As in `Scores`."""
        flat = self._arrays[name].reshape(-1)
        return (
            flat[start : start + CHUNK_ELEMENTS].astype(np.float32)
            for start in range(0, flat.size, CHUNK_ELEMENTS)
        )


def write_scores(
    path: str | os.PathLike[str],
    scores: Scores,
    *,
    provenance: Mapping[str, Any],
    force: bool = False,
) -> None:
    """Write scores to a file, a chunk at a time, whole or not at all.

    Args:
        path: The file, by convention `….safetensors`; missing parent folders are created.
        scores: The scores.
        provenance: How they were made; plain data.
        force: Replace an existing file.

    Raises:
        MaskError: A score is NaN.
        OutputExistsError: The file exists and `force` is not set, or the path is a folder.
    """
    start = file_start(
        {name: ("F32", shape) for name, shape in scores.shapes.items()},
        {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "base": json.dumps({name: base._asdict() for name, base in scores.base.items()}),
            "provenance": json.dumps(made_now(**provenance), allow_nan=False),
        },
    )
    with new_file(path, force=force) as file:
        file.write(start)
        for name in scores.shapes:
            for chunk in scores.chunks(name):
                if np.isnan(chunk).any():
                    raise MaskError(
                        f"the scores of {name} hold NaN, which has no place in an order"
                    )
                file.write(chunk.astype("<f4", copy=False).data)


class ScoreFile(Pooled):
    """Scores in a file, which stay on disk. Use it as a context manager, or call `close`.

    Attributes:
        shapes: Name -> shape of each tensor.
        base: The tensors that the scores are of; may be incomplete.
        provenance: How they were made, according to the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a file; only its header is read.

        Raises:
            MaskError: It is not a file of scores, or a damaged one.
        """
        with opened_tensors(path) as (self._pool, stored, metadata):
            self._tensors = {tensor.name: tensor for tensor in stored}
            self.provenance, self.base = _metadata(metadata)
            wrong = [
                *(
                    f"{tensor.name} is {tensor.dtype.name}, expected F32"
                    for tensor in stored
                    if tensor.dtype.name != "F32"
                ),
                *(
                    f"{name} has a base and no scores"
                    for name in self.base
                    if name not in self._tensors
                ),
                *(
                    f"{name} has a base whose digest is not 32 hexadecimal digits"
                    for name, tensor_base in self.base.items()
                    if not tensor_base.has_digest
                ),
            ]
            if wrong:
                raise MaskError(f"damaged file of scores: {first_few(wrong, '; ')}")
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def chunks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """As in `Scores`."""
        return (bits.view(np.float32) for bits in elements_of(self._tensors[name]))


def _metadata(metadata: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, BaseTensor]]:
    source = "`trimtab mask make … --scores`"
    check_format(metadata, FORMAT, FORMAT_VERSION, "a file of scores", source)
    try:
        provenance, base = (
            parse_json(metadata[key], strict=True) for key in ("provenance", "base")
        )
        return dict(provenance.items()), {
            name: BaseTensor(dtype=str(entry["dtype"]), digest=str(entry["digest"]))
            for name, entry in base.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MaskError(f"damaged file of scores: {error!r}") from None
