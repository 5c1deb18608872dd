"""Dequantise weights of 8 bits that have one scale for each block, as fp8 weights are stored.

A weight `[rows, columns]` comes with scales `[ceil(rows / block_rows), ceil(columns /
block_columns)]`, which are multiplied: DeepSeek-V3's `weight_scale_inv`, whatever its name says,
and a `weight_scale` for each row, or for the whole tensor, whose blocks are that large.
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
    columns: tuple[int, int] | None = None,
) -> NDArray[np.float32]:
    """Values of some rows of a block-quantised weight, or of a piece of its rows.

    Args:
        bits: `[num_rows, columns]` stored elements, rows `row_start` and following of the weight.
        dtype: Of 8 bits: fp8 or an integer.
        scales: `[block rows, block columns]` scales of the whole weight.
        row_start: Row of the weight at which `bits` starts; any row, not only a block's first.
        block: Rows and columns of a block; blocks at the lower and right edge may be cut off.
        columns: Column at which `bits` starts, and columns of the whole weight; None if `bits` has
            whole rows.

    Returns:
        `[num_rows, columns]` float32: element times the scale of its block, rounded once.

    Raises:
        CheckpointError: The scales do not cover the weight.

    Source:
        `weight_dequant` in DeepSeek-V3 inference/kernel.py, which multiplies in float32 too.
    """
    num_rows, num_columns = bits.shape
    row_stop = row_start + num_rows
    column_start, of_weight = columns or (0, num_columns)
    if scales.shape[0] < ceil(row_stop / block[0]) or scales.shape[1] != ceil(of_weight / block[1]):
        raise CheckpointError(
            f"block scales of shape {scales.shape} with blocks of {block[0]} × {block[1]} do not "
            f"fit a weight of {of_weight} columns and at least {row_stop} rows"
        )
    of_row = np.arange(row_start, row_stop) // block[0]
    of_column = np.arange(column_start, column_start + num_columns) // block[1]
    values: NDArray[np.float32] = bits.view(dtype.storage).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        values *= scales[of_row][:, of_column]
    return values
