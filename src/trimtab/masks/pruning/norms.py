"""How large the inputs of each matrix are: the statistics that Wanda's scores need.

A safetensors file with one vector for each matrix, under the name of the matrix: element `j` is the
L2 norm of the input feature `j` over all tokens that were read. Only its proportions within a
vector matter. Any program can write one; what `trimtab prune` measures says in the metadata how.
A file is a claim by a stranger: all of it is checked before anything is pruned by it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints import Checkpoint, StoredTensor
from trimtab.checkpoints.safetensors import read_with_metadata
from trimtab.checkpoints.tensors import DataFile, FilePool
from trimtab.errors import CheckpointError, MaskError, MaskMismatchError
from trimtab.inputs import parse_json
from trimtab.outputs import new_file
from trimtab.words import first_few, one_line

__all__ = ["FORMAT", "FORMAT_VERSION", "InputNorms"]

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
        with closing(FilePool()) as pool:
            try:
                stored, metadata = read_with_metadata(DataFile(Path(path), pool))
                provenance = _provenance(metadata)
                if wrong := [problem for tensor in stored if (problem := _shape_problem(tensor))]:
                    raise MaskError(f"no input norms: {first_few(wrong)}")
                vectors = {of.name: of.dtype.decode(of.read()) for of in stored}
            except CheckpointError as error:
                raise MaskError(str(error)) from None
            except MaskError as error:
                raise MaskError(f"{os.fspath(path)}: {error}") from None
        wrong = [f"{name} {problem}" for name, v in vectors.items() if (problem := _problem(v))]
        if wrong:
            raise MaskError(
                f"{os.fspath(path)}: input norms are finite and at least 0: {first_few(wrong)}"
            )
        return cls({name: v.astype(np.float32) for name, v in vectors.items()}, provenance)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write a file, whole or not at all.

        Raises:
            OutputExistsError: It exists and `force` is not set, or the path is a folder.
        """
        header: dict[str, Any] = {
            "__metadata__": {
                "format": FORMAT,
                "format_version": str(FORMAT_VERSION),
                "provenance": json.dumps(dict(self.provenance), allow_nan=False),
            }
        }
        end = 0
        for name, vector in self.vectors.items():
            begin, end = end, end + 4 * len(vector)
            header[name] = {"dtype": "F32", "shape": [len(vector)], "data_offsets": [begin, end]}
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        with new_file(path, force=force) as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
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
