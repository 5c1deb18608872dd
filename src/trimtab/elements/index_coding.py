"""Encode sets of positions as bytes: a bitmap for dense sets, gaps between members for sparse ones.

For a set of positions below `n`, the smallest of these encodings is used:

- `EMPTY`: nothing.
- `BITS`: one bit for each position, the first in the lowest bit of a byte.
- `GAPS8`, `GAPS16`: for each member an unsigned integer, the number of positions between it and the
  previous member (or position 0). The largest integer means that many positions without a member.

Bytes are little-endian. At a density of 1 %, that of a training step, gaps take 1.1 bytes for each
member; the entropy of random positions is 1.0. Decoding needs only NumPy; encoding is compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

EMPTY, BITS, GAPS8, GAPS16 = range(4)

GAP_DTYPES: dict[int, np.dtype[Any]] = {GAPS8: np.dtype("u1"), GAPS16: np.dtype("<u2")}


def most_bytes(coding: int, num_members: int, num_positions: int) -> int:
    """Upper bound on the size of a set under an encoding; only gaps can take fewer bytes.

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
    """The encoding with the smallest upper bound."""
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
    """Decode a set to its positions, ascending.

    Args:
        coding: One of the four.
        content: The bytes. Decoding may need 8 bytes of memory for each of their bits.
        num_positions: Positions are below this.

    Raises:
        ValueError: The bytes are not such a set.
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
