"""Criteria as people write them, and the facts about bf16 that the docs state."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.elements.criteria import Criterion, changed, parse_criterion
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import CriterionError

BF16 = DTYPES["BF16"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("bits", "bits"),
        (" value ", "value"),
        ("atol=1e-5", "atol=1e-05"),
        ("atol=0", "atol=0"),
        ("atol=0.00001", "atol=1e-05"),
        ("strict_atol=1e-5", "strict_atol=1e-05"),
        ("rel=1e-3", "rel=0.001"),
        ("atol=1.23456789e-6", "atol=1.23456789e-06"),
    ],
)
def test_parse(text: str, key: str) -> None:
    criterion = parse_criterion(text)
    assert criterion.key == key
    assert parse_criterion(key) == criterion


@pytest.mark.parametrize(
    "text",
    ["", "exact", "bits=1", "atol", "atol=", "atol=x", "atol=-1", "rel=nan", "strict_atol=0"],
)
def test_what_is_no_criterion_is_refused(text: str) -> None:
    with pytest.raises(CriterionError, match="criterion"):
        parse_criterion(text)


def neighbours() -> tuple[np.ndarray, np.ndarray]:
    """Every positive normal bf16 number and the next larger one."""
    base = np.arange(0x0080, 0x7F7F, dtype=np.uint16)
    return base, base + np.uint16(1)


def test_below_2_to_the_minus_9_a_tolerance_of_1e_5_hides_one_ulp() -> None:
    base, tuned = neighbours()
    hidden = ~changed(base, tuned, BF16, Criterion("atol", 1e-5))
    np.testing.assert_array_equal(hidden, BF16.decode(base) < 2.0**-9)


def test_the_relative_criterion_is_bit_equality_for_normal_numbers() -> None:
    """arXiv 2511.08567 App. E, which needs η < 2**-9."""
    base, tuned = neighbours()
    for before, after in ((base, tuned), (tuned, base)):
        assert changed(before, after, BF16, Criterion("rel", 1e-3)).all()
    assert not changed(base, base, BF16, Criterion("rel", 1e-3)).any()


def test_inclusive_and_strict_differ_only_at_the_tolerance() -> None:
    tolerance = 2.0**-17  # a bf16 number, so that a difference can be exactly this
    base = BF16.encode(np.array([0.0, 0.0, 0.0], dtype=np.float32))
    tuned = BF16.encode(np.array([2.0**-18, 2.0**-17, 2.0**-16], dtype=np.float32))
    inclusive = changed(base, tuned, BF16, Criterion("atol", tolerance))
    strict = changed(base, tuned, BF16, Criterion("strict_atol", tolerance))
    assert inclusive.tolist() == [False, False, True]
    assert strict.tolist() == [False, True, True]


def test_zeros_and_nan() -> None:
    zero, minus, nan = np.array([0x0000, 0x8000, 0x7FC0], dtype=np.uint16)
    base, tuned = np.array([zero, nan]), np.array([minus, nan])
    expected = {"bits": [True, False], "value": [False, True], "atol=0": [False, True]}
    for text, answer in expected.items():
        assert changed(base, tuned, BF16, parse_criterion(text)).tolist() == answer
