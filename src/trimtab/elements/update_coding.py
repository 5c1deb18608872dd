"""Code an update of a tensor, given its base: lossless for any bits, NaNs and signed zeros too.

Whether bf16 training moves an element is mostly a question of its exponent, and whoever decodes has
the base. So each element is a binary decision, "did it change?", whose probability is that of the
exponent of its base value, and what changed is a signed distance in steps of the stored dtype,
whose probabilities go by exponent too. Probabilities are learned while coding, by encoder and
decoder alike, so that none are sent.

Elements whose exponent makes a change unlikely are cold: of each 64 elements one bit says whether a
cold one changed, and only then they are coded one by one. `trimtab.elements.update_kernels` has the
coder itself, `trimtab.elements.update_predictor` what a matrix may be predicted from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from trimtab.elements import update_kernels as kernels
from trimtab.elements.dtypes import Bits, DType, exponent_bins, exponent_place, num_exponent_bins
from trimtab.elements.update_predictor import (
    NO_PREDICTOR,
    Predictor,
    fit_predictor,
    read_predictor,
)
from trimtab.errors import CheckpointError

CHUNK = 1 << 22
"""Elements that are coded together. Chunks are independent of each other."""

SAME, CODED, STORED = 0, 1, 2
"""First byte of a frame: nothing changed; coded as above; the tuned bytes themselves."""

COLD = 0.03
"""Exponents above the last one of which more than this share changed are cold."""

SAMPLE = 1 << 17
"""About how many elements decide what is cold."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def encode_tensor(
    base: Bits,
    tuned: Bits,
    dtype: DType,
    *,
    threads: int = 1,
    max_rank: int = 16,
    tally: NDArray[np.float64] | None = None,
) -> list[bytes]:
    """Code a tuned tensor, given its base.

    Args:
        base: Bits before training, any shape.
        tuned: Bits after it, of the same shape and dtype.
        dtype: What the bits mean.
        threads: How many chunks are coded at a time. The result does not depend on it.
        max_rank: Largest rank of a predictor, 0 for none: smaller is faster.
        tally: The bits of flags, of signs and of distances are added to its three elements.

    Returns:
        Frames: the predictor of the tensor (empty if it has none), then one for each `CHUNK`
        elements, in C order. A frame of a chunk is never longer than its elements and one byte.
    """
    predictor = fit_predictor(base, tuned, dtype, max_rank) if max_rank else NO_PREDICTOR
    before, after = (np.ascontiguousarray(bits).reshape(-1) for bits in (base, tuned))

    def frame(start: int) -> bytes:
        part = slice(start, start + CHUNK)
        return _encode(before[part], after[part], dtype, start, predictor, tally)

    return [predictor.coded, *_map(frame, range(0, after.size, CHUNK), threads)]


