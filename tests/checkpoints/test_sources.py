"""Chunks tile a tensor in file order."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.checkpoints import stream
from trimtab.checkpoints.align import num_columns, num_rows
from trimtab.checkpoints.stream import chunks_of


@given(st.lists(st.integers(0, 9), max_size=3), st.integers(1, 40))
def test_chunks_tile_a_tensor_in_order(shape: list[int], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHUNK_ELEMENTS", limit)
        chunks = list(chunks_of(tuple(shape)))
    rows, columns = num_rows(tuple(shape)), num_columns(tuple(shape))
    assert rows * columns == prod(shape)
    flat = np.arange(rows * columns).reshape(rows, columns)
    seen = [
        flat[c.row : c.row + c.num_rows, c.column : c.column + c.num_columns].ravel()
        for c in chunks
    ]
    assert all(0 < len(piece) <= limit for piece in seen)
    if chunks:
        np.testing.assert_array_equal(np.concatenate(seen), flat.ravel())
    else:
        assert flat.size == 0
