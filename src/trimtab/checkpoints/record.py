"""What a checkpoint was, for the results that were computed from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from trimtab.checkpoints.checkpoint import Checkpoint

__all__ = ["CheckpointRecord", "record_of"]


@dataclass(frozen=True)
class CheckpointRecord:
    """What a checkpoint was, so that a result can be traced to it.

    Attributes:
        id: The path or hub id as the user gave it.
        revision: Commit of the hub repository; None for local files.
        architecture: `architectures[0]` of its config, if it has one.
        num_tensors: Tensors stored.
        num_elements: Elements stored.
        dtypes: safetensors dtype name -> elements stored in it.
        content_hash: xxh3-128 over every tensor's name, dtype, shape and hash, sorted by name.
    """

    id: str
    revision: str | None
    architecture: str | None
    num_tensors: int
    num_elements: int
    dtypes: Mapping[str, int]
    content_hash: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**self.__dict__, "dtypes": dict(self.dtypes)}


def record_of(checkpoint: Checkpoint, hashes: Mapping[str, str]) -> CheckpointRecord:
    """Say what a checkpoint was, with one hash over all its tensors."""
    dtypes: dict[str, int] = {}
    hasher = xxhash.xxh3_128()
    for name, tensor in sorted(checkpoint.tensors.items()):
        dtypes[tensor.dtype.name] = dtypes.get(tensor.dtype.name, 0) + tensor.num_elements
        row = f"{name}\0{tensor.dtype.name}\0{tensor.shape}\0{hashes[name]}\n"
        hasher.update(row.encode())
    return CheckpointRecord(
        id=checkpoint.id,
        revision=checkpoint.revision,
        architecture=checkpoint.architecture,
        num_tensors=len(checkpoint.tensors),
        num_elements=sum(tensor.num_elements for tensor in checkpoint.tensors.values()),
        dtypes=dtypes,
        content_hash=hasher.hexdigest(),
    )
