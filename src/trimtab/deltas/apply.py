"""Apply deltas: the tuned checkpoint again, every file byte for byte, or nothing."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

import numpy as np
import xxhash

from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.folder import HUB_ID, fetch_the_rest
from trimtab.checkpoints.safetensors import parse_start
from trimtab.checkpoints.stream import Progress
from trimtab.deltas.chain import DecodedTensor, Replay, opened_chain
from trimtab.deltas.file import DeltaFile
from trimtab.deltas.make import write_delta
from trimtab.deltas.manifest import FileEntry, FileHash, Manifest, TensorEntry
from trimtab.deltas.masked import AnyMask
from trimtab.deltas.source import Source, WeightsFile, content_in
from trimtab.deltas.workers import Workers
from trimtab.elements.update_predictor import MAX_RANK
from trimtab.errors import CheckpointError, DeltaError
from trimtab.inputs import AnyPath
from trimtab.outputs import ensure_no_folder, new_folder

COMMIT = re.compile("[0-9a-f]{40}")


def apply_delta(
    base: AnyPath | Checkpoint | None,
    deltas: AnyPath | Sequence[AnyPath],
    output: AnyPath,
    *,
    signers: AnyPath | None = None,
    signature: AnyPath | None = None,
    mask: AnyMask | Sequence[AnyMask] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write the checkpoint that deltas make of a base, byte for byte.

    Every tensor of the base is checked before it is used, and every tensor and file of the result
    before the folder takes its name. Of several deltas, the steps between are not written.

    Args:
        base: The checkpoint that the first delta was made against; None for the hub repository, at
            the commit, that the delta names.
        deltas: One delta file or hub id (`org/name@revision`), or those of a chain in any order.
        output: Folder to make.
        signers: Refuse a delta that is not signed by a key in this file: see `verify_signature`.
        signature: The signature, of a single delta that does not lie beside its own.
        mask: The mask, or masks, over which deltas were coded, unless they lie beside them as
            `mask-DIGEST.safetensors`.
        threads: Tensors or chunks decoded at the same time; by default one for each core.
        progress: Called with bytes done and bytes in all.

    Returns:
        What the last delta says of the result.

    Raises:
        CheckpointError: The base cannot be read.
        DeltaError: It is not the base of the deltas, they are no chain, or one is damaged or not
            signed.
        OutputExistsError: The folder exists.
    """
    ensure_no_folder(output)
    with opened_replay(base, deltas, signers=signers, signature=signature, mask=mask) as replay:
        write_folder(replay, output, threads=threads, progress=progress)
        return replay.manifest


