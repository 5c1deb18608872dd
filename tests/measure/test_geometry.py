"""Geometry against an SVD in torch, brute-force masks, and what chance predicts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trimtab.elements.dtypes import DTYPES
from trimtab.errors import AnalysisError
from trimtab.measure.geometry import SHARES, GeometryAnalysis, mask_overlap

Matrix = NDArray[Any]


def bf16(values: Matrix) -> Matrix:
    """Rounded to bf16, as fp32: magnitudes that tie."""
    dtype = DTYPES["BF16"]
    return dtype.decode(dtype.encode(values.astype(np.float32))).astype(np.float32)


def pair(shape: tuple[int, int], density: float = 0.2, seed: int = 0) -> tuple[Matrix, Matrix]:
    rng = np.random.default_rng(seed)
    base = bf16(0.02 * rng.standard_normal(shape))
    moved = rng.random(shape) < density
    return base, np.where(moved, bf16(base + 1e-3 * rng.standard_normal(shape)), base)


def analysed(base: Matrix, tuned: Matrix, **settings: Any) -> dict[str, Any]:
    analysis = GeometryAnalysis(**settings)
    analysis.add("x", base, tuned)
    row: dict[str, Any] = analysis.to_dict()["by_tensor"]["x"]
    return row


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50)])
def test_every_figure_equals_its_definition_in_torch(shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    base, tuned = pair(shape)
    row = analysed(base, tuned, principal=0.2, mask=0.3)
    before, after = torch.from_numpy(base).double(), torch.from_numpy(tuned).double()
    update = after - before
    u, s, vh = torch.linalg.svd(before, full_matrices=False)
    k = row["k"]
    assert k == np.ceil(0.2 * min(shape))
    u, v = u[:, :k], vh[:k].T
    total = (update**2).sum()
    chances = {"energy_left": k / shape[0], "energy_right": k / shape[1]}
    chances["energy_both"] = chances["energy_left"] * chances["energy_right"]
    for name, part in (
        ("energy_left", u.T @ update),
        ("energy_right", update @ v),
        ("energy_both", u.T @ update @ v),
    ):
        assert row[name]["share"] == pytest.approx(float((part**2).sum() / total), rel=1e-5)
        assert row[name]["chance"] == pytest.approx(chances[name])
        assert row[name]["lift"] == pytest.approx(row[name]["share"] / chances[name])
    shifted = torch.linalg.svdvals(after)
    assert row["spectral_shift"] == pytest.approx(float((shifted - s).norm() / s.norm()), rel=1e-5)
    assert row["relative_update"] == pytest.approx(float(update.norm() / before.norm()))
    assert row["spectral_shift"] <= row["relative_update"]
    reconstruction = (u * s[:k]) @ vh[:k]
    top = torch.zeros(base.size, dtype=torch.bool)
    top[reconstruction.abs().flatten().topk(round(0.3 * base.size)).indices] = True
    changed = (update != 0).flatten()
    inside = float((top & changed).sum() / changed.sum())
    assert row["principal_mask"]["share"] == pytest.approx(inside, abs=2 / int(changed.sum()))


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=40),
    st.floats(0.01, 0.99),
    st.integers(0, 2**40 - 1),
)
def test_mask_overlap_is_the_mean_over_every_way_to_break_ties(
    scores: list[int], fraction: float, marks: int
) -> None:
    score = np.array(scores, dtype=np.float32)
    changed = np.array([bool(marks >> i & 1) for i in range(len(scores))])
    # Fill the mask level by level, each tied level evenly.
    room, expected = fraction * len(scores), 0.0
    for level in range(5):
        here = score == level
        taken = min(room, float(here.sum()))
        if taken:
            expected += changed[here].mean() * taken
        room -= taken
    assert mask_overlap(score, changed, fraction) == pytest.approx(expected, abs=1e-9)
    assert mask_overlap(score, np.ones_like(changed), fraction) == pytest.approx(
        fraction * len(scores)
    )


def test_updates_of_small_weights_are_all_in_the_low_magnitude_mask() -> None:
    base, _ = pair((40, 50))
    small = np.abs(base) < np.quantile(np.abs(base), 0.2)
    row = analysed(base, np.where(small, base + 1, base), mask=0.25)
    assert row["low_magnitude_mask"] == {"share": 1.0, "chance": 0.25, "lift": 4.0}
    assert row["principal_mask"]["lift"] < 1


def test_updates_along_principal_directions_are_all_inside_them() -> None:
    base, _ = pair((40, 50))
    u, s, vh = np.linalg.svd(base.astype(np.float64), full_matrices=False)
    inside = analysed(base.astype(np.float64), base + 0.1 * s[0] * np.outer(u[:, 0], vh[0]))
    for name in ("energy_left", "energy_right", "energy_both"):
        assert inside[name]["share"] == pytest.approx(1.0)
    last = analysed(base.astype(np.float64), base + 0.1 * s[-1] * np.outer(u[:, -1], vh[-1]))
    for name in ("energy_left", "energy_right", "energy_both"):
        assert last[name]["share"] == pytest.approx(0.0, abs=1e-9)


def test_random_updates_lie_where_chance_predicts() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((200, 300)).astype(np.float32)
    update = np.where(rng.random(base.shape) < 0.3, rng.standard_normal(base.shape), 0)
    row = analysed(base, base + update.astype(np.float32))
    for name in SHARES:
        assert row[name]["lift"] == pytest.approx(1, abs=0.12), name


def test_a_rotated_matrix_has_the_same_spectrum() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((30, 20))
    rotation = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    row = analysed(base, rotation @ base)
    assert row["spectral_shift"] < 1e-12
    assert row["relative_update"] > 1


def test_nothing_changed_gives_no_shares_and_no_shift() -> None:
    base, _ = pair((20, 30))
    row = analysed(base, base.copy())
    assert row["num_changed"] == 0
    assert row["spectral_shift"] == row["relative_update"] == 0
    assert all(row[name] is None for name in (*SHARES, "k"))


def test_a_base_of_zeros_has_no_geometry() -> None:
    row = analysed(np.zeros((4, 6)), np.ones((4, 6)))
    assert row["num_changed"] == 24
    assert all(row[name] is None for name in (*SHARES, "k", "spectral_shift", "relative_update"))


def test_a_base_of_low_rank_states_the_directions_that_it_has() -> None:
    base = np.outer(np.arange(1.0, 21), np.arange(1.0, 31))
    row = analysed(base, base + np.eye(20, 30), principal=0.5)
    assert row["k"] == 1
    assert row["energy_left"]["chance"] == 1 / 20


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1)])
def test_smallest_matrices(shape: tuple[int, int]) -> None:
    base = np.arange(1.0, 1 + shape[0] * shape[1], dtype=np.float32).reshape(shape)
    row = analysed(base, base * 2)
    assert row["energy_both"]["share"] == pytest.approx(1.0)
    assert row["spectral_shift"] == pytest.approx(1.0)
    assert row["low_magnitude_mask"]["lift"] == pytest.approx(1.0)


def test_summary_is_weighted_by_changed_elements() -> None:
    analysis = GeometryAnalysis()
    analysis.add("a", *pair((20, 30), density=0.1))
    analysis.add("b", *pair((60, 40), density=0.6, seed=1))
    analysis.add("frozen", *[pair((8, 8))[0]] * 2)
    result = analysis.to_dict()
    rows = [result["by_tensor"][name] for name in ("a", "b")]
    weights = [row["num_changed"] for row in rows]
    for name in SHARES:
        for part in ("share", "chance"):
            mean = np.average([row[name][part] for row in rows], weights=weights)
            assert result["summary"][name][part] == pytest.approx(mean)
        entry = result["summary"][name]
        assert entry["lift"] == pytest.approx(entry["share"] / entry["chance"])
    shift = np.average([row["spectral_shift"] for row in rows], weights=weights)
    assert result["summary"]["spectral_shift"] == pytest.approx(shift)
    assert (result["num_matrices"], result["num_zero_updates"]) == (3, 1)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_what_cannot_be_analysed_is_listed_with_the_reason() -> None:
    analysis = GeometryAnalysis(max_rank=10, max_elements=1000)
    fine, broken = np.ones((3, 3)), np.full((3, 3), np.nan)
    huge = np.full((2, 2), 3e38, dtype=np.float32)
    for name, base, tuned in (
        ("norm", np.ones(5), np.ones(5)),
        ("wide", np.ones((11, 11)), np.ones((11, 11))),
        ("large", np.ones((10, 101)), np.ones((10, 101))),
        ("broken base", broken, fine),
        ("broken tuned", fine, broken),
        ("overflow", huge, -huge),
    ):
        analysis.add(name, base, tuned)
    result = analysis.to_dict()
    assert result["by_tensor"] == {}
    assert {entry["name"]: entry["reason"] for entry in result["skipped"]} == {
        "norm": "base: not a matrix: it has 1 dimension",
        "wide": "its smaller side, 11, is above the limit of 10",
        "large": "base: 1,010 elements are more than the limit of 1,000",
        "broken base": "base: 9 elements are NaN or infinite",
        "broken tuned": "tuned: 9 elements are NaN or infinite",
        "overflow": "update: 4 elements are NaN or infinite",
    }
    assert result["summary"]["energy_left"] is None
    assert result["summary"]["spectral_shift"] is None


def test_stacks_of_experts_are_taken_matrix_by_matrix() -> None:
    base, tuned = pair((20, 30))
    analysis = GeometryAnalysis()
    analysis.add("experts", np.stack([base, base]), np.stack([base, tuned]))
    result = analysis.to_dict()["by_tensor"]
    assert list(result) == ["experts[0]", "experts[1]"]
    assert result["experts[1]"] == analysed(base, tuned)


@pytest.mark.parametrize("settings", [{"principal": 0.0}, {"principal": 1.5}, {"mask": 1.0}])
def test_shares_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(AnalysisError, match="between 0 and 1"):
        GeometryAnalysis(**settings)
