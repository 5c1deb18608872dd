"""`overlap`: do masks select the same elements, more often than by chance?

One streaming pass over the masks and, to match magnitudes, over the base; memory is the bits of the
tensors in progress and a few buffers per thread. Mask files are checked while they are read.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from math import prod
from threading import Semaphore

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.align import Aligned, alone
from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.names import parts_of
from trimtab.checkpoints.stream import Progress, Reader, stream
from trimtab.elements.dtypes import exponent_place
from trimtab.errors import AnalysisError, MaskMismatchError
from trimtab.masks.header import PackedMask, mask_record
from trimtab.masks.matching import check_digests, check_shapes, common_model, named_alike
from trimtab.masks.on_disk import opened_masks
from trimtab.masks.overlap_result import (
    LETTERS,
    MagnitudeBins,
    Overlap,
    OverlapCoverage,
    TensorOverlap,
    pairs_of,
)
from trimtab.masks.packed import num_packed_bytes
from trimtab.results.records import made_now, record_of
from trimtab.words import first_few


def tensors_in_order(
    masks: Sequence[PackedMask], executor: Executor
) -> Iterator[tuple[str, list[NDArray[np.uint8]]]]:
    """Read each tensor of all masks once, sorted by name; files are checked by the end.

    Args:
        masks: The masks.
        executor: Reads a tensor of all masks at the same time.

    Yields:
        A name, and the bits in each mask that has the tensor, as `Mask.packed` returns them;
        arbitrary for a damaged file.

    Raises:
        MaskError: A file is damaged; known at the end.
    """
    of_each = [mask.packed_in_order() for mask in masks]
    for name in sorted({name for mask in masks for name in mask}):
        having = [of_mask for of_mask, mask in zip(of_each, masks, strict=True) if name in mask]
        yield name, list(executor.map(next, having))
    for of_mask in of_each:
        deque(of_mask, maxlen=0)  # files are checked after the last tensor


def names_in_all(masks: Sequence[PackedMask]) -> list[str]:
    """Tensors that all masks have, in the order of the first.

    Raises:
        MaskMismatchError: There are none.
    """
    names = [name for name in masks[0] if all(name in mask for mask in masks)]
    if not names:
        raise MaskMismatchError(
            f"no tensor is in all {len(masks)} masks (the first has {first_few(list(masks[0]))}): "
            "expected masks of one model"
        )
    return names


def overlap_coverage(masks: Sequence[PackedMask], names: Sequence[str]) -> OverlapCoverage:
    """Sort the tensors of all masks into compared and not; list those with different bases."""
    in_all = set(names)
    every_name = dict.fromkeys(name for mask in masks for name in mask)
    not_compared = [
        {
            "name": name,
            "shape": list(next(mask for mask in masks if name in mask).shape(name)),
            "num_selected": [mask.num_selected(name) if name in mask else None for mask in masks],
        }
        for name in every_name
        if name not in in_all
    ]
    other_base = []
    for name in names:
        recorded = [mask.base.get(name) for mask in masks]
        if len({record.digest for record in recorded if record is not None}) > 1:
            rows = [None if record is None else record._asdict() for record in recorded]
            other_base.append({"name": name, "base": rows})
    return OverlapCoverage(
        num_compared=sum(masks[0].num_elements(name) for name in names),
        not_compared=tuple(not_compared),
        other_base=tuple(other_base),
    )


CHUNK_WORDS = 1 << 14
"""Words of each mask that are counted at once: a million elements, 128 KB."""


def overlap(
    *masks: str | os.PathLike[str] | PackedMask,
    base: str | os.PathLike[str] | Checkpoint | None = None,
    series: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Overlap:
    """Count what masks share, and what they would share by chance.

    Tensors that not all masks have are left out and listed. Masks made against different bases are
    still compared, element by element, and listed too.

    Args:
        masks: Two to 26 masks, or their files.
        base: The checkpoint that the masks were made against: a folder, a file, a hub id
            (`org/name@revision`), or an open checkpoint. With it, chance is also matched by the
            magnitude of its weights.
        series: The masks are in temporal order, to be compared with the last.
        threads: Tensors counted at the same time; by default the number of processors, at most 8.
        progress: Called after each chunk, from any thread.

    Returns:
        The result.

    Raises:
        AnalysisError: There are too few masks or too many.
        MaskError: A file is not a mask, or a damaged one.
        MaskMismatchError: Tensors of one name have different shapes, the masks have no tensor in
            common, or one was made against another base. The last is only known once the base has
            been read.
        CheckpointError: The base cannot be read.
    """
    if not 2 <= len(masks) <= len(LETTERS):
        raise AnalysisError(
            f"an overlap is of 2 to {len(LETTERS)} masks, and {len(masks)} were given"
        )
    num_threads = threads or min(os.cpu_count() or 1, 8)
    digests: Mapping[str, str] = {}
    with ExitStack() as stack:
        packed_masks = opened_masks(masks, stack, check=False)
        checkpoint = None if base is None else stack.enter_context(opened(base))[0]
        packed_masks = named_alike(packed_masks, checkpoint)
        names = names_in_all(packed_masks)
        shapes = common_model(packed_masks).shapes
        with ThreadPoolExecutor(num_threads, thread_name_prefix="trimtab-overlap") as executor:
            if checkpoint is None:
                tensors = _without_base(packed_masks, names, executor, num_threads, progress)
            else:
                check_shapes({name: shapes[name] for name in names}, checkpoint)
                tensors, digests = _with_base(
                    packed_masks, names, checkpoint, executor, num_threads, progress
                )
        return Overlap(
            masks=tuple(mask_record(mask, mask.path, digests) for mask in packed_masks),
            coverage=overlap_coverage(packed_masks, names),
            tensors=tuple(tensors[name] for name in names),
            base=None if checkpoint is None else record_of(checkpoint, digests),
            is_series=series,
            provenance=made_now(device="cpu", threads=num_threads),
        )


def _count(
    name: str,
    shape: tuple[int, ...],
    sets: Sequence[NDArray[np.uint8]],
    bins: MagnitudeBins | None = None,
) -> TensorOverlap:
    """Count what masks share in a tensor, given its bits in each mask."""
    from trimtab.elements.set_kernels import count_shared

    num_masks = len(sets)
    # Above the diagonal what two share, on it what one selects.
    shared = np.zeros((num_masks, num_masks), dtype=np.int64)
    # For two masks, these counts follow from the shared ones.
    counts = np.zeros(num_masks + 1 if num_masks > 2 else 0, dtype=np.int64)
    for words in _words(sets):
        count_shared(words, shared, counts)
    by_count = counts[1:].tolist()
    if num_masks == 2:
        (a, both), (_, b) = shared.tolist()
        by_count = [a + b - 2 * both, both]
    (part,) = parts_of(name, shape, {})
    return TensorOverlap(
        name=name,
        layer=part.layer,
        kind=part.kind,
        shape=shape,
        num_selected=tuple(np.diag(shared).tolist()),
        num_shared=tuple(int(shared[pair]) for pair in pairs_of(num_masks)),
        num_by_count=(prod(shape) - sum(by_count), *by_count),
        bins=bins,
    )


def _words(sets: Sequence[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint64]]:
    """The bits of several sets as 64-bit words, some at a time: `[sets, words]`."""
    num_bytes = 8 * CHUNK_WORDS
    for start in range(0, len(sets[0]), num_bytes):
        yield _side_by_side([packed[start : start + num_bytes] for packed in sets])


def _side_by_side(sets: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint64]:
    words = np.empty((len(sets), -(-len(sets[0]) // 8)), dtype=np.uint64)
    words[:, -1:] = 0
    for row, packed in zip(words.view(np.uint8), sets, strict=True):
        row[: len(packed)] = packed
    return words


def _without_base(
    masks: Sequence[PackedMask],
    names: Sequence[str],
    executor: Executor,
    num_threads: int,
    progress: Progress | None,
) -> dict[str, TensorOverlap]:
    """Count while the masks are read once; a few tensors at a time are in memory."""
    num_bytes = sum(num_packed_bytes(mask.num_elements(name)) for mask in masks for name in mask)
    to_count = set(names)
    tasks: dict[str, Future[TensorOverlap]] = {}
    under_way: deque[Future[TensorOverlap]] = deque()
    for name, sets in tensors_in_order(masks, executor):
        if name in to_count:
            if len(under_way) == num_threads:
                under_way.popleft().result()
            tasks[name] = executor.submit(_count, name, masks[0].shape(name), sets)
            under_way.append(tasks[name])
        if progress is not None:
            progress(sum(len(packed) for packed in sets), num_bytes)
    return {name: task.result() for name, task in tasks.items()}


def _with_base(
    masks: Sequence[PackedMask],
    names: Sequence[str],
    base: Checkpoint,
    executor: Executor,
    num_threads: int,
    progress: Progress | None,
) -> tuple[dict[str, TensorOverlap], Mapping[str, str]]:
    """Count while masks and base are read once; also returns the digests of the base, checked."""
    alignment = alone(base, names, is_all_hashed=True)
    items = {item.name: item for item in alignment.items}
    bits: dict[Aligned, list[NDArray[np.uint8]]] = {}
    room = Semaphore(num_threads + 1)

    def read() -> Iterator[Aligned]:
        for name, sets in tensors_in_order(masks, executor):
            if name in items:
                room.acquire()
                bits[items[name]] = sets
                yield items[name]

    def one(item: Aligned, reader: Reader) -> TensorOverlap:
        try:
            sets = bits.pop(item)
            return _count(item.name, item.shape, sets, _by_magnitude(item, reader, sets))
        finally:
            room.release()

    done = stream(alignment, one, threads=num_threads, progress=progress, order=read())
    (digests,) = done.hashes
    check_digests(masks, digests, base)
    return {name: done.results[item] for name, item in items.items()}, digests


def _by_magnitude(
    item: Aligned, reader: Reader, sets: Sequence[NDArray[np.uint8]]
) -> MagnitudeBins:
    """Count the masks of a tensor by exponent of the base weights."""
    from trimtab.elements.set_kernels import count_by_bin

    shift, largest = exponent_place(item.dtype)
    (source,) = reader.sources
    counts = np.zeros((largest + 1, 1 + len(sets)), dtype=np.int64)
    # Flat chunks, except the last, are whole words.
    for chunk in reader.chunks((item.num_elements,)):
        bits = source.read(chunk).ravel()
        first, last = chunk.column // 8, -(-(chunk.column + len(bits)) // 8)
        words = _side_by_side([packed[first:last] for packed in sets])
        count_by_bin(bits, shift, largest.bit_length(), words, counts)
    present = np.flatnonzero(counts[:, 0])
    of_elements, *of_masks = (tuple(map(int, column)) for column in counts[present].T)
    return MagnitudeBins(tuple(map(int, present)), of_elements, tuple(of_masks))
