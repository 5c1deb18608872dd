"""A tuned checkpoint that a delta is made of: in a folder, or decoded from a chain of deltas."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.folder import OTHER_WEIGHTS, is_foreign
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import DataFile, StoredTensor
from trimtab.deltas.manifest import MAX_FILE_BYTES
from trimtab.elements.dtypes import Bits, DType
from trimtab.elements.update_coding import CHUNK
from trimtab.elements.update_fit import InMemory, Readable
from trimtab.errors import CheckpointError
from trimtab.inputs import read_bytes
from trimtab.results.records import CheckpointRecord, record_of
from trimtab.words import first_few

LEFT_OUT = ("*.pt", "*.pth", "*.bin", "*.pkl", "*.safetensors", "*.npz", "*.npy", *OTHER_WEIGHTS)
"""Files that a delta carries only on request: optimizer states, pickles, other weights.

The files of the model's own weights are not meant, and hidden files are never carried.
"""


class TunedTensor(Protocol):
    """A tensor that can be read: a `StoredTensor`, or one that is decoded."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def dtype(self) -> DType:
        """Its dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def num_bytes(self) -> int:
        """Its size."""

    def read(self) -> Bits:
        """Its bits, in its shape."""


def readable(tensor: TunedTensor, most: int = 0) -> Readable:
    """A tensor to be read a chunk at a time: in memory, unless it lies in a file and is larger.

    Args:
        tensor: The tensor.
        most: Most bytes of a tensor of a file that are read at once.
    """
    if isinstance(tensor, StoredTensor) and tensor.num_bytes > most:
        return tensor
    return InMemory(tensor.read())


def chunks_of(tensor: Readable, num_elements: int) -> Iterator[Bits]:
    """All elements of a tensor, as vectors of a chunk each."""
    for start in range(0, num_elements, CHUNK):
        yield tensor.elements(start, min(start + CHUNK, num_elements))


def hash_of_chunks(chunks: Iterable[Bits]) -> str:
    """xxh3-128 of the bytes of a tensor."""
    digest = xxhash.xxh3_128()
    for bits in chunks:
        digest.update(bits.view(np.uint8).data)
    return digest.hexdigest()


def hashes_of(checkpoint: Checkpoint, progress: Progress | None = None) -> dict[str, str]:
    """xxh3-128 of every tensor of an open checkpoint, of which a chunk at a time is in memory.

    Args:
        checkpoint: The checkpoint.
        progress: Called with bytes done and bytes in all.
    """
    num_bytes = sum(tensor.num_bytes for tensor in checkpoint.tensors.values())
    hashes = {}
    for name, tensor in checkpoint.tensors.items():
        hashes[name] = hash_of_chunks(chunks_of(tensor, tensor.num_elements))
        if progress is not None:
            progress(tensor.num_bytes, num_bytes)
    return hashes


@dataclass(frozen=True)
class WeightsFile:
    """A safetensors file of the tuned checkpoint.

    Attributes:
        start: The length of its header, and the header.
        tensors: Names of its tensors, in its order.
    """

    start: bytes
    tensors: tuple[str, ...]


class Weights(NamedTuple):
    """A checkpoint in memory, as the base of a delta.

    Attributes:
        id: What messages and records call it.
        tensors: Name -> tensor.
        tied: Names that repeat a tensor -> its name.
        folder: Where its files beside the weights are, if anywhere.
        architecture: As in `Checkpoint`; likewise `revision` and `notes`.
        revision: None.
        notes: None.
    """

    id: str
    tensors: Mapping[str, TunedTensor]
    tied: Mapping[str, str]
    folder: Path = Path(os.devnull)
    architecture: str | None = None
    revision: str | None = None
    notes: tuple[str, ...] = ()


NOTHING = Weights("nothing", {}, {})
"""The base of a delta that holds a whole checkpoint."""


@dataclass(frozen=True)
class Source:
    """A tuned checkpoint.

    Attributes:
        tensors: Name -> tensor, in the order of the files.
        tied: Names that repeat a stored tensor without being stored -> its name.
        weights: Path in the folder -> safetensors file.
        others: Path in the folder -> reads another file.
        left_out: Names of files that are not carried.
        record: Describes the checkpoint, given the hash of every tensor.
        trained_by_mask: Names of tensors of which only elements of the mask can have changed, that
            a publisher was given; their others are not compared.
    """

    tensors: Mapping[str, TunedTensor]
    tied: Mapping[str, str]
    weights: Mapping[str, WeightsFile]
    others: Mapping[str, Callable[[], bytes]]
    left_out: tuple[str, ...]
    record: Callable[[Mapping[str, str]], CheckpointRecord]
    trained_by_mask: Collection[str] = ()


def source_of(tuned: Checkpoint, carry: Sequence[str] = ()) -> Source:
    """The source in an open checkpoint.

    Args:
        tuned: The checkpoint.
        carry: Patterns of file names to carry although they are among `LEFT_OUT`.

    Raises:
        CheckpointError: It is not stored in safetensors files, or holds no tensors.
    """
    names: dict[DataFile, list[str]] = {}
    for tensor in tuned.tensors.values():
        names.setdefault(tensor.file, []).append(tensor.name)
    weights = {
        file.path.relative_to(tuned.folder).as_posix(): WeightsFile(start_of(file), tuple(tensors))
        for file, tensors in names.items()
        if file.path.suffix == ".safetensors"
    }
    if len(weights) < len(names):
        odd = [file.path.name for file in names if file.path.suffix != ".safetensors"]
        raise CheckpointError(
            f"{tuned.id} is stored in {first_few(odd)}: expected safetensors; save_pretrained the "
            "model first"
        )
    if not names:
        raise CheckpointError(f"{tuned.id} holds no tensors: expected a tuned model")
    others, left_out = other_files(tuned, weights, carry)
    return Source(
        tensors=tuned.tensors,
        tied=tuned.tied,
        weights=weights,
        others=others,
        left_out=left_out,
        record=lambda hashes: record_of(tuned, hashes),
    )


def other_files(
    checkpoint: Checkpoint, weights: Collection[str], carry: Sequence[str] = ()
) -> tuple[dict[str, Callable[[], bytes]], tuple[str, ...]]:
    """The files beside the weights that a delta carries, and the names of those that it does not.

    Args:
        checkpoint: An open checkpoint; one that is a single file has no others.
        weights: Names of its files of weights.
        carry: Patterns of file names to carry although they are among `LEFT_OUT`.
    """
    if isinstance(carry, str):
        carry = [carry]
    others: dict[str, Callable[[], bytes]] = {}
    left_out = []
    is_folder = not Path(checkpoint.id).is_file()
    for path in sorted(checkpoint.folder.iterdir()) if is_folder else ():
        if path.name in weights or path.name.startswith(".") or not path.is_file():
            continue
        if path.stat().st_size > MAX_FILE_BYTES or not _is_carried(path.name, carry):
            left_out.append(path.name)
        else:
            others[path.name] = _reader(path)
    return others, tuple(left_out)


def start_of(file: DataFile) -> bytes:
    """The length of the header of a safetensors file, and the header."""
    return file.read(0, 8 + int.from_bytes(file.read(0, 8), "little"))


def content_in(base: Checkpoint | Weights, name: str) -> bytes | None:
    """What a base has under the name of a file that holds no weights; None without one."""
    path = base.folder / name
    if is_foreign(name) or not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        return None
    return _reader(path)()


def _is_carried(name: str, carry: Sequence[str]) -> bool:
    if any(fnmatch(name, pattern) for pattern in carry) or name.endswith(".index.json"):
        return True
    return not any(fnmatch(name, pattern) for pattern in LEFT_OUT)


def _reader(path: Path) -> Callable[[], bytes]:
    return lambda: read_bytes(path, CheckpointError, limit=MAX_FILE_BYTES)
