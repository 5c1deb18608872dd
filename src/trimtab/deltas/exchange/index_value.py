"""Changed elements as indices and values, in one safetensors file.

For each tensor that changed, `NAME.indices` has the positions of its changed elements in C order,
ascending (int32, or int64 where the tensor has more elements), and `NAME.values` their values in
the tensor's dtype. That is what a sparse update of vLLM, verl or AReaL takes. `__metadata__` has
xxh3-128 of the tuned tensor's bytes as `NAME.xxh3-128`; files of others may lack it, and are then
only as good as the base that they are given.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.safetensors import file_start
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.deltas.exchange.payloads import (
    CHUNK_POSITIONS,
    Bytes,
    Exported,
    OpenDelta,
    change_of,
    check_digest,
    ensure_same_tensors,
    pairs_of,
    pool_of_delta,
    read_file,
)
from trimtab.elements.dtypes import DTYPES, Bits, DType
from trimtab.errors import DeltaError
from trimtab.outputs import new_file
from trimtab.words import first_few

INDICES, VALUES, DIGEST = ".indices", ".values", ".xxh3-128"


def write_index_value(
    base: Checkpoint,
    tuned: Checkpoint,
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a tuned checkpoint as indices and values.

    Args:
        base: The base, opened.
        tuned: The tuned checkpoint, opened: the same names, dtypes and shapes.
        path: The file to write.
        force: Replace an existing file.
        progress: Called after each tensor.

    Raises:
        TensorMismatchError: The two do not have the same tensors.
        OutputExistsError: The file exists and `force` is not set.
    """
    ensure_same_tensors(base, tuned, "indices and values")
    total = sum(tensor.num_bytes for tensor in base.tensors.values())
    entries: list[tuple[DType, int, StoredTensor, bool]] = []
    metadata: dict[str, str] = {}
    for name, tensor in base.tensors.items():
        new = tuned.tensors[name]
        digest, num_changed = change_of(tensor, new, xxhash.xxh3_128, in_bytes=False)
        if num_changed:
            index = DTYPES["I32" if tensor.num_elements <= 1 << 31 else "I64"]
            entries.append((index, num_changed, tensor, True))
            entries.append((tensor.dtype, num_changed, tensor, False))
            metadata[name + DIGEST] = digest
        if progress is not None:
            progress(tensor.num_bytes, total)
    # Wide elements first, so that each tensor lies at a multiple of its element's size.
    entries.sort(key=lambda entry: -entry[0].num_bytes)
    start = file_start(
        {
            tensor.name + (INDICES if is_index else VALUES): (dtype.name, (num,))
            for dtype, num, tensor, is_index in entries
        },
        metadata,
    )
    with new_file(path, force=force) as file:
        file.write(start)
        for dtype, _, tensor, is_index in entries:
            for piece in _pieces(tensor, tuned.tensors[tensor.name], dtype if is_index else None):
                file.write(piece.data)
        num_bytes = file.tell()
    return Exported(len(base.tensors), len(metadata), num_bytes)


def _pieces(base: StoredTensor, tuned: StoredTensor, index: DType | None) -> Iterator[Bytes]:
    """Indices of the changed elements in a dtype, or their values if it is None."""
    for start, ours, theirs in pairs_of(base, tuned):
        where = np.flatnonzero(ours != theirs)
        values = theirs[where] if index is None else (where + start).astype(index.storage)
        yield values.view(np.uint8)


def open_index_value(base: Checkpoint, path: str | os.PathLike[str]) -> OpenDelta:
    """Open a file of indices and values: its header is read and checked, and no tensor.

    Args:
        base: The base, opened.
        path: The file.

    Raises:
        DeltaError: It is not such a file, or does not fit the base.
    """
    path = Path(path)
    with pool_of_delta() as pool:
        tensors, metadata = read_file(path, pool)
        names = [name.removesuffix(INDICES) for name in tensors if name.endswith(INDICES)]
        pairs = {
            name: (tensors[name + INDICES], tensors.get(name + VALUES, tensors[name + INDICES]))
            for name in names
        }
        problems = [
            problem for name, pair in pairs.items() if (problem := _problem_of(base, name, *pair))
        ]
        expected = {name + end for name in names for end in (INDICES, VALUES)}
        if alone := sorted(tensors.keys() ^ expected):
            problems.append(
                f"{first_few(alone)}: expected NAME{INDICES} and NAME{VALUES} of each tensor"
            )
        if problems:
            raise DeltaError(f"{path}: {first_few(problems, '; ')}")

        def tuned(name: str) -> Bits:
            bits = base.tensors[name].read()
            _put(path, bits.reshape(-1), *pairs[name])
            if (digest := metadata.get(name + DIGEST)) is not None:
                check_digest(bits, digest, xxhash.xxh3_128, path, name)
            return bits

        unchecked = tuple(name for name in names if name + DIGEST not in metadata)
        return OpenDelta(path, tuple(names), tuned, pool, unchecked=unchecked)


def _problem_of(
    base: Checkpoint, name: str, indices: StoredTensor, values: StoredTensor
) -> str | None:
    """What is wrong with the entries of a tensor, by the header."""
    tensor = base.tensors.get(name)
    if tensor is None:
        return f"{name} is not a tensor of {base.id}"
    if indices.dtype.name not in ("I32", "I64") or len(indices.shape) != 1:
        return (
            f"{indices.name} is {indices.dtype.name} {list(indices.shape)}, expected a vector of "
            "I32 or I64"
        )
    if values is indices:
        return None  # a missing one is reported with all such names
    if values.dtype != tensor.dtype or values.shape != indices.shape:
        return (
            f"{values.name} is {values.dtype.name} {list(values.shape)}, expected "
            f"{tensor.dtype.name} {list(indices.shape)}"
        )
    if indices.num_elements > tensor.num_elements:
        return (
            f"{indices.name} has {indices.num_elements} indices, and the tensor has "
            f"{tensor.num_elements} elements"
        )
    return None


def _put(path: Path, bits: Bits, indices: StoredTensor, values: StoredTensor) -> None:
    """Write values to elements, a chunk at a time."""
    previous = -1
    for start in range(0, indices.num_elements, CHUNK_POSITIONS):
        num = min(CHUNK_POSITIONS, indices.num_elements - start)
        stored = np.empty(num, dtype=indices.dtype.storage)
        indices.read_into(start * stored.itemsize, stored.view(np.uint8))
        where = stored.astype(np.int64)
        if where[0] <= previous or np.any(where[1:] <= where[:-1]) or where[-1] >= len(bits):
            raise DeltaError(
                f"{path}: {indices.name}: expected ascending indices from 0 to {len(bits) - 1}"
            )
        new = np.empty(num, dtype=bits.dtype)
        values.read_into(start * new.itemsize, new.view(np.uint8))
        bits[where] = new
        previous = int(where[-1])
