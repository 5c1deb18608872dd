"""Dequantise block-scaled fp8 weights, as DeepSeek-V3 stores them.

A weight `[rows, columns]` of fp8 comes with `weight_scale_inv` `[ceil(rows / block_rows),
ceil(columns / block_columns)]`; despite its name it is multiplied, not divided by.
"""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits, DType
from trimtab.errors import CheckpointError

__all__ = ["dequantize_blocks"]


def dequantize_blocks(
    bits: Bits,
    dtype: DType,
    scales: NDArray[np.float32],
    row_start: int,
    block: tuple[int, int],
) -> NDArray[np.float32]:
    """Values of some rows of a block-quantised weight.

    Args:
        bits: `[num_rows, columns]` stored elements, rows `row_start` and following of the weight.
        dtype: An fp8 dtype.
        scales: `[block rows, block columns]` scales of the whole weight.
        row_start: Row of the weight at which `bits` starts; any row, not only a block's first.
        block: Rows and columns of a block; blocks at the lower and right edge may be cut off.

    Returns:
        `[num_rows, columns]` float32: element times the scale of its block, rounded once.

    Raises:
        CheckpointError: The scales do not cover the weight.

    Source:
        `weight_dequant` in DeepSeek-V3 inference/kernel.py, which multiplies in float32 too.
    """
    num_rows, num_columns = bits.shape
    row_stop = row_start + num_rows
    if scales.shape[0] < ceil(row_stop / block[0]) or scales.shape[1] != ceil(
        num_columns / block[1]
    ):
        raise CheckpointError(
            f"block scales of shape {scales.shape} with blocks of {block[0]} × {block[1]} do not "
            f"fit a weight of {num_columns} columns and at least {row_stop} rows"
        )
    of_row = np.arange(row_start, row_stop) // block[0]
    of_column = np.arange(num_columns) // block[1]
    values: NDArray[np.float32] = bits.view(dtype.storage).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        values *= scales[of_row][:, of_column]
    return values
