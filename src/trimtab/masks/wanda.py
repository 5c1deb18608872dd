"""Wanda: keep, in each output row, the weights that affect the output most.

The score of a weight is its magnitude times the norm of its input feature, |w_ij| · ‖x_j‖, compared
within the row: each output loses the same share of its inputs. Input norms are a safetensors file
with
a vector for each matrix, under the matrix's name: element `j` is the L2 norm of input feature `j`
over
all tokens; only proportions within a vector matter. Any program may write one; all of it is
checked.

Source:
    Sun, Liu, Bair and Kolter 2024 (arXiv 2306.11695), sec. 3 and algorithm 1. Of equal scores the
    first in the row is pruned, as with the stable sort of their code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from reprlib import repr as short
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.safetensors import file_start
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.checkpoints.weights import read_weights
from trimtab.elements.dtypes import Bits
from trimtab.errors import CheckpointError, MaskError, MaskMismatchError
from trimtab.inputs import parse_json
from trimtab.masks.header import opened_tensors, provenance_of
from trimtab.masks.mask import Mask
from trimtab.masks.matching import base_tensors
from trimtab.masks.packed import PackedTensor
from trimtab.outputs import new_file
from trimtab.words import first_few, one_line

FORMAT = "trimtab.input_norms"
FORMAT_VERSION = 1
"""History: 1, the first."""

FLOATS = ("F32", "F64", "BF16", "F16")


@dataclass(frozen=True, eq=False)
class InputNorms:
    """Norms of the inputs of some matrices.

    Attributes:
        vectors: Name of a matrix -> fp32 `[inputs]`, finite and not negative.
        provenance: How they were measured; empty if it is not known.
    """

    vectors: Mapping[str, NDArray[np.float32]]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    __repr__ = one_line

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> InputNorms:
        """Read a file.

        Raises:
            MaskError: It is none, or has numbers that no norm can be; all problems at once.
        """
        with opened_tensors(path) as (pool, stored, metadata), closing(pool):
            provenance = _provenance(metadata)
            if wrong := [problem for tensor in stored if (problem := _shape_problem(tensor))]:
                raise MaskError(f"no input norms: {first_few(wrong)}")
            vectors = {tensor.name: tensor.dtype.decode(tensor.read()) for tensor in stored}
            if wrong := [f"{name} {why}" for name, v in vectors.items() if (why := _problem(v))]:
                raise MaskError(f"input norms are finite and at least 0: {first_few(wrong)}")
        return cls({name: v.astype(np.float32) for name, v in vectors.items()}, provenance)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write a file, whole or not at all.

        Raises:
            OutputExistsError: It exists and `force` is not set, or the path is a folder.
        """
        start = file_start(
            {name: ("F32", vector.shape) for name, vector in self.vectors.items()},
            {
                "format": FORMAT,
                "format_version": str(FORMAT_VERSION),
                "provenance": json.dumps(dict(self.provenance), allow_nan=False),
            },
        )
        with new_file(path, force=force) as file:
            file.write(start)
            for vector in self.vectors.values():
                file.write(vector.astype("<f4").data)

    def check(self, base: Checkpoint, matrices: Sequence[StoredTensor]) -> None:
        """Check that they are those of a model, and that nothing to be pruned lacks them.

        Args:
            base: The model.
            matrices: Those to be pruned.

        Raises:
            MaskMismatchError: They are not; the message names all matrices, up to a handful.
        """
        problems = [f"{name} is not in it" for name in self.vectors if name not in base.tensors]
        for name, vector in self.vectors.items():
            shape = base.tensors[name].shape if name in base.tensors else None
            if shape is not None and shape[-1:] != vector.shape:
                problems.append(f"{name} has shape {shape}, and norms of {len(vector)} inputs")
        problems += [f"{t.name} has none" for t in matrices if t.name not in self.vectors]
        if problems:
            raise MaskMismatchError(
                f"the input norms are not those of {base.id}: {first_few(problems, '; ')}. Measure "
                "them on this model"
            )


