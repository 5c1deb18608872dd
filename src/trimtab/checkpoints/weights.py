"""Read the weights of one checkpoint flat, in C order, chunk by chunk; and write them changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

import numpy as np
import xxhash

from trimtab.checkpoints.align import Aligned, alone
from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.folder import ADAPTER, FILES, fetch_the_rest
from trimtab.checkpoints.stream import Progress, Reader, stream
from trimtab.checkpoints.tensors import DataFile, StoredTensor
from trimtab.elements.dtypes import Bits
from trimtab.errors import CheckpointError
from trimtab.words import first_few

CHUNK_ELEMENTS = 1 << 20
"""Elements that `elements_of` yields at once; a multiple of 8."""

Result = TypeVar("Result")


def read_weights(
    base: Checkpoint,
    names: Iterable[str],
    task: Callable[[StoredTensor, Iterator[tuple[int, Bits]]], Result],
    *,
    num_passes: int = 1,
    progress: Progress | None = None,
) -> tuple[dict[str, Result], dict[str, str]]:
    """Read tensors of a checkpoint once, on several threads.

    Args:
        base: An open checkpoint.
        names: Names of the tensors.
        task: Called in any thread with a tensor and an iterator of `(start, elements)`: a position
            that is a multiple of 8, and the elements from there on, valid until the next pair.
        num_passes: Total number of passes over the tensors, if others read them again.
        progress: Called after each chunk, from any thread.

    Returns:
        Name -> what the task returned, and name -> xxh3-128 of the stored bytes.
    """
    alignment = alone(base, names)
    if not alignment.items:
        return {}, {}

    def one(item: Aligned, reader: Reader) -> Result:
        (tensor,), (source,) = item.stored, reader.sources
        tiles = reader.chunks((tensor.num_elements,))
        return task(tensor, ((tile.column, source.read(tile).ravel()) for tile in tiles))

    done = stream(alignment, one, progress=progress, num_passes=num_passes)
    return {item.name: done.results[item] for item in done.results}, dict(done.hashes[0])


def elements_of(tensor: StoredTensor, start: int = 0, stop: int | None = None) -> Iterator[Bits]:
    """A tensor's elements, `CHUNK_ELEMENTS` at a time, each a new array.

    Args:
        tensor: The tensor.
        start: First element.
        stop: Element after the last; by default all are read.
    """
    stop = tensor.num_elements if stop is None else stop
    for at in range(start, stop, CHUNK_ELEMENTS):
        bits: Bits = np.empty(min(CHUNK_ELEMENTS, stop - at), dtype=tensor.dtype.bits)
        tensor.read_into(at * tensor.dtype.num_bytes, bits.view(np.uint8))
        yield bits


def ensure_rewritable(base: Checkpoint, ref: str | os.PathLike[str]) -> None:
    """Check that `rewrite` can copy a checkpoint, and fetch its other files from the hub.

    Args:
        base: The checkpoint, opened.
        ref: The path or hub id as the user gave it.

    Raises:
        CheckpointError: It is a single file, or not of safetensors.
    """
    files = {tensor.file.path for tensor in base.tensors.values()}
    if others := sorted(str(path.name) for path in files if path.suffix != ".safetensors"):
        raise CheckpointError(
            f"{base.id} is stored in {first_few(others)}: expected safetensors; save_pretrained "
            "the model first"
        )
    if Path(ref).is_file():
        raise CheckpointError(f"{ref}: expected the folder of a model, not a file")
    if base.revision is not None:
        fetch_the_rest(base.id, base.revision)


def copy_other_files(base: Checkpoint, target: Path) -> None:
    """Copy the files beside the weights of a checkpoint: settings, tokenizer, index.

    Args:
        base: An open checkpoint that is a folder.
        target: An existing folder.
    """
    for path in sorted(base.folder.iterdir()):
        if path.name not in ADAPTER and any(fnmatch(path.name, pattern) for pattern in FILES):
            shutil.copyfile(path, target / path.name)


def rewrite(
    base: Checkpoint,
    target: Path,
    change: Callable[[StoredTensor, int, Bits], None],
    *,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Copy a checkpoint with some of its elements changed.

    Every file of weights keeps its name, its header and the offset of each tensor; a tensor is
    copied a million elements at a time. The other files of the folder are copied unchanged.

    Args:
        base: An open checkpoint that is a folder of safetensors files.
        target: An existing folder.
        change: Called with a tensor, a position in it and the elements from there on, to modify in
            place. Called for every element once, in order.
        progress: Called after each tensor.

    Returns:
        Name -> xxh3-128 of the bytes in base, of every tensor.
    """
    copy_other_files(base, target)
    digests = {}
    num_bytes = sum(tensor.num_bytes for tensor in base.tensors.values())
    shards: dict[DataFile, list[StoredTensor]] = {}
    for tensor in base.tensors.values():
        shards.setdefault(tensor.file, []).append(tensor)
    for shard, tensors in shards.items():
        copy = target / shard.path.relative_to(base.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with copy.open("xb") as file:
            file.write(shard.read(0, 8 + int.from_bytes(shard.read(0, 8), "little")))
            for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)):
                hasher = xxhash.xxh3_128()
                start = 0
                for bits in elements_of(tensor):
                    hasher.update(bits.data)
                    change(tensor, start, bits)
                    file.write(bits.data)
                    start += len(bits)
                digests[tensor.name] = hasher.hexdigest()
                if progress is not None:
                    progress(tensor.num_bytes, num_bytes)
    return digests