def decode_tensor(base: Bits, frames: Sequence[bytes], dtype: DType, *, threads: int = 1) -> Bits:
    """The inverse of `encode_tensor`: bits of the shape of `base`, which is not changed.

    What is allocated has the size of the base, whatever the frames say. Frames that were altered
    may decode to other bits: hashes of the result show that.

    Raises:
        CheckpointError: They are no frames of a tensor of this size and dtype.
    """
    before = np.ascontiguousarray(base).reshape(-1)
    starts = range(0, before.size, CHUNK)
    if len(frames) != 1 + len(starts):
        raise CheckpointError(
            f"{len(frames)} frames do not fit a tensor of {before.size} elements, which has "
            f"{1 + len(starts)}: the file is damaged, or of another tensor"
        )
    predictor = read_predictor(frames[0], base.shape)
    after = np.empty_like(before)

    def fill(start: int) -> None:
        part = slice(start, start + CHUNK)
        _decode(before[part], frames[1 + start // CHUNK], dtype, start, predictor, after[part])

    _map(fill, starts, threads)
    return after.reshape(base.shape)


def _map(function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """Apply a function to items, some at a time; the kernels run without the GIL."""
    if threads == 1 or len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(function, items))


def _encode(
    before: Bits,
    after: Bits,
    dtype: DType,
    start: int,
    predictor: Predictor,
    tally: NDArray[np.float64] | None,
) -> bytes:
    """The frame of a chunk whose first element is number `start` of its tensor."""
    if np.array_equal(before, after):
        return bytes([SAME])
    most = -(-after.nbytes // 4)
    # More words than the elements of a segment can take, so that it is asked only after each.
    out = np.empty(most + min(kernels.SEGMENT, after.size) * 8 + 8, np.uint32)
    exponent = _last_warm_exponent(before, after, dtype)
    counts = np.zeros(3)
    size = kernels.encode_chunk(
        before, after, *_arguments(dtype, exponent, start, predictor), out, most, counts
    )
    if tally is not None:
        tally += counts
    if size < 0 or 4 * size + 3 > 1 + after.nbytes:
        return bytes([STORED]) + after.tobytes()
    return bytes([CODED]) + exponent.to_bytes(2, "little") + out[:size].astype("<u4").tobytes()


def _decode(
    before: Bits, frame: bytes, dtype: DType, start: int, predictor: Predictor, after: Bits
) -> None:
    """Fill `after` from the frame of a chunk."""
    method, content = frame[:1], frame[1:]
    if method == bytes([SAME]) and not content:
        after[:] = before
        return
    if method == bytes([STORED]) and len(content) == before.nbytes:
        after[:] = np.frombuffer(content, before.dtype)
        return
    exponent = int.from_bytes(content[:2], "little")
    is_whole = len(content) >= 6 and len(content) % 4 == 2 and exponent < num_exponent_bins(dtype)
    if method == bytes([CODED]) and is_whole:
        words = np.frombuffer(content, "<u4", offset=2).astype(np.uint32)
        if kernels.decode_chunk(
            before, words, *_arguments(dtype, exponent, start, predictor), after
        ):
            return
    raise CheckpointError(
        f"a coded update of {len(frame)} bytes does not fit {before.size} elements of "
        f"{dtype.name}: the file is damaged, or of another tensor"
    )


def _last_warm_exponent(before: Bits, after: Bits, dtype: DType) -> int:
    """The largest exponent of which more than `COLD` changed, in a sample; 0 if none."""
    step = max(1, before.size // SAMPLE)
    bins = exponent_bins(before[::step], dtype)
    num = np.bincount(bins, minlength=num_exponent_bins(dtype))
    num_changed = np.bincount(bins[before[::step] != after[::step]], minlength=num.size)
    return int(np.flatnonzero(num_changed > COLD * num).max(initial=0))


def _arguments(
    dtype: DType, exponent: int, start: int, predictor: Predictor
) -> tuple[NDArray[np.uint64], Any, Any, tuple[Any, ...], tuple[Any, ...]]:
    """What both kernels need: the dtype, what is cold, the predictor, and tables to learn in."""
    width = 8 * dtype.num_bytes
    full, sign = (1 << width) - 1, 1 << (width - 1) if dtype.is_float else 0
    shift, field = exponent_place(dtype)
    rows = kernels.TOP + width
    num = field + 1
    untaught = [kernels.HALF, 0]
    flags = np.tile(np.array([*untaught, kernels.FLAG_LIMIT], np.uint32), num * kernels.BINS + 1)
    flags[-1] = kernels.SLOW_LIMIT
    signs = np.tile(np.array([*untaught, kernels.SLOW_LIMIT], np.uint32), 16)
    room = (
        flags,
        signs,
        np.zeros(num * rows * int(kernels.ROW), np.uint16),
        np.zeros(num * rows * 2, np.uint16),
        np.empty(kernels.SEGMENT + 1, np.int64),
        np.zeros(kernels.SEGMENT, np.uint8),
        np.empty(kernels.SEGMENT, np.int32),
    )
    magnitude = full ^ sign if dtype.is_float else 0
    limit = (exponent << shift) + (1 << shift) - 1 if dtype.is_float else 0
    kind = np.array([full, sign, shift, field, rows], np.uint64)
    factors = (start, predictor.left, predictor.right, np.int64(predictor.scale))
    return kind, dtype.bits.type(magnitude), dtype.bits.type(limit), factors, room
