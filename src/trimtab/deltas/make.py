"""Make a delta: every tensor of a tuned checkpoint, coded given its counterpart in the base."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from tempfile import SpooledTemporaryFile, TemporaryDirectory
from typing import Literal, NamedTuple

import numpy as np
import xxhash

from trimtab.checkpoints.align import match_names
from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.folder import fetch_the_rest
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.deltas.file import PIECE, DeltaFile, DeltaWriter, compress, new_delta
from trimtab.deltas.manifest import FileEntry, FileHash, Manifest, TensorEntry
from trimtab.deltas.masked import AnyMask, MaskOfBase, Selected, Selection
from trimtab.deltas.source import (
    Source,
    TunedTensor,
    Weights,
    chunks_of,
    content_in,
    hash_of_chunks,
    readable,
    source_of,
)
from trimtab.deltas.workers import Workers
from trimtab.elements.update_coding import CHUNK, encode_frames
from trimtab.elements.update_fit import Readable
from trimtab.elements.update_predictor import MAX_RANK
from trimtab.errors import DeltaError, SettingsError
from trimtab.masks.header import PackedMask
from trimtab.masks.on_disk import opened_masks
from trimtab.outputs import ensure_free, is_stream
from trimtab.results.records import made_now, record_of_tensors
from trimtab.words import plural

HELD_BYTES = 96 << 20
"""Tensors that are in memory as a whole while they are coded take so much, all threads together.

Of a larger tensor, parts are read when they are needed.
"""

SPOOLED_BYTES = 1 << 21
"""Frames of a tensor that wait for their turn in memory; more of them wait in a temporary file."""


class _Pair(NamedTuple):
    """A tensor of the tuned checkpoint and what it is coded against."""

    tuned: TunedTensor
    base: TunedTensor | None
    num_common: int
    same: TunedTensor | None  # an earlier tuned tensor with the same counterpart, maybe its copy


class _Coding(NamedTuple):
    """How tensors are coded."""

    workers: Workers
    max_rank: int
    mask: MaskOfBase | None


class _Coded(NamedTuple):
    entry: TensorEntry
    content: SpooledTemporaryFile[bytes]
    tuned: Readable


def make_delta(
    base: str | os.PathLike[str] | Checkpoint,
    tuned: str | os.PathLike[str] | Checkpoint,
    output: str | os.PathLike[str],
    *,
    after: str | os.PathLike[str] | None = None,
    mask: AnyMask | None = None,
    carry: Sequence[str] = (),
    sha256: bool = False,
    max_rank: int = MAX_RANK,
    threads: int | None = None,
    force: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write a tuned checkpoint as a delta against its base.

    Args:
        base: The checkpoint before training: a folder, a file, a hub id (`org/name@revision`), or
            an open checkpoint.
        tuned: The checkpoint after it, of safetensors files.
        output: The delta file to write.
        after: The delta that produced `base`, if the two belong to one chain.
        mask: A mask, or its file, if only its elements were trained. They are coded as if there
            were no others, without a predictor: quicker, and often smaller. Whoever applies the
            delta needs the mask too.
        carry: Patterns of file names to carry that would be left out (`*.pt`, ...).
        sha256: Also store the SHA-256 of every file of `tuned`, which `apply_delta` checks: for a
            delta that is signed, or to compare with hashes from elsewhere.
        max_rank: Largest rank of the predictor of a matrix, which is chosen by what it saves. 0 for
            none: coding is then about twice as fast, and the delta larger.
        threads: Tensors or chunks coded at the same time; by default one for each core.
        force: Replace an existing file.
        command: The command to record in the provenance.
        progress: Called with bytes done and bytes in all.

    Returns:
        What the delta holds.

    Raises:
        CheckpointError: One of the checkpoints cannot be read, or the tuned one is not safetensors.
        DeltaError: `after` is no delta, or does not end at `base`; or elements changed that `mask`
            does not select.
        MaskError: The mask is damaged, or not of this base.
        OutputExistsError: The output exists and `force` is not set.
        SettingsError: `max_rank` or `threads` is out of range.
    """
    ensure_free(output, force=force)
    with opened(base, tuned) as (old, new), ExitStack() as stack:
        masks = opened_masks([] if mask is None else [mask], stack)
        for checkpoint in (old, new):
            if checkpoint.revision is not None:
                fetch_the_rest(checkpoint.id, checkpoint.revision)
        return write_delta(
            old,
            source_of(new, carry),
            output,
            after=after,
            mask=masks[0] if masks else None,
            sha256=sha256,
            max_rank=max_rank,
            threads=threads,
            force=force,
            command=command,
            progress=progress,
        )


