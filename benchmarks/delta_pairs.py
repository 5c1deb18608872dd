"""Generated pairs of a base and a tuned checkpoint, bf16, alike every time.

`t20` and `t01` move elements by one to three steps of the dtype, each with a probability that falls
as 1 / |w|; `a20` and `a01` add a normal step to fp32 weights that both checkpoints are roundings
of. No training moves weights like that: their use is that anybody can generate them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.safetensors import file_start

TENSORS, SIDE = 8, 2048
"""Of the synthetic pairs: 8 square matrices, 67 MB."""

SHARES: Mapping[str, float] = {"t20": 0.2045, "t01": 0.0102, "a20": 0.353, "a01": 0.0348}
"""Pair -> share of the elements that change."""

DISTANCES = (0.85, 0.12, 0.03)
"""Shares of the changes of `t20` and `t01` by one, two and three steps."""

PIECE = 1 << 22
"""Elements that are generated together."""

F32 = NDArray[np.float32]
U16 = NDArray[np.uint16]
Tune = Callable[[np.random.Generator, F32], U16]


def rounded(floats: F32) -> U16:
    """To bf16, to the nearest, as bits; ties go up."""
    return ((floats.view(np.uint32) + np.uint32(1 << 15)) >> 16).astype(np.uint16)


def write_synthetic(folder: Path, name: str) -> tuple[Path, Path]:
    """A pair of `SHARES`, unless it is there."""

    def with_strength(strength: float) -> Tune:
        return lambda rng, floats: TUNES[name[0]](rng, floats, strength)

    low, high = 1e-9, 1.0
    while high / low > 1.001:  # the strength at which as many elements change as asked for
        middle = float(np.sqrt(low * high))
        rng = np.random.default_rng(1)
        floats = _weights(rng, 1 << 18)
        share = np.mean(rounded(floats) != with_strength(middle)(rng, floats))
        low, high = (middle, high) if share < SHARES[name] else (low, middle)
    return write_pair(folder, TENSORS, SIDE, with_strength(low))


def _by_size(rng: np.random.Generator, floats: F32, strength: float) -> U16:
    """One to three steps up or down, more often for small weights."""
    bits = rounded(floats)
    moves = rng.random(floats.size, np.float32) * np.abs(floats) < strength
    steps = rng.choice([1, 2, 3], floats.size, p=DISTANCES) * rng.choice([-1, 1], floats.size)
    return np.where(moves, bits + steps, bits).astype(np.uint16)


def _by_adding(rng: np.random.Generator, floats: F32, strength: float) -> U16:
    """A normal step in fp32, then rounding."""
    return rounded(floats + np.float32(strength) * rng.standard_normal(floats.size, np.float32))


TUNES: Mapping[str, Callable[[np.random.Generator, F32, float], U16]] = {
    "t": _by_size,
    "a": _by_adding,
}


def write_pair(folder: Path, num_tensors: int, side: int, tune: Tune) -> tuple[Path, Path]:
    """Write a base of normal weights and a tuned checkpoint, unless they are there.

    Args:
        folder: Their folders, `base` and `tuned`, are made in it.
        num_tensors: Square matrices of a checkpoint.
        side: Rows and columns of a matrix.
        tune: Tuned bits of some weights.

    Returns:
        The two folders.
    """
    rng = np.random.default_rng(0)
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(num_tensors)]
    start = file_start(dict.fromkeys(names, ("BF16", (side, side))), {"format": "pt"})
    paths = folder / "base", folder / "tuned"
    if (paths[1] / "config.json").exists():
        return paths
    for path in paths:
        path.mkdir(parents=True, exist_ok=True)
    with (
        (paths[0] / "model.safetensors").open("wb") as base,
        (paths[1] / "model.safetensors").open("wb") as tuned,
    ):
        base.write(start)
        tuned.write(start)
        for _ in range(num_tensors * side * side // PIECE):
            floats = _weights(rng, PIECE)
            base.write(rounded(floats).tobytes())
            tuned.write(tune(rng, floats).tobytes())
    for path in paths:  # last, so that what was interrupted is written again
        (path / "config.json").write_text("{}")
    return paths


def _weights(rng: np.random.Generator, size: int) -> F32:
    return np.float32(0.02) * rng.standard_normal(size, np.float32)
