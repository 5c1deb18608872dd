"""Signed distance in units in the last place (ulp), sorted into labelled bins.

One ulp is one step along the representable values of the stored dtype, the smallest visible change.
Distances up to 8 have a bin each; beyond, a bin spans one octave (`9..16`, `17..32`, ...). Bin `i`
holds distances of tuned > base, bin `-i` those of tuned < base; in arrays bin `i` is at index
`CENTRE + i`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

EXACT = 8
"""Distances up to this one have a bin of their own."""

CENTRE = EXACT + 61
"""Index of distance 0, and the largest bin number: octaves up to 2**64."""

NUM_BINS = 2 * CENTRE + 1


def bin_of(distance: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Bin number of unsigned distances, 0 for 0.

    Beyond `EXACT` it is the bit length of `distance - 1`, moved to follow on.
    """
    octave = np.zeros(distance.shape, dtype=np.int64)
    rest = np.where(distance > 0, distance - np.uint64(1), np.uint64(0))
    for shift in (32, 16, 8, 4, 2, 1):
        high = rest >> np.uint64(shift)
        octave += np.where(high > 0, shift, 0)
        rest = np.where(high > 0, high, rest)
    bit_length = octave + (rest > 0)
    return np.where(distance <= EXACT, distance.astype(np.int64), bit_length + EXACT - 3)


def bin_bounds(number: int) -> tuple[int, int]:
    """Smallest and largest |distance| of a bin, given its number (or its negative)."""
    number = abs(number)
    if number <= EXACT:
        return number, number
    octave = number - EXACT + 3
    return (1 << (octave - 1)) + 1, 1 << octave


def labelled(bins: NDArray[np.int64]) -> dict[str, int]:
    """Counts of the bins that are not empty, by label (`"-17..-32"`, `"-1"`, `"1"`), ascending."""
    histogram: dict[str, int] = {}
    for index in np.flatnonzero(bins):
        number = int(index) - CENTRE
        if number == 0:
            continue
        low, high = bin_bounds(number)
        sign = "-" if number < 0 else ""
        label = f"{sign}{low}" if low == high else f"{sign}{low}..{sign}{high}"
        histogram[label] = int(bins[index])
    return histogram


def label_order(histogram: Mapping[str, int]) -> list[str]:
    """Labels of a histogram in ascending order of distance."""
    return sorted(histogram, key=lambda label: int(label.split("..")[0]))


def num_distances(label: str) -> int:
    """How many distances a label stands for."""
    low, _, high = label.partition("..")
    return abs(int(high or low) - int(low)) + 1