def _provenance(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a file says of itself; nothing, if another program wrote it."""
    format, version = metadata.get("format", FORMAT), metadata.get("format_version")
    if format not in (FORMAT, "pt", "np"):  # the last two are what safetensors itself writes
        raise MaskError(f"expected input norms, of the format {FORMAT!r}; found {short(format)}")
    if version not in (None, str(FORMAT_VERSION)):
        raise MaskError(
            f"input norms of format version {short(version)}; this trimtab reads version "
            f"{FORMAT_VERSION}"
        )
    try:
        provenance = parse_json(metadata.get("provenance", "{}"), strict=True)
    except ValueError as error:
        raise MaskError(f"its provenance is not JSON ({error})") from None
    if not isinstance(provenance, dict):
        raise MaskError("its provenance is no JSON object")
    return provenance


def _shape_problem(tensor: StoredTensor) -> str | None:
    if tensor.dtype.name not in FLOATS:
        return f"{tensor.name} is {tensor.dtype.name}, expected {' or '.join(FLOATS)}"
    if len(tensor.shape) != 1:
        return f"{tensor.name} has shape {tensor.shape}, expected a vector"
    return None


def _problem(vector: NDArray[np.float64]) -> str | None:
    if not np.isfinite(vector).all():
        return "has NaN or infinity"
    if (vector < 0).any():
        return "has negative ones"
    if (vector > np.finfo(np.float32).max).any():
        return "has some beyond the range of fp32"
    return None


TRANSPOSED = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Model types that keep matrices as [inputs, outputs]."""


def kept_by_wanda(
    base: Checkpoint,
    matrices: Sequence[StoredTensor],
    sparsity: float,
    norms: InputNorms,
    *,
    progress: Progress | None = None,
) -> Mask:
    """Select what Wanda keeps.

    Args:
        base: An open checkpoint.
        matrices: Those of its tensors to prune.
        sparsity: Share of each row to prune, rounded to a whole number of its elements.
        norms: Of the inputs of the matrices.
        progress: Called after each chunk, from any thread.

    Raises:
        CheckpointError: A matrix is not stored as [outputs, inputs].
        MaskError: A score is NaN.
        MaskMismatchError: The norms are not those of this model.
    """
    model_type = base.config.get("model_type")
    if model_type in TRANSPOSED:
        raise CheckpointError(
            f"{base.id} ({model_type}) stores its matrices as [inputs, outputs], whose rows are no "
            "outputs: prune it by magnitude"
        )
    if stacked := [f"{t.name} {t.shape}" for t in matrices if len(t.shape) != 2]:
        raise CheckpointError(
            f"{base.id} stores several matrices in one tensor, which see different inputs: "
            f"{first_few(stacked)}. Leave their kind out, or prune by magnitude"
        )
    norms.check(base, matrices)
    names = [matrix.name for matrix in matrices]
    task = partial(_kept, sparsity, norms)
    tensors, digests = read_weights(base, names, task, progress=progress)
    step = {
        "step": "wanda",
        "sparsity": sparsity,
        "base": base.id,
        "norms": dict(norms.provenance),
    }
    return Mask(
        tensors,
        base_tensors(base, digests),
        provenance_of([step]),
    )


def lowest_of_rows(scores: NDArray[np.float32], num: int) -> NDArray[np.bool_]:
    """The lowest elements of each row, exactly so many; of equal ones the first.

    Args:
        scores: `[rows, columns]`, none of them NaN.
        num: Of each row, at most all.
    """
    if num == 0:
        return np.zeros(scores.shape, dtype=np.bool_)
    edge = np.partition(scores, num - 1, axis=1)[:, num - 1 : num]
    below, tied = scores < edge, scores == edge
    room = num - below.sum(axis=1, keepdims=True)
    lowest: NDArray[np.bool_] = below | (tied & (np.cumsum(tied, axis=1) <= room))
    return lowest


def _kept(
    sparsity: float,
    norms: InputNorms,
    tensor: StoredTensor,
    chunks: Iterator[tuple[int, Bits]],
) -> PackedTensor:
    vector = norms.vectors[tensor.name]
    selected = np.empty(tensor.shape, dtype=np.bool_)
    row = 0
    for bits in _whole_rows(chunks, tensor.shape[1]):
        magnitudes = np.abs(tensor.dtype.decode(bits)).astype(np.float32)
        with np.errstate(invalid="ignore"):  # infinity times 0, which is told next
            scores = magnitudes * vector
        if np.isnan(scores).any():
            raise MaskError(f"{tensor.name} has scores that are NaN: its weights are not finite")
        selected[row : row + len(scores)] = ~lowest_of_rows(
            scores, round(sparsity * scores.shape[1])
        )
        row += len(scores)
    return PackedTensor.pack(selected)


def _whole_rows(chunks: Iterator[tuple[int, Bits]], num_columns: int) -> Iterator[Bits]:
    """Elements that come in chunks of any length, as whole rows of a matrix."""
    rest: Bits | None = None
    for _, bits in chunks:
        bits = bits.copy() if rest is None else np.concatenate([rest, bits])
        whole = len(bits) // num_columns * num_columns if num_columns else 0
        rest = bits[whole:]
        yield bits[:whole].reshape(-1, num_columns)
