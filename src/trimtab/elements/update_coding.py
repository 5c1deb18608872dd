"""Code an update of a tensor, given its base: lossless for any bits, NaNs and signed zeros too.

Whether bf16 training moves an element is mostly a question of its exponent, and whoever decodes has
the base. So each element is a binary decision, "did it change?", whose probability is that of the
exponent of its base value, and what changed is a signed distance in steps of the stored dtype,
whose probabilities go by exponent too. Probabilities are learned while coding, by encoder and
decoder alike, so that none are sent.

Elements whose exponent makes a change unlikely are cold: of each 64 elements one bit says whether a
cold one changed, and only then they are coded one by one. `trimtab.elements.update_kernels` has the
coder itself.

What training adds to a matrix has few directions, and rounding scatters it. So a matrix may come
with a predictor: factors of its rows and columns, small integers, whose products say where changes
are likely, and their signs. They become contexts of the decisions above. How many factors are sent
is decided for each matrix by what they save; none is a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from trimtab.elements import update_kernels as kernels
from trimtab.elements.dtypes import Bits, DType, num_exponent_bins
from trimtab.elements.range_coder import ROW, UNTAUGHT
from trimtab.elements.simd import PREDICTED
from trimtab.elements.update_fit import InMemory, Readable, place_in
from trimtab.elements.update_predictor import (
    MAX_RANK,
    Predictor,
    best_predictor,
    cold,
    last_warm_exponent,
    read_predictor,
)
from trimtab.errors import CheckpointError

CHUNK = 1 << 22
"""Elements that are coded together. Chunks are independent of each other."""

SAME, CODED, STORED = 0, 1, 2
"""First byte of a frame: nothing changed; coded as above; the tuned bytes themselves."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Mapped(Protocol):
    """What applies a function to items like `map`: in order, perhaps to some of them at a time."""

    def __call__(
        self, function: Callable[[Item], Result], items: Iterable[Item], /
    ) -> Iterator[Result]:
        """The results, in the order of the items."""


def encode_tensor(
    base: Bits,
    tuned: Bits,
    dtype: DType,
    *,
    max_rank: int = MAX_RANK,
    mapped: Mapped = map,
    tally: NDArray[np.float64] | None = None,
) -> list[bytes]:
    """Code a tuned tensor, given its base.

    Args:
        base: Bits before training, any shape.
        tuned: Bits after it, of the same shape and dtype.
        dtype: What the bits mean.
        max_rank: Largest rank of a predictor, 0 for none: smaller is faster.
        mapped: Codes chunks, perhaps some at a time. The result does not depend on it.
        tally: The bits of flags, of signs and of distances are added to its three elements.

    Returns:
        Frames: the predictor of the tensor (empty if it has none), then one for each `CHUNK`
        elements, in C order. A frame of a chunk is never longer than its elements and one byte.
    """
    before, after = (InMemory(np.ascontiguousarray(bits)) for bits in (base, tuned))
    return list(
        encode_frames(
            before, after, tuned.shape, dtype, max_rank=max_rank, mapped=mapped, tally=tally
        )
    )