@contextmanager
def some_delta(
    base: str | os.PathLike[str] | Checkpoint | None,
    deltas: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> Iterator[str | os.PathLike[str] | Sequence[str | os.PathLike[str]]]:
    """Deltas of a base; where there are none, one that makes the base of itself."""
    if base is None or isinstance(deltas, str | os.PathLike) or deltas:
        yield deltas
        return
    with TemporaryDirectory(prefix="trimtab-") as folder:
        make_delta(base, base, path := Path(folder, "same.delta"), max_rank=0)
        yield path


def write_delta(
    base: Checkpoint | Weights,
    source: Source,
    output: str | os.PathLike[str],
    *,
    after: str | os.PathLike[str] | None = None,
    mask: PackedMask | None = None,
    sha256: bool = False,
    max_rank: int = MAX_RANK,
    threads: int | None = None,
    force: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """`make_delta` for a tuned checkpoint of any source, and a mask that was checked."""
    if not 0 <= max_rank <= MAX_RANK:
        raise SettingsError(f"max_rank is {max_rank}, expected 0 to {MAX_RANK}")
    selected = None if mask is None else MaskOfBase(mask, base)
    pairs = list(_pairs(base, source))
    # Files that are not weights are read twice, so that one of them at a time is in memory.
    sizes = {name: len(file.start) for name, file in source.weights.items()}
    sizes |= {name: len(read()) for name, read in source.others.items()}
    limits = {f"file:{name}": 2 * size + 4096 for name, size in sizes.items()}
    num_bytes = sum(pair.tuned.num_bytes for pair in pairs)
    limits["tensors"] = num_bytes * 101 // 100 + 4096 * len(pairs)
    file_of = {name: path for path, file in source.weights.items() for name in file.tensors}
    hashers = {path: FileHash(sha256=sha256) for path in sizes}
    for path, file in source.weights.items():
        hashers[path].update(file.start)
    with (
        new_delta(output, limits, force=force) as writer,
        ExitStack() as spools,
        Workers(threads) as workers,
    ):
        entries: list[TensorEntry] = []
        base_hashes: dict[str, str] = {}
        coding = _Coding(workers, max_rank, selected)
        folder = None if is_stream(output) else str(Path(output).resolve().parent)
        coded = workers.in_order(
            pairs,
            lambda pair: _code(
                pair,
                coding,
                spools.enter_context(SpooledTemporaryFile(SPOOLED_BYTES, dir=folder)),
            ),
            lambda pair: 0 if isinstance(pair.tuned, StoredTensor) else pair.tuned.num_bytes,
        )
        for pair, (entry, spool, tuned) in zip(pairs, coded, strict=True):
            with spool:
                writer.add("tensors", iter(partial(spool.read, PIECE), b""))
            entries.append(entry)
            path = file_of[entry.name]
            for bits in chunks_of(tuned, entry.num_elements):
                hashers[path].update(bits.view(np.uint8).data)
            sizes[path] += entry.num_bytes
            if pair.base is not None:
                base_hashes[pair.base.name] = entry.base_hash
            if progress is not None:
                progress(pair.tuned.num_bytes, num_bytes)
        for name, tensor in base.tensors.items():
            if name not in base_hashes:
                base_hashes[name] = hash_of_chunks(
                    chunks_of(readable(tensor, HELD_BYTES), prod(tensor.shape))
                )
        before = record_of_tensors(
            ((n, t.dtype.name, t.shape, base_hashes[n]) for n, t in base.tensors.items()),
            id=base.id,
            revision=base.revision,
            architecture=base.architecture,
            notes=base.notes,
        )
        root, position = _place_in_chain(after, before.content_hash)
        files: list[FileEntry] = []
        for path, file in source.weights.items():
            # A base that was saved again, in other shards, is the same base.
            stored = _store(writer, path, "weights", file.start, None)
            files.append(replace(stored, num_bytes=sizes[path]))
        for path, read in source.others.items():
            content = read()
            hashers[path].update(content)
            files.append(_store(writer, path, "other", content, content_in(base, path)))
        manifest = Manifest(
            base=before,
            result=source.record({entry.name: entry.hash for entry in entries}),
            root=root,
            position=position,
            files=tuple(
                replace(
                    file, hash=hashers[file.path].hexdigest(), sha256=hashers[file.path].sha256()
                )
                for file in files
            ),
            tensors=tuple(entries),
            left_out=source.left_out,
            provenance=made_now(command=command),
            mask=mask.digest if mask is not None else None,
        )
        writer.finish(manifest)
    return manifest


def _pairs(base: Checkpoint | Weights, tuned: Source) -> Iterator[_Pair]:
    """Tensors of the tuned checkpoint in the order of its files, with their counterparts."""
    counterparts = {
        its_name: base.tensors[base.tied.get(name, name)]
        for name, its_name in match_names(base, tuned).items()
    }
    first: dict[str, TunedTensor] = {}
    for tensor in tuned.tensors.values():
        other = counterparts.get(tensor.name)
        num_common = 0
        if other is not None and other.dtype == tensor.dtype:
            num_common = _num_common(other.shape, tensor.shape)
        if other is None or not num_common:
            yield _Pair(tensor, None, 0, None)
        else:
            yield _Pair(tensor, other, num_common, first.setdefault(other.name, tensor))


def _num_common(base: tuple[int, ...], tuned: tuple[int, ...]) -> int:
    """Elements at the start of two tensors, in C order, that are at the same position in both."""
    if base == tuned:
        return int(np.prod(tuned, dtype=np.int64))
    if not base or len(base) != len(tuned) or base[1:] != tuned[1:]:
        return 0
    return int(min(base[0], tuned[0]) * np.prod(tuned[1:], dtype=np.int64))


def _code(pair: _Pair, coding: _Coding, content: SpooledTemporaryFile[bytes]) -> _Coded:
    """Code a tensor into an empty file."""
    tensor, base, num_common, same = pair
    most = HELD_BYTES // (2 * coding.workers.threads)
    tuned = readable(tensor, most)
    before = readable(base, most) if base is not None else None
    name = selection = None
    if coding.mask is not None and base is not None and base.shape == tensor.shape:
        name = coding.mask.name(base.name)
        selection = coding.mask.selection(base.name, base.shape) if name is not None else None
    entry, num_outside = _compared(pair, tuned, before, selection)
    result = _Coded(entry, content, tensor if isinstance(tensor, StoredTensor) else tuned)
    if same is not None and same is not tensor and _is_equal(same, tensor, tuned, most):
        return result._replace(entry=replace(entry, copy_of=same.name))
    if coding.mask is not None and num_outside:
        raise DeltaError(
            f"{tensor.name}: {plural(num_outside, 'element')} changed that the mask does not "
            "select: give the mask that was trained, or make the delta without one"
        )
    sizes: list[int] = []
    if before is not None and entry.num_changed > entry.num_elements - num_common:
        parts: tuple[Readable, Readable] = before, tuned
        if selection is not None:
            parts = Selected(before, selection), Selected(tuned, selection)
            result = result._replace(entry=replace(entry, mask=name))
        for frame in encode_frames(
            *parts,
            entry.common_shape,
            tensor.dtype,
            max_rank=coding.max_rank if selection is None else 0,
            mapped=coding.workers.map,
        ):
            sizes.append(content.write(frame))
    for start in range(num_common, entry.num_elements, CHUNK):
        stop = min(start + CHUNK, entry.num_elements)
        content.write(tuned.elements(start, stop).tobytes())
    content.seek(0)
    return result._replace(entry=replace(result.entry, frames=tuple(sizes)))


def _compared(
    pair: _Pair, tuned: Readable, before: Readable | None, selection: Selection | None
) -> tuple[TensorEntry, int]:
    """The entry of a tensor of which nothing is coded yet: its hashes, and how much changed.

    And how many of the changed elements a mask does not select, which are all without one.
    """
    tensor, base, num_common, _ = pair
    sizes = prod(tensor.shape), prod(base.shape) if base is not None else 0
    hashers = xxhash.xxh3_128(), xxhash.xxh3_128()
    num_same = num_inside = 0
    for start in range(0, max(sizes), CHUNK):
        parts = []
        for source, size, hasher in zip((tuned, before), sizes, hashers, strict=True):
            if source is not None and start < size:
                parts.append(source.elements(start, min(start + CHUNK, size)))
                hasher.update(parts[-1].view(np.uint8).data)
        if start < num_common:
            after, old = (part[: num_common - start] for part in parts)
            if selection is None:
                num_same += int(np.count_nonzero(after == old))
            else:
                num, num_outside = selection.count_changes(old, after, start)
                num_same += after.size - num
                num_inside += num - num_outside
    entry = TensorEntry(
        name=tensor.name,
        dtype=tensor.dtype.name,
        shape=tensor.shape,
        hash=hashers[0].hexdigest(),
        base=base.name if base is not None else None,
        base_hash=hashers[1].hexdigest() if base is not None else "",
        num_common=num_common,
        num_changed=sizes[0] - num_same,
        frames=(),
    )
    return entry, entry.num_changed - num_inside


def _is_equal(tensor: TunedTensor, other: TunedTensor, bits: Readable, most: int) -> bool:
    """Whether two tensors are alike, of the second of which the bits are given."""
    if (tensor.dtype, tensor.shape) != (other.dtype, other.shape):
        return False
    num = prod(tensor.shape)
    pairs = zip(chunks_of(readable(tensor, most), num), chunks_of(bits, num), strict=True)
    return all(np.array_equal(one, another) for one, another in pairs)


def _store(
    writer: DeltaWriter,
    name: str,
    kind: Literal["weights", "other"],
    content: bytes,
    before: bytes | None,
) -> FileEntry:
    """Store the content of a file; the entry has no hash yet."""
    packed = b"" if content == before else compress(content, before or b"")
    writer.add(f"file:{name}", [packed])
    return FileEntry(
        path=name,
        kind=kind,
        num_bytes=len(content),
        hash="",
        base=name if before is not None else None,
        base_hash=xxhash.xxh3_128_hexdigest(before) if before is not None else "",
        num_content=len(content),
        num_stored=len(packed),
    )


def _place_in_chain(after: str | os.PathLike[str] | None, base: str) -> tuple[str, int]:
    """Content hash of the start of the chain that ends at a base, and the next position in it."""
    if after is None:
        return base, 1
    with DeltaFile(after) as previous:
        manifest = previous.manifest
    if manifest.result.content_hash != base:
        raise DeltaError(
            f"{os.fspath(after)}: its result is {manifest.result.content_hash}, and the base is "
            f"{base}: give the delta that the base was made by"
        )
    return manifest.root, manifest.position + 1
