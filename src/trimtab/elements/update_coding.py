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
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from trimtab.elements import update_kernels as kernels
from trimtab.elements.dtypes import Bits, DType, exponent_bins, exponent_place, num_exponent_bins
from trimtab.errors import CheckpointError

CHUNK = 1 << 22
"""Elements that are coded together. Chunks are independent of each other."""

SAME, CODED, STORED = 0, 1, 2
"""First byte of a frame: nothing changed; coded as above; the tuned bytes themselves."""

COLD = 0.03
"""Exponents above the last one of which more than this share changed are cold."""

SAMPLE = 1 << 14
"""About how many elements decide what is cold, and how large steps are cut off."""

RANKS = (1, 2, 4, 8, 16)
"""Numbers of factors that are tried."""

MAX_RANK = RANKS[-1]
"""Largest rank of a predictor, unless another one is asked for."""

MOST_WEIGHT = 2047
"""Largest weight of a factor: predictions stay below 2^30."""

BAND = 1 << 18
"""About how many elements decide how many factors there are."""

NUM_PASSES = 3
"""Passes of subspace iteration over a matrix."""

BLOCK = 1 << 20
"""About how many elements of a matrix are looked at together when its factors are fitted."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Readable(Protocol):
    """A tensor that is read a part at a time: from a file, or by decoding."""

    def elements(self, start: int, stop: int) -> Bits:
        """A vector of its elements from `start` to `stop`, in C order."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """A tensor that is in memory."""

    bits: Bits

    def elements(self, start: int, stop: int) -> Bits:
        """A view of its elements from `start` to `stop`, in C order."""
        return self.bits.reshape(-1)[start:stop]


class Mapped(Protocol):
    """What applies a function to items like `map`: in order, perhaps to some of them at a time."""

    def __call__(
        self, function: Callable[[Item], Result], items: Iterable[Item], /
    ) -> Iterator[Result]:
        """The results, in the order of the items."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """What predicts an update of a matrix.

    Attributes:
        coded: Its frame.
        left: Weighted factors of the rows, int32, (rows, rank).
        right: Factors of the columns, int32, (rank, columns).
        scale: Levels, of which there are 16, for each unit of a prediction, in 1 / 2^32.
    """

    coded: bytes
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    scale: int

    @property
    def rank(self) -> int:
        """Number of factors."""
        return self.right.shape[0]


NO_PREDICTOR = Predictor(b"", np.zeros((0, 0), np.int32), np.zeros((0, 0), np.int32), 0)


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
    predictor = _best_predictor(base, tuned, shape, dtype, max_rank)
    num = int(np.prod(shape))

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
    exponent = _last_warm_exponent(before, after, dtype)
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


def _last_warm_exponent(before: Bits, after: Bits, dtype: DType) -> int:
    """The largest exponent of which more than `COLD` changed, in a sample; 0 if none."""
    step = max(1, before.size // SAMPLE)
    bins = exponent_bins(before[::step], dtype)
    num = np.bincount(bins, minlength=num_exponent_bins(dtype))
    num_changed = np.bincount(bins[before[::step] != after[::step]], minlength=num.size)
    return int(np.flatnonzero(num_changed > COLD * num).max(initial=0))


def _arguments(dtype: DType, exponent: int, start: int, predictor: Predictor) -> tuple[Any, ...]:
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
    return kind, dtype.bits.type(magnitude), dtype.bits.type(limit), *factors, *room


def read_predictor(frame: bytes, shape: tuple[int, ...]) -> Predictor:
    """The predictor in the first frame of a tensor.

    Raises:
        CheckpointError: It is not one for a tensor of this shape.
    """
    if not frame:
        return NO_PREDICTOR
    rank, (rows, columns) = frame[0], _matrix_shape(shape)
    start = 5 + 2 * rank
    is_whole = len(frame) >= start + 4 and (len(frame) - start) % 4 == 0
    if rank in RANKS and _is_small(rank, rows, columns) and is_whole:
        scale = int.from_bytes(frame[1:5], "little")
        weights = np.frombuffer(frame, "<u2", rank, 5).astype(np.int32)
        words = np.frombuffer(frame, "<u4", offset=start).astype(np.uint32)
        factors = np.empty((rank, rows + columns), np.int32)
        table, gaps = _factor_tables(rank)
        if weights.max() <= MOST_WEIGHT and kernels.decode_factors(words, table, gaps, factors):
            left = np.ascontiguousarray((factors[:, :rows] * weights[:, None]).T)
            return Predictor(frame, left, np.ascontiguousarray(factors[:, rows:]), scale)
    raise CheckpointError(
        f"a predictor of {len(frame)} bytes does not fit a tensor of shape {list(shape)}: "
        "the file is damaged, or of another tensor"
    )


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor: all its axes but the last are one."""
    columns = shape[-1] if len(shape) > 1 else 0
    return int(np.prod(shape[:-1])) if columns else 0, columns


def _is_small(rank: int, rows: int, columns: int) -> bool:
    """Whether factors take less room than half of the elements."""
    return 4 * rank <= min(rows, columns)


