"""Sets of positions as bytes: bits where a set is dense, gaps between its members where it is not.

Of a set of positions below `n`, the smallest of these is kept:

- `EMPTY`: nothing.
- `BITS`: one bit for each position, the first in the lowest bit of a byte.
- `GAPS8`, `GAPS16`: for each member one unsigned integer, how many positions lie between it and
  the member before (or position 0). The largest integer says instead that as many positions as
  its value have no member.

Bytes are little-endian. Near the density at which a step changes weights, 1 %, gaps take 1.1 bytes
for each member, where the entropy of random positions is 1.0. Decoding needs NumPy only; encoding
is compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

EMPTY, BITS, GAPS8, GAPS16 = range(4)

GAP_DTYPES: dict[int, np.dtype[Any]] = {GAPS8: np.dtype("u1"), GAPS16: np.dtype("<u2")}


def most_bytes(coding: int, num_members: int, num_positions: int) -> int:
    """Bytes that a set takes at most under a coding; only gaps can take fewer.

    Args:
        coding: One of the four.
        num_members: Size of the set.
        num_positions: Positions are below this.
    """
    if coding == EMPTY:
        return 0
    if coding == BITS:
        return -(-num_positions // 8)
    dtype = GAP_DTYPES[coding]
    return dtype.itemsize * (num_members + num_positions // int(np.iinfo(dtype).max))


def cheapest(num_members: int, num_positions: int) -> int:
    """The coding that takes fewest bytes at most."""
    if not num_members:
        return EMPTY
    codings = (GAPS8, GAPS16, BITS)
    return min(codings, key=lambda coding: most_bytes(coding, num_members, num_positions))


def encode(words: NDArray[np.uint64], num_elements: int) -> tuple[int, bytes]:
    """Encode a set; `decode` is the inverse.

    Args:
        words: The set as 64-bit words, the first element in the lowest bit of the first.
        num_elements: Elements that can be in it.

    Returns:
        Its coding and its bytes.
    """
    from trimtab.elements.set_kernels import encode_gaps, num_members  # loads Numba

    members = int(num_members(words))
    coding = cheapest(members, num_elements)
    size = most_bytes(coding, members, num_elements)
    if coding == BITS:
        return coding, words.view(np.uint8)[:size].tobytes()
    if coding not in GAP_DTYPES:
        return coding, b""
    dtype = GAP_DTYPES[coding]
    out = np.empty(size // dtype.itemsize, dtype)
    return coding, out[: encode_gaps(words, out, int(np.iinfo(dtype).max))].tobytes()


def decode(coding: int, content: bytes, num_positions: int) -> NDArray[np.int64]:
    """The positions of a set, ascending.

    Args:
        coding: How it was coded.
        content: The bytes. Memory for 8 bytes to each of their bits may be needed.
        num_positions: Positions are below this.

    Raises:
        ValueError: The bytes are no such set.
    """
    if coding == EMPTY:
        if content:
            raise ValueError("an empty set takes no bytes")
        return np.empty(0, np.int64)
    if coding == BITS:
        if len(content) != most_bytes(BITS, 0, num_positions):
            raise ValueError(f"{len(content)} bytes hold no bits for {num_positions} positions")
        bits = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")
        if bits[num_positions:].any():
            raise ValueError("bits are set after the last position")
        return np.flatnonzero(bits)
    if coding not in GAP_DTYPES:
        raise ValueError(f"there is no coding {coding}")
    dtype = GAP_DTYPES[coding]
    if len(content) % dtype.itemsize:
        raise ValueError(f"{len(content)} bytes are no {8 * dtype.itemsize}-bit integers")
    gaps = np.frombuffer(content, dtype).astype(np.int64)
    is_member = gaps != np.iinfo(dtype).max
    ends = np.cumsum(gaps + is_member)
    if len(ends) and ends[-1] > num_positions:
        raise ValueError(f"a gap leads beyond the {num_positions} positions")
    positions: NDArray[np.int64] = ends[is_member] - 1
    return positions
