"""The rank analysis: its control, its summary, what it skips, and that seeds decide it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trimtab.elements.spectrum import FIGURES, exact_ranks
from trimtab.measure.rank import RankAnalysis, random_control


def structured(shape: tuple[int, int], rows: int) -> NDArray[np.float32]:
    """An update of some rows only: low rank, unlike a random one of its density."""
    update = np.zeros(shape, dtype=np.float32)
    update[:rows] = 1e-5 * np.random.default_rng(0).standard_normal((rows, shape[1]))
    return update


def add(analysis: RankAnalysis, name: str, update: NDArray[Any]) -> None:
    """Give an analysis a tensor that was 0 before."""
    analysis.add(name, np.zeros_like(update), update)


def figures(result: dict[str, Any], name: str, side: str) -> dict[str, float]:
    return {figure: result["by_tensor"][name][side][figure]["value"] for figure in FIGURES}


def test_ranks_equal_those_of_an_svd_and_the_control_differs() -> None:
    update = structured((60, 80), rows=12)
    before = update.copy()
    analysis = RankAnalysis()
    add(analysis, "q", update)
    np.testing.assert_array_equal(update, before)
    result = analysis.to_dict()
    expected = exact_ranks(np.linalg.svd(update.astype(np.float64), compute_uv=False), (60, 80))
    assert figures(result, "q", "update") == pytest.approx(expected)
    assert result["by_tensor"]["q"]["method"] == "exact"
    assert result["by_tensor"]["q"]["update"]["matrix_rank"] == {
        "value": 12.0,
        "fraction": 12 / 60,
        "error": 0.0,
    }
    assert result["by_tensor"]["q"]["random"]["matrix_rank"]["value"] == 60


def test_the_control_has_the_elements_of_the_update_in_random_places() -> None:
    update = structured((20, 30), rows=3)
    before = update.copy()
    control = random_control(update, np.random.default_rng(0))
    assert control.dtype == update.dtype
    np.testing.assert_array_equal(update, before)
    np.testing.assert_array_equal(np.sort(control, axis=None), np.sort(update, axis=None))
    assert np.count_nonzero(control.any(axis=1)) > 15
    # Every place is as likely as another: 90 of 600 elements, so 0.15 of the controls each.
    rng = np.random.default_rng(1)
    hits = sum(random_control(update, rng) != 0 for _ in range(400))
    assert np.all(np.abs(hits / 400 - 0.15) < 5 * np.sqrt(0.15 * 0.85 / 400))


def test_larger_matrices_are_estimated_with_an_error() -> None:
    update = structured((150, 160), rows=100)
    exact, estimate = RankAnalysis(), RankAnalysis(exact_up_to=149)
    for analysis in (exact, estimate):
        add(analysis, "q", update)
    row = estimate.to_dict()["by_tensor"]["q"]
    assert row["method"] == "estimate"
    for side in ("update", "random"):
        expected = figures(exact.to_dict(), "q", side)
        for figure in FIGURES:
            entry = row[side][figure]
            assert abs(entry["value"] - expected[figure]) <= 4 * entry["error"] + 1e-6
            assert entry["fraction"] == entry["value"] / 150
    assert row["update"]["entropy_rank"]["error"] > 0


def test_result_depends_on_seed_and_name_not_on_order() -> None:
    tensors = {f"layers.{i}.q": structured((30, 40), rows=5 + i) for i in range(3)}
    results = []
    for names, seed in ((list(tensors), 0), (list(tensors)[::-1], 0), (list(tensors), 1)):
        analysis = RankAnalysis(seed=seed, exact_up_to=20)
        for name in names:
            add(analysis, name, tensors[name])
        results.append(analysis.to_dict()["by_tensor"])
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_summary_has_the_least_and_the_mean_over_matrices_zero_updates_included() -> None:
    analysis = RankAnalysis()
    add(analysis, "a", structured((20, 20), rows=5))
    add(analysis, "b", structured((40, 60), rows=40))
    add(analysis, "frozen", np.zeros((8, 8), dtype=np.float32))
    result = analysis.to_dict()
    assert figures(result, "frozen", "update") == dict.fromkeys(FIGURES, 0.0)
    assert result["num_matrices"] == 3
    assert result["num_zero_updates"] == 1
    assert result["summary"]["matrix_rank"]["min"] == 0
    assert result["summary"]["matrix_rank"]["mean"] == pytest.approx((5 / 20 + 1 + 0) / 3)
    assert result["summary"]["matrix_rank"]["random_min"] == 0
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_stacks_of_experts_are_taken_matrix_by_matrix() -> None:
    stack = np.stack([structured((10, 12), rows=2), structured((10, 12), rows=4)])
    analysis = RankAnalysis()
    add(analysis, "experts.up_proj", stack)
    result = analysis.to_dict()
    assert list(result["by_tensor"]) == ["experts.up_proj[0]", "experts.up_proj[1]"]
    assert figures(result, "experts.up_proj[1]", "update")["matrix_rank"] == 4


def test_what_cannot_be_analysed_is_listed_with_the_reason() -> None:
    analysis = RankAnalysis(max_elements=100)
    add(analysis, "norm", np.ones(5))
    add(analysis, "scalar", np.float64(1.0) + np.zeros(()))
    add(analysis, "empty", np.zeros((0, 4)))
    add(analysis, "embed", np.zeros((11, 10)))
    add(analysis, "broken", np.array([[np.nan, np.inf], [-np.inf, 1.0]]))
    result = analysis.to_dict()
    assert result["by_tensor"] == {}
    assert {entry["name"]: entry["reason"] for entry in result["skipped"]} == {
        "norm": "not a matrix: it has 1 dimension",
        "scalar": "not a matrix: it has 0 dimensions",
        "empty": "it has no elements",
        "embed": "110 elements are more than the limit of 100",
        "broken": "3 elements are NaN or infinite",
    }
    assert result["skipped"][3]["shape"] == [11, 10]
    assert result["summary"]["matrix_rank"] == dict.fromkeys(
        ("min", "mean", "random_min", "random_mean")
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("exact_up_to", [0, 4096])
def test_smallest_matrices_have_rank_1(shape: tuple[int, int], exact_up_to: int) -> None:
    analysis = RankAnalysis(exact_up_to=exact_up_to)
    add(analysis, "x", np.full(shape, 1e-3, dtype=np.float32))
    assert list(figures(analysis.to_dict(), "x", "update").values()) == pytest.approx([1.0] * 5)


def test_huge_finite_updates_are_not_taken_for_infinite() -> None:
    analysis = RankAnalysis()
    add(analysis, "x", np.diag([3e38, 3e38]).astype(np.float32))
    assert figures(analysis.to_dict(), "x", "update")["matrix_rank"] == 2