def _factor_tables(rank: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    return np.zeros(rank * int(kernels.ROW), np.uint16), np.zeros(2 * rank, np.uint16)


@dataclass(frozen=True)
class _Matrix:
    """A tensor as rows: those of a slice are read when it is asked for them."""

    tensor: Readable
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    def __getitem__(self, rows: slice) -> Bits:
        start, stop, _ = rows.indices(self.shape[0])
        columns = self.shape[1]
        return self.tensor.elements(start * columns, stop * columns).reshape(-1, columns)

    def every(self, step: int) -> Bits:
        """Every so many elements."""
        size = -(-BLOCK // step) * step
        starts = range(0, self.size, size)
        elements = self.tensor.elements
        return np.concatenate(
            [elements(at, min(at + size, self.size))[::step].copy() for at in starts]
        )


def _best_predictor(
    base: Readable, tuned: Readable, shape: tuple[int, ...], dtype: DType, max_rank: int
) -> Predictor:
    """The predictor with which a band of rows in the middle of the matrix becomes smallest."""
    rows, columns = _matrix_shape(shape)
    ranks = [rank for rank in RANKS if rank <= max_rank and _is_small(rank, rows, columns)]
    if not ranks or not dtype.is_float or dtype.num_bytes > 4:
        return NO_PREDICTOR
    before, after = (_Matrix(tensor, (rows, columns)) for tensor in (base, tuned))
    fitted = _fit(before, after, dtype, ranks[-1])
    if fitted is None:
        return NO_PREDICTOR
    num = min(rows, max(1, BAND // columns))
    first = (rows - num) // 2
    part = slice(first, first + num)

    band = before[part].reshape(-1), after[part].reshape(-1)

    def size(predictor: Predictor) -> float:
        frame = _encode(*band, dtype, first * columns, predictor)
        return len(predictor.coded) + len(frame) * rows / num

    best, least = NO_PREDICTOR, size(NO_PREDICTOR)
    for rank in ranks:
        predictor = _quantised(*(matrix[:, :rank] for matrix in fitted))
        if (cost := size(predictor)) >= least:
            break
        best, least = predictor, cost
    return best


def _fit(
    before: _Matrix, after: _Matrix, dtype: DType, rank: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Left and right singular vectors, times their singular values, of what training added.

    Steps are cut off at twice the median of those that show, because few of them are much
    larger: weights that were nearly zero show steps of any size.
    """
    rows, columns = before.shape
    step = max(1, before.size // SAMPLE)
    shown = np.abs(_change(before.every(step), after.every(step), dtype))
    shown = shown[shown > 0]
    if shown.size < 64:
        return None
    typical = np.float32(np.median(shown))
    height = max(1, BLOCK // columns)

    def blocks() -> Iterator[tuple[slice, NDArray[np.float32]]]:
        for start in range(0, rows, height):
            part = slice(start, start + height)
            with np.errstate(over="ignore"):
                block = _change(before[part], after[part], dtype) / typical
            yield part, np.clip(block, -2, 2)

    # A small matrix is kept, a large one is computed in every pass.
    kept = list(blocks()) if before.size <= 4 * BLOCK else None
    random = np.random.default_rng(0)
    right = random.standard_normal((columns, rank + 4)).astype(np.float32)
    for _ in range(NUM_PASSES):
        right = np.linalg.qr(right)[0]
        turned = np.zeros_like(right)
        for _, block in kept or blocks():
            turned += block.T @ (block @ right)
        right = turned
    right = np.linalg.qr(right)[0]
    left = np.empty((rows, rank + 4), np.float32)
    for part, block in kept or blocks():
        left[part] = block @ right
    turn = np.linalg.eigh(left.T @ left)[1][:, ::-1]
    return (left @ turn)[:, :rank], (right @ turn)[:, :rank]


def _change(before: Bits, after: Bits, dtype: DType) -> NDArray[np.float32]:
    """What training added, where it is a number and not more than fp32 can hold."""
    old, new = (bits.view(dtype.storage).astype(np.float32) for bits in (before, after))
    with np.errstate(invalid="ignore", over="ignore"):
        change = new - old
    change[~np.isfinite(change)] = 0
    return change


def _quantised(left: NDArray[np.float32], right: NDArray[np.float32]) -> Predictor:
    """A predictor of factors in steps of half their root mean square, and weights."""
    sizes = np.sqrt((left.astype(np.float64) ** 2).sum(0))
    sizes[sizes == 0] = 1
    weights = np.maximum(1, np.round(sizes / sizes.max() * MOST_WEIGHT)).astype("<u2")
    steps = [
        np.clip(np.round(2 * np.sqrt(len(matrix)) * matrix / size), -128, 127).astype(np.int32).T
        for matrix, size in ((left, sizes), (right, 1))
    ]
    factors = np.ascontiguousarray(np.concatenate(steps, axis=1))
    rank = len(factors)
    out = np.empty(factors.size + 8, np.uint32)
    num_words = kernels.encode_factors(factors, *_factor_tables(rank), out)
    weighted = np.ascontiguousarray((steps[0] * weights[:, None].astype(np.int32)).T)
    every = max(1, len(weighted) * right.shape[0] // SAMPLE)
    predictions = np.abs(weighted[::every] @ steps[1])
    reach = max(16.0, float(np.quantile(predictions, 0.97)))
    scale = min(int(15 * 2**32 / reach), 2**32 - 1)
    words = out[:num_words].astype("<u4").tobytes()
    coded = bytes([rank]) + scale.to_bytes(4, "little") + weights.tobytes() + words
    return Predictor(coded, weighted, np.ascontiguousarray(steps[1]), scale)
