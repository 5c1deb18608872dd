"""Random bits with an exact number of ones: the control that every mask is shown beside.

Every subset of that size is equally likely. Each element is first selected by itself with nearly
the right probability; then elements drawn at random are added, or taken away, until the number is
right. Given how many the first round selected, all subsets of that size are equally likely by
symmetry, and adding or removing uniformly keeps it so: the probability of the first round decides
only how much is left to mend (about the square root of the number of elements).

Memory is that of the bits. Only raw output of NumPy's PCG64 is used, which does not change between
versions of NumPy as its distributions may: a seed gives the same mask everywhere.
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
"""Most positions drawn at once to mend the count."""


def random_tensor(
    shape: tuple[int, ...], num_selected: int, *, seed: int, name: str
) -> PackedTensor:
    """Select an exact number of elements of a tensor, uniformly at random.

    Args:
        shape: Of the tensor.
        num_selected: How many to select, at most as many as there are.
        seed: Any integer.
        name: Of the tensor. With the seed it decides the draw, whatever is drawn before or after.
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
    """Lots for elements of several strata, an exact number of which win in each, all alike.

    The elements come in order, some at a time, and each draws the next lot of its stratum. Which
    lots win is decided for all of a stratum beforehand, so every choice of so many of its elements
    is equally likely, and memory is one bit for each.
    """

    def __init__(self, sizes: Sequence[int], nums: Sequence[int], *, seed: int, name: str) -> None:
        """Decide which lots win.

        Args:
            sizes: Elements that will come, for each stratum.
            nums: How many of them win, for each stratum.
            seed: Any integer.
            name: With the seed it decides the draw: a single stratum wins what `random_tensor`
                selects of a tensor of that size and name, several each have a name of their own.
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
        """Draw for the elements that come next.

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
    """Flip `num` bits of those that have `value`, each drawn uniformly from those left."""
    batch = 64
    while num:
        positions = _positions(generator, num_elements, batch)
        positions = positions[_bits_at(bits, positions) == value]
        # Only the first appearance of a position counts: then the bit has the value no more.
        positions = positions[np.sort(np.unique(positions, return_index=True)[1])][:num]
        flips = np.left_shift(np.uint8(1), (positions & np.uint64(7)).astype(np.uint8))
        np.bitwise_xor.at(bits, (positions >> np.uint64(3)).astype(np.int64), flips)
        num -= len(positions)
        batch = min(2 * batch, MAX_BATCH)


def _bits_at(bits: NDArray[np.uint8], positions: NDArray[np.uint64]) -> NDArray[np.uint8]:
    holding = bits[(positions >> np.uint64(3)).astype(np.int64)]
    return holding >> (positions & np.uint64(7)).astype(np.uint8) & np.uint8(1)


def _positions(generator: np.random.PCG64, num_elements: int, num: int) -> NDArray[np.uint64]:
    """Independent uniform positions: `num` of as many bits as needed, less those too large."""
    width = max((num_elements - 1).bit_length(), 1)
    drawn = _raw(generator, num) >> np.uint64(64 - width)
    return drawn[drawn < num_elements]


def _raw(generator: np.random.PCG64, count: int) -> NDArray[np.uint64]:
    raw: NDArray[np.uint64] = generator.random_raw(count)
    return raw
