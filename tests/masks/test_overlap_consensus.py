"""Expected agreement of several masks, against every choice of them enumerated or sampled."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from trimtab.masks.overlap_chance import Consensus, Counted, one_urn


def counted(*rows: tuple[int, ...]) -> Counted:
    counts = np.array(rows, dtype=np.int64)
    return Counted(counts[:, 0], counts[:, 1:])


@pytest.mark.parametrize("sizes", [(2, 3), (1, 2, 3), (4, 2, 0), (2, 2, 2), (4, 4, 1)])
def test_as_all_choices_enumerated(sizes: tuple[int, ...]) -> None:
    n = 4
    choices = [list(combinations(range(n), size)) for size in sizes]
    by_count, common = [], []
    for drawn in product(*choices):
        times = np.bincount([element for mask in drawn for element in mask], minlength=n)
        by_count.append(np.bincount(times, minlength=len(sizes) + 1))
        common.append(by_count[-1][-1])
    strata = counted((n, *sizes))
    assert strata.expected_by_count == pytest.approx(np.mean(by_count, axis=0))
    assert strata.common_variance == pytest.approx(np.var(common), abs=1e-12)


def test_strata_add_up() -> None:
    rows = (5, 2, 3, 1), (8, 4, 4, 6), (1, 1, 1, 0), (0, 0, 0, 0)
    together = counted(*rows)
    apart = [counted(row) for row in rows]
    expected = sum(strata.expected_by_count for strata in apart)
    assert together.expected_by_count == pytest.approx(expected)
    assert together.expected_by_count.sum() == pytest.approx(14)
    variance = sum(strata.common_variance for strata in apart)
    assert together.common_variance == pytest.approx(variance)


@pytest.mark.parametrize(
    ("n", "a", "b"), [(50, 20, 30), (10**9, 10**8, 10**7), (7, 7, 3), (1, 1, 1)]
)
def test_two_masks_are_hypergeometric(n: int, a: int, b: int) -> None:
    strata = counted((n, a, b))
    urn = one_urn(n, a, b)
    assert strata.expected_by_count[-1] == pytest.approx(urn.expected)
    assert strata.common_variance == pytest.approx(urn.variance, rel=1e-6, abs=1e-9)


def test_what_all_share_beside_chance() -> None:
    consensus = Consensus((3, 4, 0, 1), {"independent": counted((8, 2, 3, 2))})
    assert (consensus.num_common, consensus.num_any) == (1, 5)
    expected = 8 * (2 / 8) * (3 / 8) * (2 / 8)
    assert consensus.common_lift("independent") == pytest.approx(1 / expected)
    data = consensus.to_dict()
    assert data["num_elements"] == 8
    assert data["common_share"] == 1 / 5
    null = data["nulls"]["independent"]
    assert null["common_z"] == pytest.approx((1 - expected) / null["common_deviation"])
    assert null["lift_by_count"][3] == pytest.approx(1 / expected)


def test_masks_that_select_nothing_expect_nothing() -> None:
    consensus = Consensus((8, 0, 0), {"independent": counted((8, 0, 3))})
    assert consensus.common_lift("independent") is None
    assert consensus.common_z("independent") is None
    assert Consensus((8, 0, 0), {}).to_dict()["common_share"] is None
