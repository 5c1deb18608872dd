"""What two masks share, against hand-computed figures and against the published table."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from trimtab.errors import AnalysisError
from trimtab.masks.overlap_chance import NULLS, Shared
from trimtab.results.urn import Strata

TABLE_4 = {
    # Axis: densities of the two (1 - s), o1, o2 as printed; then derived by hand from these.
    "seed": ((0.367, 0.367), (0.605, 0.606), 1.65, 0.434, 0.225, (1.0, 1.0)),
    "data": ((0.367, 0.146), (0.267, 0.671), 1.83, 0.236, 0.117, (0.398, 1.0)),
    "seed, data, algorithm": ((0.129, 0.230), (0.591, 0.332), 2.57, 0.270, 0.090, (1.0, 0.561)),
}
"""Table 4 of arXiv 2505.11711. The numerators agree: o1 (1 - s1) = o2 (1 - s2), to its digits."""


@pytest.mark.parametrize("axis", TABLE_4)
def test_table_4_of_the_paper(axis: str) -> None:
    (density_1, density_2), (o1, o2), lift, jaccard, chance, ceiling = TABLE_4[axis]
    assert o1 * density_1 == pytest.approx(o2 * density_2, rel=4e-3)
    n = 10_000_000
    intersection = round(n * (o1 * density_1 + o2 * density_2) / 2)
    shared = Shared(n, round(n * density_1), round(n * density_2), intersection)
    assert shared.o1 == pytest.approx(o1, abs=1e-3)
    assert shared.o2 == pytest.approx(o2, abs=1e-3)
    assert shared.jaccard == pytest.approx(jaccard, abs=1e-3)
    against = shared.nulls["independent"]
    # What the paper calls random: the density of the other mask.
    assert against.chance.o1 == pytest.approx(density_2)
    assert against.chance.o2 == pytest.approx(density_1)
    assert against.chance.jaccard == pytest.approx(chance, abs=1e-3)
    assert against.lift == pytest.approx(lift, abs=0.01)
    assert against.ceiling[:2] == pytest.approx(ceiling, abs=1e-3)


def test_by_hand() -> None:
    shared = Shared(10, 4, 5, 3)
    assert shared.ratios == (3 / 4, 3 / 5, 3 / 6)
    against = shared.nulls["independent"]
    assert against.expected == 2.0
    assert against.deviation == pytest.approx((4 * 5 * 6 * 5 / (100 * 9)) ** 0.5)
    assert against.lift == 1.5
    assert against.z == pytest.approx(1 / against.deviation)
    assert against.chance == (0.5, 0.4, 2 / 7)
    assert against.ceiling == (1.0, 0.8, 4 / 5)
    # P(X >= 3) = (4·15 + 1·6) / 252... of C(10, 5) = 252 choices of the second mask.
    upper = (4 * 15 + 1 * 6) / 252
    assert 10**against.probability.log10_p == pytest.approx(2 * upper)
    assert list(shared.nulls) == ["independent"]


def test_finer_nulls_stand_beside_it() -> None:
    by_tensor = Strata(*np.array([[6, 4], [3, 1], [4, 1]]))
    shared = Shared(10, 4, 5, 3, {"per-tensor": by_tensor})
    against = shared.nulls["per-tensor"]
    assert against.expected == 3 * 4 / 6 + 1 * 1 / 4
    assert against.most == 4
    assert against.ceiling == (1.0, 4 / 5, 4 / 5)
    assert list(shared.nulls) == ["independent", "per-tensor"]


def test_nothing_to_divide_by() -> None:
    empty = Shared(10, 0, 5, 0)
    assert empty.ratios == (None, 0.0, 0.0)
    against = empty.nulls["independent"]
    assert (against.lift, against.z) == (None, None)
    assert against.probability == (0.0, "exact")
    nothing = Shared(0, 0, 0, 0)
    assert nothing.ratios == (None, None, None)
    assert nothing.to_dict()["lift"] is None
    everything = Shared(10, 10, 5, 5)
    assert everything.nulls["independent"].lift == 1.0
    assert everything.nulls["independent"].z is None


def test_counts_that_cannot_be() -> None:
    for counts in ((10, 4, 5, 6), (10, 8, 7, 4), (10, 11, 0, 0), (10, -1, 0, 0)):
        with pytest.raises(AnalysisError, match="cannot share"):
            Shared(*counts)


def test_plain_data_has_the_independent_null_on_top() -> None:
    data = Shared(10, 4, 5, 3).to_dict()
    assert (data["intersection"], data["o1"], data["o2"]) == (3, 0.75, 0.6)
    for key in ("chance", "ceiling"):
        assert data[key].keys() == {"o1", "o2", "jaccard"}
    for key, value in data["nulls"]["independent"].items():
        assert data[key] == value
    assert data["p"] == pytest.approx(10 ** data["log10_p"])
    assert data["p_method"] == "exact"


def test_the_order_of_the_masks_is_the_order_of_the_ratios() -> None:
    for one, other in combinations(((4, 5), (2, 9)), 2):
        for a, b in (one, other):
            forth, back = Shared(10, a, b, 2), Shared(10, b, a, 2)
            assert (forth.o1, forth.o2) == (back.o2, back.o1)
            assert forth.nulls["independent"].z == pytest.approx(back.nulls["independent"].z)


def test_nulls_are_named_from_coarse_to_fine() -> None:
    assert NULLS == ("independent", "per-tensor", "magnitude-matched")
