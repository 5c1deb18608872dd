"""Read one side of a pair in chunks: the stored bytes are hashed, then become elements.

Bytes are read once, in order, into a buffer that is used again for every chunk; so memory is the
size of a chunk, and the hash is of the file's own bytes whatever is done to them afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from trimtab.checkpoints.names import Rectangle
from trimtab.checkpoints.pairing import num_columns, num_rows
from trimtab.checkpoints.quantized import BlockScale, dequantize_blocks
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.elements.dtypes import Bits, DType

__all__ = ["Chunk", "Source", "chunks_of", "new_buffer", "overlaps"]

CHUNK_ELEMENTS = 1 << 19
"""Elements read at once: 1 MB of bf16, so that both sides and what is packed stay in the cache."""


@dataclass(frozen=True)
class Chunk:
    """A rectangle of a tensor's 2-D view that is contiguous in the file."""

    row: int
    num_rows: int
    column: int
    num_columns: int


def chunks_of(shape: tuple[int, ...]) -> Iterator[Chunk]:
    """Tile a tensor, in order, with whole rows or, where a row is too long, pieces of one."""
    rows, columns = num_rows(shape), num_columns(shape)
    if rows == 0 or columns == 0:
        return
    if columns > CHUNK_ELEMENTS:
        for row in range(rows):
            for column in range(0, columns, CHUNK_ELEMENTS):
                yield Chunk(row, 1, column, min(CHUNK_ELEMENTS, columns - column))
        return
    height = CHUNK_ELEMENTS // columns
    for row in range(0, rows, height):
        yield Chunk(row, min(height, rows - row), 0, columns)


def overlaps(
    rectangles: Iterable[Rectangle], chunk: Chunk
) -> Iterator[tuple[tuple[slice, slice], int, int]]:
    """Where a part of a tensor lies in a chunk.

    Args:
        rectangles: Of the part, one below the other in the part's own 2-D view.
        chunk: Of the tensor.

    Yields:
        Slices of the chunk, and the row and the column of the part at which they start.
    """
    row_of_part = 0
    for r in rectangles:
        top = max(r.row_start, chunk.row)
        bottom = min(r.row_stop, chunk.row + chunk.num_rows)
        left = max(r.column_start, chunk.column)
        right = min(r.column_stop, chunk.column + chunk.num_columns)
        if top < bottom and left < right:
            rows = slice(top - chunk.row, bottom - chunk.row)
            columns = slice(left - chunk.column, right - chunk.column)
            yield (rows, columns), row_of_part + top - r.row_start, left - r.column_start
        row_of_part += r.row_stop - r.row_start


class Source:
    """One stored tensor, read from its first byte to its last."""

    def __init__(
        self,
        tensor: StoredTensor,
        dtype: DType,
        scale: BlockScale | None,
        buffer: NDArray[np.uint8],
    ) -> None:
        """Prepare to read.

        Args:
            tensor: What to read.
            dtype: In which `read` returns elements; others than the stored one are rounded.
            scale: Scales to multiply in, or None; then every chunk is of the tensor's 2-D view.
            buffer: Bytes for `CHUNK_ELEMENTS` elements of any dtype; the elements that `read`
                returns may lie in it.
        """
        self._tensor = tensor
        self._dtype = dtype
        self._buffer = buffer
        self._position = 0
        self._hasher = xxhash.xxh3_128()
        self._scales = None if scale is None else scale.read()

    def read(self, chunk: Chunk) -> Bits:
        """Elements of the next chunk, shape `[rows, columns]`, valid until the next call."""
        stored = self._next(chunk.num_rows * chunk.num_columns)
        bits: Bits = stored.view(self._tensor.dtype.bits)
        bits = bits.reshape(chunk.num_rows, chunk.num_columns)
        if self._scales is not None:
            scales, block = self._scales
            columns = chunk.column, num_columns(self._tensor.shape)
            values: NDArray[Any] = dequantize_blocks(
                bits, self._tensor.dtype, scales, chunk.row, block, columns
            )
        elif self._tensor.dtype == self._dtype:
            return bits
        else:
            values = self._tensor.dtype.decode(bits)
        return self._dtype.encode(values)

    def finish(self) -> str:
        """Hash what was not read yet, and return the xxh3-128 of all bytes, in hexadecimal."""
        while (left := self._tensor.num_bytes - self._position) > 0:
            self._next(min(left // self._tensor.dtype.num_bytes, CHUNK_ELEMENTS))
        return self._hasher.hexdigest()

    def _next(self, num_elements: int) -> NDArray[np.uint8]:
        stored = self._buffer[: num_elements * self._tensor.dtype.num_bytes]
        self._tensor.read_into(self._position, stored)
        self._position += len(stored)
        self._hasher.update(stored.data)
        return stored


def new_buffer() -> NDArray[np.uint8]:
    """A buffer for one `Source`."""
    return np.empty(CHUNK_ELEMENTS * 8, dtype=np.uint8)
