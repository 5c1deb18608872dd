"""Ties as bits and as positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.training.optimizers import kernels

pytestmark = pytest.mark.train


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_bits_are_numpys_and_come_back(flags: list[bool]) -> None:
    ties = torch.tensor(flags).nonzero().flatten().int()
    bits = kernels.ties_as_bits(ties, len(flags))
    assert bits.numpy().tobytes() == np.packbits(flags, bitorder="little").tobytes()
    back = kernels.ties_as_positions(bits)
    assert back.dtype == torch.int32
    assert torch.equal(back, ties)


def test_what_has_the_form_already_is_returned() -> None:
    ties = torch.tensor([2, 9], dtype=torch.int32)
    bits = kernels.ties_as_bits(ties, 12)
    assert kernels.ties_as_bits(bits, 12) is bits
    assert kernels.ties_as_positions(ties) is ties