def encode_frames(
    base: Readable,
    tuned: Readable,
    shape: tuple[int, ...],
    dtype: DType,
    *,
    max_rank: int = MAX_RANK,
    mapped: Mapped = map,
    tally: NDArray[np.float64] | None = None,
) -> Iterator[bytes]:
    """The frames of `encode_tensor` one by one, of tensors that are read a chunk at a time.

    Args:
        base: The tensor before training.
        tuned: The tensor after it.
        shape: Its shape. Of tensors that have more elements, only the first ones are coded.
        dtype: What the bits mean.
        max_rank: Largest rank of a predictor, 0 for none: smaller is faster.
        mapped: Codes chunks, perhaps some at a time. The result does not depend on it.
        tally: The bits of flags, of signs and of distances are added to its three elements.
    """
    num = int(np.prod(shape))
    predictor = best_predictor(base, tuned, shape, dtype, max_rank, -(-num // CHUNK))

    def frame(start: int) -> bytes:
        part = start, min(start + CHUNK, num)
        return _encode(base.elements(*part), tuned.elements(*part), dtype, start, predictor, tally)

    yield predictor.coded
    yield from mapped(frame, range(0, num, CHUNK))


def decode_tensor(
    base: Bits, frames: Sequence[bytes], dtype: DType, *, mapped: Mapped = map
) -> Bits:
    """The inverse of `encode_tensor`: bits of the shape of `base`, which is not changed.

    What is allocated has the size of the base, whatever the frames say. Frames that were altered
    may decode to other bits: hashes of the result show that.

    Raises:
        CheckpointError: They are no frames of a tensor of this size and dtype.
    """
    before = np.ascontiguousarray(base).reshape(-1)
    starts = range(0, before.size, CHUNK)
    ensure_fits(len(frames), before.size)
    predictor = read_predictor(frames[0], base.shape)
    after = np.empty_like(before)

    def fill(start: int) -> None:
        part = slice(start, start + CHUNK)
        decode_frame(before[part], frames[1 + start // CHUNK], dtype, start, predictor, after[part])

    for _ in mapped(fill, starts):
        pass
    return after.reshape(base.shape)


def ensure_fits(num_frames: int, num_elements: int) -> None:
    """Check the number of frames of a tensor.

    Raises:
        CheckpointError: A tensor of so many elements has more or fewer.
    """
    if num_frames != (expected := 1 + -(-num_elements // CHUNK)):
        raise CheckpointError(
            f"{num_frames} frames do not fit a tensor of {num_elements} elements, which has "
            f"{expected}: the file is damaged, or of another tensor"
        )


def split_frames(content: bytes, sizes: Sequence[int]) -> tuple[list[bytes], bytes]:
    """Frames that were joined, given their sizes, and the bytes after them."""
    frames, start = [], 0
    for size in sizes:
        frames.append(content[start : start + size])
        start += size
    return frames, content[start:]


def _encode(
    before: Bits,
    after: Bits,
    dtype: DType,
    start: int,
    predictor: Predictor,
    tally: NDArray[np.float64] | None = None,
) -> bytes:
    """The frame of a chunk whose first element is number `start` of its tensor."""
    if np.array_equal(before, after):
        return bytes([SAME])
    most = -(-after.nbytes // 4)
    # More words than the elements of a segment can take, so that it is asked only after each.
    out = np.empty(most + min(kernels.SEGMENT, after.size) * 8 + 8, np.uint32)
    exponent = last_warm_exponent(before, after, dtype)
    counts = np.zeros(3)
    size = kernels.encode_chunk(
        before, after, out, most, counts, *_arguments(dtype, exponent, start, predictor)
    )
    if tally is not None:
        tally += counts
    if size < 0 or 4 * size + 3 > 1 + after.nbytes:
        return bytes([STORED]) + after.tobytes()
    return bytes([CODED]) + exponent.to_bytes(2, "little") + out[:size].astype("<u4").tobytes()


def decode_frame(
    before: Bits, frame: bytes, dtype: DType, start: int, predictor: Predictor, after: Bits
) -> None:
    """Decode a chunk.

    Args:
        before: Elements of the base.
        frame: What `encode_frames` made of them.
        dtype: What the bits mean.
        start: Number of the first element in its tensor, a multiple of `CHUNK`.
        predictor: That of the tensor.
        after: Receives the elements.

    Raises:
        CheckpointError: It is no frame of so many elements of this dtype.
    """
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
            before, words, after, *_arguments(dtype, exponent, start, predictor)
        ):
            return
    raise CheckpointError(
        f"a coded update of {len(frame)} bytes does not fit {before.size} elements of "
        f"{dtype.name}: the file is damaged, or of another tensor"
    )


def _arguments(dtype: DType, exponent: int, start: int, predictor: Predictor) -> tuple[Any, ...]:
    """What both kernels need: the dtype, what is cold, the predictor, and tables to learn in."""
    place = place_in(dtype)
    rows = kernels.TOP + 8 * dtype.num_bytes
    num = num_exponent_bins(dtype)
    room = (
        np.full(num * kernels.BINS + 1, UNTAUGHT),
        np.full(16, UNTAUGHT),
        np.zeros(num * rows * int(ROW), np.uint16),
        np.zeros(num * rows * 2, np.uint16),
        np.empty(kernels.SEGMENT + 1, np.int32),
        np.zeros(kernels.SEGMENT + PREDICTED, np.uint8),
    )
    kind = np.array([*place, rows], np.uint64)
    factors = (start, predictor.left, predictor.right, np.int32(predictor.shift))
    return kind, *cold(dtype, exponent), *factors, *room
