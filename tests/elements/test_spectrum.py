"""Ranks against torch, brute force and known spectra; estimates against exact figures."""

from __future__ import annotations

from math import exp, log
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trimtab.elements.spectrum import (
    FIGURES,
    energy,
    estimated_ranks,
    exact_ranks,
    gram,
    lanczos_quadrature,
    principal_directions,
    rank_tolerance,
    singular_values,
)

Matrix = NDArray[Any]


def with_spectrum(values: list[float], shape: tuple[int, int], seed: int = 0) -> Matrix:
    """A matrix with exactly these singular values (to fp64 rounding)."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((shape[0], len(values))))[0]
    right = np.linalg.qr(rng.standard_normal((shape[1], len(values))))[0]
    return np.asarray((left * values) @ right.T)


def sparse(shape: tuple[int, int], density: float, seed: int = 0) -> Matrix:
    rng = np.random.default_rng(seed)
    values = 1e-5 * rng.standard_normal(shape)
    return np.asarray(np.where(rng.random(shape) < density, values, 0), dtype=np.float32)


@pytest.mark.parametrize("density", [0.3, 0.05, 0.005])
@pytest.mark.parametrize("shape", [(120, 200), (200, 120), (150, 150), (1, 40), (40, 1)])
def test_matrix_rank_is_that_of_torch(shape: tuple[int, int], density: float) -> None:
    torch = pytest.importorskip("torch")
    matrix = sparse(shape, density)
    values = singular_values(matrix)
    expected = int(torch.linalg.matrix_rank(torch.from_numpy(matrix)))
    assert exact_ranks(values, shape)["matrix_rank"] == expected
    at_1e_6 = int(torch.linalg.matrix_rank(torch.from_numpy(matrix).double(), atol=1e-6, rtol=0.0))
    assert exact_ranks(values, shape)["rank_atol=1e-06"] == at_1e_6


@pytest.mark.parametrize("smallest", [0.0, 1e-6], ids=["svd", "gram"])
def test_singular_values_near_the_tolerance_are_counted_right(smallest: float) -> None:
    shape = (300, 200)
    tolerance = rank_tolerance(shape, 1.0)  # 3.6e-5
    spectrum = [1.0, 0.5, 1.1 * tolerance, 1.01 * tolerance, 0.99 * tolerance, 2e-6, 1e-12]
    values = singular_values(with_spectrum(spectrum, shape), smallest=smallest)
    np.testing.assert_allclose(values[:6], spectrum[:6], rtol=1e-3)
    assert len(values) == 200
    ranks = exact_ranks(values, shape)
    assert ranks["matrix_rank"] == 4
    assert ranks["rank_atol=1e-06"] == 6


def test_svd_is_taken_where_a_gram_matrix_would_lose_the_rank() -> None:
    shape = (100, 80)
    matrix = with_spectrum([1e3, 1.0, 1e-5, 2e-6], shape)
    lossy = np.sqrt(np.maximum(np.linalg.eigvalsh(gram(matrix)), 0))[::-1]
    assert np.count_nonzero(lossy > 1e-6) != 4  # why it matters
    values = singular_values(matrix, smallest=1e-6)
    assert exact_ranks(values, shape)["rank_atol=1e-06"] == 4


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (1, 7), (7, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_roads_to_the_singular_values_agree_with_numpy(
    shape: tuple[int, int], dtype: type
) -> None:
    matrix: Matrix = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(singular_values(matrix), expected, rtol=1e-12)
    np.testing.assert_allclose(singular_values(matrix, smallest=1e-3), expected, rtol=1e-9)
    assert energy(matrix) == pytest.approx((expected**2).sum(), rel=1e-12)


def test_figures_of_a_spectrum_worked_by_hand() -> None:
    # Energies 9, 4, 1, .1 of 14.1; held: .638, .922, .9929.
    ranks = exact_ranks(np.sqrt([9.0, 4.0, 1.0, 0.1, 0.0]), (5, 6))
    shares = [9 / 14.1, 4 / 14.1, 1 / 14.1, 0.1 / 14.1]
    assert ranks["matrix_rank"] == ranks["rank_atol=1e-06"] == 4
    assert ranks["energy_rank"] == 3
    assert ranks["entropy_rank"] == pytest.approx(exp(-sum(p * log(p) for p in shares)))
    assert ranks["stable_rank"] == pytest.approx(14.1 / 9)


def test_equal_singular_values_have_full_rank_by_every_figure() -> None:
    ranks = exact_ranks(np.full(200, 3.0), (200, 200))
    assert ranks.pop("energy_rank") == 198
    assert list(ranks.values()) == pytest.approx([200] * 4)


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (1, 5)])
def test_zero_matrices_have_rank_0_by_every_figure(shape: tuple[int, int]) -> None:
    values = singular_values(np.zeros(shape, dtype=np.float32), smallest=1e-6)
    assert exact_ranks(values, shape) == dict.fromkeys(FIGURES, 0.0)


def test_one_element_has_rank_1_by_every_figure() -> None:
    ranks = exact_ranks(singular_values(np.array([[-3e-5]])), (1, 1))
    assert list(ranks.values()) == pytest.approx([1.0] * 5)


def test_random_sparse_matrices_are_nearly_full_rank_by_matrix_rank_alone() -> None:
    """The known fact that makes a control necessary: density .05, size 1024."""
    rng = np.random.default_rng(0)
    shape = (1024, 1024)
    signs = rng.choice([-1e-5, 1e-5], size=shape)
    matrix = np.where(rng.random(shape) < 0.05, signs, 0)
    ranks = exact_ranks(singular_values(matrix), shape)
    assert ranks["matrix_rank"] > 0.998 * 1024
    assert ranks["energy_rank"] == pytest.approx(0.77 * 1024, rel=0.01)


SPECTRA = {
    "sparse": sparse((240, 300), 0.1),
    "tall": sparse((500, 200), 0.02, seed=1),
    "square": sparse((300, 300), 0.05, seed=2),
    "low rank": with_spectrum([1e-2, 8e-3, 7e-3, 1e-3, 5e-4], (200, 260)),
    "zero columns": np.pad(sparse((300, 150), 0.5, seed=3), ((0, 0), (0, 90))),
    "decaying": with_spectrum(list(np.exp(-np.arange(250) / 15)), (250, 280)),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_estimates_are_within_their_stated_error(name: str) -> None:
    matrix = SPECTRA[name]
    exact = exact_ranks(singular_values(matrix), matrix.shape)
    misses: dict[str, list[float]] = {figure: [] for figure in FIGURES}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        quadrature = lanczos_quadrature(matrix, probes=8, steps=64, rng=rng)
        np.testing.assert_allclose(quadrature.weights.sum(axis=1), 1)
        for figure, (value, error) in estimated_ranks(quadrature, matrix.shape).items():
            assert 0 <= value <= min(matrix.shape)
            misses[figure].append((value - exact[figure]) / (error + 1e-9 * value))
    for figure, errors in misses.items():
        # Standard errors from 8 probes: a root mean square near 1, as Student's t has tails.
        assert np.sqrt(np.mean(np.square(errors))) < 2.5, figure


def test_estimates_of_smooth_figures_are_close() -> None:
    matrix = SPECTRA["sparse"]
    exact = exact_ranks(singular_values(matrix), matrix.shape)
    rng = np.random.default_rng(0)
    quadrature = lanczos_quadrature(matrix, probes=8, steps=64, rng=rng)
    estimates = estimated_ranks(quadrature, matrix.shape)
    for figure in ("energy_rank", "entropy_rank", "stable_rank"):
        assert estimates[figure][0] == pytest.approx(exact[figure], rel=0.05)
    assert estimates["stable_rank"][0] >= exact["stable_rank"] * (1 - 1e-9)


def test_probes_that_exhaust_the_matrix_stop_and_see_it_exactly() -> None:
    """Two distinct eigenvalues: two Lanczos steps see all, the others must not disturb them."""
    matrix = np.diag([2.0] * 6 + [1.0] * 4)
    rng = np.random.default_rng(0)
    quadrature = lanczos_quadrature(matrix, probes=4, steps=8, rng=rng)
    estimates = estimated_ranks(quadrature, matrix.shape)
    # ±1 probes have no variance on a diagonal matrix: every figure is exact.
    assert estimates["matrix_rank"][0] == pytest.approx(10)
    assert estimates["matrix_rank"][1] == pytest.approx(0, abs=1e-9)
    exact = exact_ranks(singular_values(matrix), matrix.shape)
    assert estimates["entropy_rank"][0] == pytest.approx(exact["entropy_rank"])
    assert estimates["stable_rank"][0] == pytest.approx(28 / 4)


def test_a_quadrature_depends_on_the_seed_alone() -> None:
    matrix = SPECTRA["sparse"]
    runs = [
        lanczos_quadrature(matrix, probes=2, steps=9, rng=np.random.default_rng(seed)).nodes
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize("shape", [(40, 70), (70, 40), (50, 50)])
def test_principal_directions_span_what_the_svd_says(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    left, right = principal_directions(matrix, 7)
    u, _, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    assert left.shape == (shape[0], 7)
    assert right.shape == (shape[1], 7)
    np.testing.assert_allclose(left @ left.T, u[:, :7] @ u[:, :7].T, atol=1e-10)
    np.testing.assert_allclose(right @ right.T, vt[:7].T @ vt[:7], atol=1e-10)


def test_directions_beyond_the_rank_are_left_out() -> None:
    left, right = principal_directions(with_spectrum([3.0, 2.0, 1.0], (30, 20)), 10)
    assert left.shape == (30, 3)
    assert right.shape == (20, 3)
    empty_left, empty_right = principal_directions(np.zeros((4, 6)), 2)
    assert (empty_left.shape, empty_right.shape) == ((4, 0), (6, 0))


def test_a_node_stands_for_eigenvalues_on_both_sides_of_it() -> None:
    """Few steps on an even spectrum, where counting whole nodes would be 2.5 % off."""
    matrix = np.diag(np.sqrt(np.arange(1.0, 401)))
    rng = np.random.default_rng(0)
    quadrature = lanczos_quadrature(matrix, probes=2, steps=20, rng=rng)
    exact = exact_ranks(singular_values(matrix), matrix.shape)
    estimate = estimated_ranks(quadrature, matrix.shape)["energy_rank"][0]
    assert estimate == pytest.approx(exact["energy_rank"], rel=0.005)


def test_the_error_of_the_stable_rank_covers_a_largest_value_not_yet_reached() -> None:
    matrix = sparse((300, 300), 0.5)
    exact = exact_ranks(singular_values(matrix), matrix.shape)["stable_rank"]
    rng = np.random.default_rng(0)
    quadrature = lanczos_quadrature(matrix, probes=2, steps=12, rng=rng)
    value, error = estimated_ranks(quadrature, matrix.shape)["stable_rank"]
    assert exact * 1.001 < value < exact + error
