"""Write a checkpoint again with some of its elements set to zero, and nothing else changed.

Every file of weights keeps its name, its header and the place of each tensor in it; a tensor is
copied a million elements at a time. The files beside the weights are copied.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from trimtab.checkpoints import Checkpoint, DataFile, StoredTensor
from trimtab.checkpoints.folder import ADAPTER, FILES
from trimtab.checkpoints.hub import fetch_the_rest
from trimtab.checkpoints.stream import Progress
from trimtab.errors import CheckpointError
from trimtab.masks.mask import Mask
from trimtab.masks.packed import unpacked
from trimtab.masks.pruning.survivors import is_zero
from trimtab.masks.selection.weights import elements_of
from trimtab.words import first_few

__all__ = ["ZeroCount", "folder_of", "write_zeroed"]


@dataclass(frozen=True)
class ZeroCount:
    """Zeros of a tensor, or of several; addable.

    Attributes:
        num_elements: Its elements.
        num_before: Those that were 0, of either sign.
        num_after: Those that are 0 now.
    """

    num_elements: int = 0
    num_before: int = 0
    num_after: int = 0

    def __add__(self, other: ZeroCount) -> ZeroCount:
        return ZeroCount(
            self.num_elements + other.num_elements,
            self.num_before + other.num_before,
            self.num_after + other.num_after,
        )


def folder_of(base: Checkpoint, ref: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint, with the files beside its weights.

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
    return base.folder


def write_zeroed(
    base: Checkpoint,
    kept: Mask,
    source: Path,
    target: Path,
    *,
    progress: Progress | None = None,
) -> tuple[dict[str, ZeroCount], dict[str, str]]:
    """Write a checkpoint with every element set to +0 that a mask has and does not select.

    Args:
        base: An open checkpoint of safetensors files.
        kept: What keeps its bits; so does every tensor that the mask does not have.
        source: Its folder.
        target: An existing folder.
        progress: Called after each tensor.

    Returns:
        Name -> zeros, and name -> xxh3-128 of the bytes in base, of every tensor.
    """
    for path in sorted(source.iterdir()):
        if path.name not in ADAPTER and any(fnmatch(path.name, pattern) for pattern in FILES):
            shutil.copyfile(path, target / path.name)
    counts, digests = {}, {}
    total = sum(tensor.num_bytes for tensor in base.tensors.values())
    shards: dict[DataFile, list[StoredTensor]] = {}
    for tensor in base.tensors.values():
        shards.setdefault(tensor.file, []).append(tensor)
    for shard, tensors in shards.items():
        copy = target / shard.path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with copy.open("xb") as file:
            file.write(shard.read(0, 8 + int.from_bytes(shard.read(0, 8), "little")))
            for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.num_bytes)):
                counts[tensor.name], digests[tensor.name] = _write(tensor, kept, file)
                if progress is not None:
                    progress(tensor.num_bytes, total)
    return counts, digests


def _write(tensor: StoredTensor, kept: Mask, file: BinaryIO) -> tuple[ZeroCount, str]:
    packed = kept.packed(tensor.name) if tensor.name in kept else None
    before = after = start = 0
    hasher = xxhash.xxh3_128()
    for bits in elements_of(tensor):
        stop = start + len(bits)
        hasher.update(bits.data)
        before += int(np.count_nonzero(is_zero(bits, tensor.dtype)))
        if packed is not None:
            bits[~unpacked(packed, start, stop)] = 0
        after += int(np.count_nonzero(is_zero(bits, tensor.dtype)))
        file.write(bits.data)
        start = stop
    return ZeroCount(tensor.num_elements, before, after), hasher.hexdigest()
