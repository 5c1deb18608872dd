"""Pairs of arrays of bits that meet every edge: zeros, NaN, infinities, subnormals, boundaries."""

from __future__ import annotations

import numpy as np

from trimtab.elements.dtypes import Bits, DType


def edge_bits(dtype: DType) -> Bits:
    """Bits of the special values of a float dtype, and of their neighbours."""
    sign = 1 << (8 * dtype.num_bytes - 1)
    top = dtype.largest_magnitude
    one = int(np.array(1, dtype=dtype.storage).view(dtype.bits))
    magnitudes = {0, 1, 2, 3, one - 1, one, one + 1, top - 1, top, top + 1, sign - 1}
    both = [m for m in magnitudes if m < sign] + [m | sign for m in magnitudes if m < sign]
    return np.array(sorted(both), dtype=dtype.bits)


def edge_pair(dtype: DType) -> tuple[Bits, Bits]:
    """Every edge value against every other, as two square matrices."""
    edges = edge_bits(dtype)
    base, tuned = np.meshgrid(edges, edges, indexing="ij")
    return np.ascontiguousarray(base), np.ascontiguousarray(tuned)


def random_pair(
    dtype: DType, shape: tuple[int, int], density: float, seed: int, spread: float = 0.02
) -> tuple[Bits, Bits]:
    """Weights near zero with a share of them moved by a few ulp, or anywhere for integers."""
    rng = np.random.default_rng(seed)
    if dtype.is_float:
        base = dtype.encode(rng.normal(0, spread, shape))
    else:
        base = rng.integers(0, 256, (*shape, dtype.num_bytes), dtype=np.uint8)
        base = base.view(dtype.bits)[..., 0]
        if dtype.kind == "bool":
            base = base & dtype.bits.type(1)
    hit = rng.random(shape) < density
    step = rng.integers(1, 4, shape).astype(dtype.bits)
    tuned = np.where(hit, base ^ step if dtype.kind != "bool" else base ^ np.uint8(1), base)
    return np.ascontiguousarray(base), np.ascontiguousarray(tuned)
