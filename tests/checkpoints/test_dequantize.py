"""Dequantised blocks against a loop over elements, for any cut of the rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.checkpoints.quantized import dequantize_blocks
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import CheckpointError


@given(
    st.sampled_from(["F8_E4M3", "F8_E5M2"]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.data(),
)
def test_each_element_is_multiplied_by_the_scale_of_its_block(
    name: str, rows: int, columns: int, block: tuple[int, int], data: st.DataObject
) -> None:
    dtype = DTYPES[name]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    bits = rng.integers(0, 256, (rows, columns), dtype=np.uint8)
    num_blocks = (-(-rows // block[0]), -(-columns // block[1]))
    scales = rng.standard_normal(num_blocks).astype(np.float32)
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start, rows))
    found = dequantize_blocks(bits[start:stop], dtype, scales, start, block)
    assert found.dtype == np.float32
    assert found.shape == (stop - start, columns)
    values = dtype.decode(bits)
    for row in range(start, stop):
        for column in range(columns):
            scale = scales[row // block[0], column // block[1]]
            expected = np.float32(values[row, column]) * scale
            np.testing.assert_array_equal(found[row - start, column], expected)


@pytest.mark.parametrize("num_blocks", [(1, 2), (2, 1), (2, 3), (0, 0)])
def test_scales_of_another_shape_are_refused(num_blocks: tuple[int, int]) -> None:
    bits = np.zeros((4, 4), dtype=np.uint8)
    with pytest.raises(CheckpointError, match=r"block scales of shape .* do not fit"):
        dequantize_blocks(bits, DTYPES["F8_E4M3"], np.ones(num_blocks, np.float32), 0, (2, 2))
