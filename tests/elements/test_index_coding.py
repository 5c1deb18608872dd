"""Sets of positions as bytes: exact bytes, the smallest coding, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.elements import index_coding


def test_exact_bytes() -> None:
    assert index_coding.decode(index_coding.BITS, b"\x05\x80", 16).tolist() == [0, 2, 15]
    assert index_coding.decode(index_coding.GAPS8, b"\x00\x01\xff\x02", 300).tolist() == [0, 2, 260]
    assert index_coding.decode(index_coding.GAPS16, b"\x00\x01\x00\x00", 300).tolist() == [256, 257]
    assert index_coding.decode(index_coding.GAPS16, b"\xff\xff\x00\x00", 70_000).tolist() == [
        65_535
    ]
    assert index_coding.decode(index_coding.EMPTY, b"", 9).tolist() == []


@pytest.mark.parametrize(
    ("num_members", "coding"),
    [
        (0, index_coding.EMPTY),
        (1, index_coding.GAPS16),
        (10_000, index_coding.GAPS8),
        (200_000, index_coding.BITS),
    ],
)
def test_the_smallest_is_chosen(num_members: int, coding: int) -> None:
    assert index_coding.cheapest(num_members, 1_000_000) == coding


@pytest.mark.parametrize(
    ("coding", "content", "problem"),
    [
        (index_coding.EMPTY, b"\0", "takes no bytes"),
        (index_coding.BITS, b"\0", "hold no bits for 10"),
        (index_coding.BITS, b"\0\x04", "after the last"),
        (index_coding.GAPS8, b"\x09\x00", "beyond the 10"),
        (index_coding.GAPS8, b"\xff", "beyond the 10"),
        (index_coding.GAPS16, b"\0", "no 16-bit integers"),
        (9, b"", "no coding 9"),
    ],
)
def test_refusals(coding: int, content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        index_coding.decode(coding, content, 10)


def test_large_gaps_do_not_wrap_round() -> None:
    content = np.full(1 << 15, 0xFFFE, "<u2").tobytes()
    found = index_coding.decode(index_coding.GAPS16, content, 1 << 31)
    assert found[-1] == (1 << 15) * 0xFFFF - 1
