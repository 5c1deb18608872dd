"""Random bits with an exact number of ones: the control of every mask.

Each element is first selected independently with nearly the right probability; then randomly drawn
elements are added or removed until the number is right. By symmetry every subset of that size is
equally likely; the first probability only decides how much is left to correct (about the square
root
of the number of elements). Only raw output of NumPy's PCG64 is used, which is stable across
versions
of NumPy: a seed gives the same mask everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import xxhash
from numpy.typing import NDArray

from trimtab.masks.packed import PackedTensor, num_packed_bytes, unpacked

CHUNK_ELEMENTS = 1 << 20
"""Elements drawn at once; a multiple of 8."""

_NONE = np.zeros(0, dtype=np.uint8)

MAX_BATCH = 1 << 16
"""Most positions drawn at once to correct the count."""


def random_tensor(
    shape: tuple[int, ...], num_selected: int, *, seed: int, name: str
) -> PackedTensor:
    """Select an exact number of elements of a tensor, uniformly at random.

    Args:
        shape: Shape of the tensor.
        num_selected: Number of elements to select.
        seed: Any integer.
        name: Name of the tensor. With the seed it decides the draw, independent of other draws.
    """
    num_elements = prod(shape)
    generator = np.random.PCG64(xxhash.xxh3_128_intdigest(f"{seed}\0{name}".encode()))
    bits = np.empty(num_packed_bytes(num_elements), dtype=np.uint8)
    threshold = round(2**16 * num_selected / num_elements) if num_elements else 0
    for start in range(0, num_elements, CHUNK_ELEMENTS):
        count = min(CHUNK_ELEMENTS, num_elements - start)
        draws = _raw(generator, -(-count // 4)).view(np.uint16)[:count]
        drawn = np.packbits(draws < threshold, bitorder="little")
        bits[start // 8 : start // 8 + len(drawn)] = drawn
    surplus = PackedTensor.of(shape, bits).num_selected - num_selected
    if surplus:
        _flip(bits, num_elements, abs(surplus), surplus > 0, generator)
    return PackedTensor(shape, bits, num_selected)


class Lots:
    """Draws an exact number of winners in each of several strata, uniformly at random.

    Elements come in order, some at a time, and each takes the next lot of its stratum. All lots are
    decided beforehand, so every choice is equally likely, and memory is one bit for each element.
    """

    def __init__(self, sizes: Sequence[int], nums: Sequence[int], *, seed: int, name: str) -> None:
        """Decide which lots win.

        Args:
            sizes: Number of elements of each stratum.
            nums: Number of winners of each stratum.
            seed: Any integer.
            name: With the seed it decides the draw: a single stratum wins what `random_tensor`
                selects of a
                tensor of that size and name, several each have a name of their own.
        """
        names = (
            [name] if len(sizes) == 1 else [f"{name}\0{stratum}" for stratum in range(len(sizes))]
        )
        self._lots = [
            random_tensor((size,), num, seed=seed, name=own).bits if size else _NONE
            for size, num, own in zip(sizes, nums, names, strict=True)
        ]
        self._drawn = [0] * len(self._lots)

    def draw(self, strata: NDArray[np.uint16]) -> NDArray[np.bool_]:
        """Draw for the next elements.

        Args:
            strata: Stratum of each, flat.

        Returns:
            Whether each wins.
        """
        counts = np.bincount(strata, minlength=len(self._lots))
        present = np.flatnonzero(counts)
        if len(present) == 1:
            return self._next(int(present[0]), len(strata))
        order = np.argsort(strata, kind="stable")
        wins = np.empty(len(strata), dtype=np.bool_)
        wins[order] = np.concatenate(
            [self._next(stratum, int(counts[stratum])) for stratum in present.tolist()]
            or [np.empty(0, dtype=np.bool_)]
        )
        return wins

    def _next(self, stratum: int, count: int) -> NDArray[np.bool_]:
        start = self._drawn[stratum]
        self._drawn[stratum] = start + count
        return unpacked(self._lots[stratum], start, start + count)


def _flip(
    bits: NDArray[np.uint8], num_elements: int, num: int, value: bool, generator: np.random.PCG64
) -> None:
    """Flip `num` of the bits that equal `value`, drawn uniformly."""
    batch = 64
    while num:
        positions = _positions(generator, num_elements, batch)
        positions = positions[_bits_at(bits, positions) == value]
        # Duplicates are dropped: a bit is flipped once.
        positions = positions[np.sort(np.unique(positions, return_index=True)[1])][:num]
        flips = np.left_shift(np.uint8(1), (positions & np.uint64(7)).astype(np.uint8))
        np.bitwise_xor.at(bits, (positions >> np.uint64(3)).astype(np.int64), flips)
        num -= len(positions)
        batch = min(2 * batch, MAX_BATCH)


def _bits_at(bits: NDArray[np.uint8], positions: NDArray[np.uint64]) -> NDArray[np.uint8]:
    holding = bits[(positions >> np.uint64(3)).astype(np.int64)]
    return holding >> (positions & np.uint64(7)).astype(np.uint8) & np.uint8(1)


def _positions(generator: np.random.PCG64, num_elements: int, num: int) -> NDArray[np.uint64]:
    """Independent uniform positions: `num` draws, without those that are too large."""
    width = max((num_elements - 1).bit_length(), 1)
    drawn = _raw(generator, num) >> np.uint64(64 - width)
    return drawn[drawn < num_elements]


def _raw(generator: np.random.PCG64, count: int) -> NDArray[np.uint64]:
    raw: NDArray[np.uint64] = generator.random_raw(count)
    return raw
