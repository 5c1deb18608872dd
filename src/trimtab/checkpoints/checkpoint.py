"""Open a checkpoint from a path or the hub: names, shapes and locations of its tensors, no data."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trimtab.checkpoints.architectures import TIED
from trimtab.checkpoints.folder import (
    GGUF_CURE,
    HUB_ID,
    WeightFiles,
    fetch_from_hub,
    find_weights,
    missing_hint,
    read_config,
)
from trimtab.checkpoints.names import tied_names
from trimtab.checkpoints.quantized import quantized_weights
from trimtab.checkpoints.safetensors import read_safetensors
from trimtab.checkpoints.tensors import DataFile, FilePool, Pooled, StoredTensor
from trimtab.checkpoints.torch_file import read_torch_file
from trimtab.errors import CheckpointError, CheckpointNotFoundError, CheckpointWarning
from trimtab.words import first_few, one_line, plural

MOST_SHARED = 96
"""Idle files that checkpoints opened together keep open; a process may have 256 or more."""

READERS: Mapping[str, Callable[[DataFile], list[StoredTensor]]] = {
    ".safetensors": read_safetensors,
    ".bin": read_torch_file,
}


class Checkpoint(Pooled):
    """An open checkpoint: its tensors stay on disk until they are read.

    Use it as a context manager, or call `close`.

    Attributes:
        id: The path or hub id as the user gave it.
        revision: Commit of the hub repository; None for local files.
        config: `config.json`, or empty if there is none.
        architecture: `architectures[0]` of the config, if it has one.
        tensors: Name -> tensor, shard after shard and by offset in each.
        tied: Names that repeat a stored tensor without being stored -> that tensor's name.
        folder: Where the files are.
        notes: Remarks on which weights were read.
    """

    def __init__(
        self,
        id: str,
        revision: str | None,
        config: Mapping[str, Any],
        tensors: Mapping[str, StoredTensor],
        tied: Mapping[str, str],
        pool: FilePool,
        *,
        folder: Path,
        notes: Sequence[str] = (),
    ) -> None:
        self.id = id
        self.revision = revision
        self.config = MappingProxyType(dict(config))
        architectures = config.get("architectures")
        self.architecture = (
            str(architectures[0]) if isinstance(architectures, list) and architectures else None
        )
        self.tensors = MappingProxyType(dict(tensors))
        self.tied = MappingProxyType(dict(tied))
        self.folder = folder
        self.notes = tuple(notes)
        self._pool = pool

    def __repr__(self) -> str:
        return one_line(self, f"{self.id}, {plural(len(self.tensors), 'tensor')}")


def open_checkpoint(ref: str | os.PathLike[str], *, pool: FilePool | None = None) -> Checkpoint:
    """Open a checkpoint; only headers are read.

    Args:
        ref: A folder, a `.safetensors` or `.bin` file, or a hub id `org/name` with an optional
            `@revision`. An existing path takes precedence over a hub id. Files of the hub are
            downloaded into its cache, or used from there.
        pool: Keeps its files open; by default a new one. Closing the checkpoint closes it.

    Raises:
        CheckpointNotFoundError: The path, hub id or revision does not exist, or there is no
            network.
        CheckpointError: It is not a checkpoint that can be read.

    Warns:
        CheckpointWarning: Its folder contains other weights too, or it stores packed integers.
    """
    try:
        path, revision = _locate(ref)
        folder = path if path.is_dir() else path.parent
        config = read_config(folder)
        weights = find_weights(path, config) if path.is_dir() else WeightFiles(folder, (path,))
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{ref}: cannot be read ({error.strerror})") from error
    pool = pool or FilePool()
    try:
        tensors = _read_headers(weights, pool)
        tied = {**tied_names(tensors, config), **_shared(tensors)}
        stored = {name: tensor for name, tensor in tensors.items() if name not in tied}
        notes = (*weights.notes, *_packed_note(stored, config))
        for note in notes:
            warnings.warn(f"{os.fspath(ref)}: {note}", CheckpointWarning, stacklevel=2)
    except BaseException:  # a warning too, where warnings are errors
        pool.close()
        raise
    return Checkpoint(
        os.fspath(ref), revision, config, stored, tied, pool, folder=folder, notes=notes
    )


@contextmanager
def opened(*refs: str | os.PathLike[str] | Checkpoint) -> Iterator[tuple[Checkpoint, ...]]:
    """Open those that are not open yet, for the duration of the context.

    They share one pool of open files, so a long series needs no more of them than a pair.

    Raises:
        CheckpointError: One cannot be read; see `open_checkpoint`.
    """
    pool = FilePool(MOST_SHARED)
    with ExitStack() as stack:
        yield tuple(
            ref
            if isinstance(ref, Checkpoint)
            else stack.enter_context(open_checkpoint(ref, pool=pool))
            for ref in refs
        )


def _locate(ref: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Local path of a checkpoint, and its commit if it came from the hub."""
    path = Path(ref)
    if path.exists():
        return path, None
    match = HUB_ID.fullmatch(ref) if isinstance(ref, str) else None
    if match is None or path.suffix in READERS:
        raise CheckpointNotFoundError(
            f"{ref}: no such file or folder{missing_hint(os.fspath(ref))}"
        )
    return fetch_from_hub(match["repository"], match["revision"])


def _read_headers(weights: WeightFiles, pool: FilePool) -> dict[str, StoredTensor]:
    """Tensors of all files by name; problems of all files are raised together."""
    tensors: dict[str, StoredTensor] = {}
    problems: list[str] = []
    for path in weights.paths:
        try:
            file = DataFile(path, pool)
            in_file = {tensor.name: tensor for tensor in _read_header(file)}
            file.check()
        except CheckpointNotFoundError:
            problems.append(f"{path}: the shard is missing")
            continue
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if absent := sorted(weights.listed(path) - in_file.keys()):
            problems.append(f"{path}: lacks {first_few(absent)}, which the index says it holds")
        if twice := sorted(in_file.keys() & tensors.keys()):
            problems.append(f"{path}: holds {first_few(twice)}, which another shard holds too")
        tensors.update(in_file)
    if problems:
        raise CheckpointError(first_few(problems, "; "))
    return tensors


def _read_header(file: DataFile) -> list[StoredTensor]:
    start = file.read(0, 64)
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{file.path}: a git-LFS pointer instead of the weights: run `git lfs pull`"
        )
    if start.startswith(b"GGUF"):
        raise CheckpointError(f"{file.path}: {GGUF_CURE}")
    reader = READERS.get(file.path.suffix)
    if reader is None:
        raise CheckpointError(f"{file.path}: expected a file ending in {' or '.join(READERS)}")
    return reader(file)


def _packed_note(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> list[str]:
    """The note on weights that are packed into integers."""
    quantized = quantized_weights(tensors, config)
    packed = [name for name in quantized if not tensors[name].dtype.is_float]
    if not packed:
        return []
    return [f"it is quantised: weights are made from the integers in {first_few(packed)}"]


def _shared(tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Tensors that share their bytes with another, as torch.save stores tied ones."""
    first: dict[tuple[Any, ...], str] = {}
    shared = {}
    # The embedding is the original, whichever of the two was saved first.
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.name in TIED.values()):
        location = (tensor.file, tensor.offset, tensor.dtype, tensor.shape)
        original = first.setdefault(location, tensor.name)
        if original != tensor.name and tensor.num_elements:
            shared[tensor.name] = original
    return shared