def verify_delta(
    base: AnyPath | Checkpoint | None,
    deltas: AnyPath | Sequence[AnyPath],
    *,
    signers: AnyPath | None = None,
    signature: AnyPath | None = None,
    mask: AnyMask | Sequence[AnyMask] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Decode deltas against a base and check every hash, writing nothing.

    Args and errors are those of `apply_delta`.

    Returns:
        What the last delta says of the result.
    """
    with opened_replay(base, deltas, signers=signers, signature=signature, mask=mask) as replay:
        for file in replay.manifest.files:
            write_file(replay, file, None, threads=threads, progress=progress)
        return replay.manifest


def compact_deltas(
    base: AnyPath | Checkpoint | None,
    deltas: AnyPath | Sequence[AnyPath],
    output: AnyPath,
    *,
    mask: AnyMask | Sequence[AnyMask] | None = None,
    sha256: bool = False,
    max_rank: int = MAX_RANK,
    threads: int | None = None,
    force: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write one delta that does what a chain of deltas does.

    Args:
        base: The checkpoint that the first delta was made against; None for the one on the hub that
            it names.
        deltas: The delta files of the chain, in any order.
        output: The delta file to write.
        mask: As in `apply_delta`. If all deltas are coded over one mask, so is the new one.
        sha256: As in `make_delta`; likewise `max_rank`.
        max_rank: Largest rank of a predictor.
        threads: Tensors or chunks coded at the same time; by default one for each core.
        force: Replace an existing file.
        command: The command to record in the provenance.
        progress: Called with bytes done and bytes in all.

    Returns:
        What the new delta holds.

    Raises:
        CheckpointError: The base cannot be read.
        DeltaError: It is not the base of the deltas, they are no chain, or one is damaged.
        OutputExistsError: The output exists and `force` is not set.
    """
    with opened_replay(base, deltas, mask=mask) as replay:
        are_alike = len({delta.manifest.mask for delta in replay.deltas}) == 1
        return write_delta(
            replay.base,
            _source_of(replay),
            output,
            mask=replay.deltas[0].mask() if are_alike else None,
            sha256=sha256,
            max_rank=max_rank,
            threads=threads,
            force=force,
            command=command,
            progress=progress,
        )


def _source_of(replay: Replay) -> Source:
    weights, others = {}, {}
    level = len(replay.deltas)
    for file in replay.manifest.files:
        content = _content(replay, level, file)
        if file.kind == "weights":
            names = tuple(entry.name for entry in _entries_of(replay, file, content))
            weights[file.path] = WeightsFile(content, names)
        else:
            others[file.path] = partial(_content, replay, level, file)
    entries = replay.deltas[-1].tensors
    return Source(
        tensors={
            name: DecodedTensor(replay, entries[name])
            for file in weights.values()
            for name in file.tensors
        },
        tied={},
        weights=weights,
        others=others,
        left_out=replay.manifest.left_out,
        record=lambda hashes: replay.manifest.result,
    )


@contextmanager
def opened_replay(
    base: AnyPath | Checkpoint | None,
    deltas: AnyPath | Sequence[AnyPath],
    *,
    signers: AnyPath | None = None,
    signature: AnyPath | None = None,
    mask: AnyMask | Sequence[AnyMask] | None = None,
) -> Iterator[Replay]:
    """Open deltas and their base; None for the one on the hub that the first names."""
    with (
        opened_chain(deltas, signers=signers, signature=signature, mask=mask) as chain,
        opened(hub_base(chain[0]) if base is None else base) as (checkpoint,),
    ):
        if checkpoint.revision is not None:
            fetch_the_rest(checkpoint.id, checkpoint.revision)
        yield Replay(checkpoint, chain)


def hub_base(delta: DeltaFile) -> str:
    """The base of a delta as a hub id with its commit.

    Raises:
        DeltaError: It was made against a local checkpoint.
    """
    base = delta.manifest.base
    match = HUB_ID.fullmatch(base.id)
    if base.revision is None or match is None:
        raise DeltaError(
            f"{delta.path} was made against {base.id}, a local checkpoint: say where it is, by "
            "BASE or --base on the command line, by base= in Python"
        )
    if COMMIT.fullmatch(base.revision) is None:
        raise DeltaError(
            f"{delta.path} names revision {base.revision!r} of its base {base.id}, expected the 40 "
            "hexadecimal digits of a commit: give the base yourself"
        )
    return f"{match['repository']}@{base.revision}"


def write_folder(
    replay: Replay,
    output: AnyPath,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write all files of the result to a new folder, which takes its name when they are checked.

    Raises:
        DeltaError: The base is another one, or a delta is damaged.
        OutputExistsError: The folder exists.
    """
    with new_folder(output) as folder:
        for file in replay.manifest.files:
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as target:
                write_file(replay, file, target, threads=threads, progress=progress)
                os.fsync(target.fileno())


def write_file(
    replay: Replay,
    file: FileEntry,
    target: BinaryIO | None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a file of the result, and check its hash; without a target, only check it.

    Raises:
        DeltaError: It is not what the delta says.
    """
    path = replay.deltas[-1].path
    hasher, num_bytes = FileHash(sha256=file.sha256 is not None), 0

    def put(content: bytes | memoryview) -> None:
        nonlocal num_bytes
        hasher.update(content)
        num_bytes += len(content)
        if target is not None:
            target.write(content)

    content = _content(replay, len(replay.deltas), file)
    put(content)
    if file.kind == "weights":
        entries = list(_entries_of(replay, file, content))
        total = sum(entry.num_bytes for entry in replay.manifest.tensors)
        with Workers(threads) as workers:
            for _, bits in replay.chunks(entries, workers):
                put(bits.view(np.uint8).data)
                if progress is not None:
                    progress(bits.nbytes, total)
    if num_bytes != file.num_bytes or hasher.hexdigest() != file.hash:
        raise DeltaError(
            f"{path}: {file.path} has {num_bytes} bytes of xxh3-128 {hasher.hexdigest()}, expected "
            f"{file.num_bytes} of {file.hash}: the delta is damaged; get it again"
        )
    if hasher.sha256() != file.sha256:
        raise DeltaError(
            f"{path}: {file.path} has SHA-256 {hasher.sha256()}, expected {file.sha256}: the base "
            "or the delta is forged; get both from whom you trust"
        )


def files_of(replay: Replay) -> dict[str, Callable[[], bytes]]:
    """Path -> reads a file of the result that holds no weights."""

    def content(file: FileEntry) -> bytes:
        target = io.BytesIO()
        write_file(replay, file, target)
        return target.getvalue()

    return {f.path: partial(content, f) for f in replay.manifest.files if f.kind == "other"}


def _entries_of(replay: Replay, file: FileEntry, start: bytes) -> Iterator[TensorEntry]:
    """The tensors of a weights file, in its order, as header and manifest agree on them."""
    delta = replay.deltas[-1]
    try:
        described = parse_start(start, file.num_bytes, f"{delta.path}: {file.path}")
    except CheckpointError as error:
        raise DeltaError(str(error)) from None
    for name, (dtype, shape, _, _) in described.items():
        entry = delta.tensors.get(name)
        if entry is None or (entry.dtype, entry.shape) != (dtype.name, shape):
            raise DeltaError(
                f"{delta.path}: {file.path} has a tensor {name} of {dtype.name} {list(shape)}, "
                f"and the manifest {entry or 'none'}"
            )
        yield entry


def _content(replay: Replay, level: int, file: FileEntry) -> bytes:
    """The content of a file of a delta, from the delta and its counterparts before it."""
    delta = replay.deltas[level - 1]
    if file.base is None:
        return delta.content(file, b"")
    if level > 1:
        files = {other.path: other for other in replay.deltas[level - 2].manifest.files}
        other = files.get(file.base)
        before = None if other is None else _content(replay, level - 1, other)
    else:
        before = content_in(replay.base, file.base)
    if before is None or xxhash.xxh3_128_hexdigest(before) != file.base_hash:
        where = replay.base.id if level == 1 else str(replay.deltas[level - 2].path)
        raise DeltaError(
            f"{where}: {file.base} is not the one that {delta.path} was made against: give the "
            f"base {delta.manifest.base.id}, unchanged"
        )
    return delta.content(file, before)
