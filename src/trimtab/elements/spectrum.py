"""Singular values of one matrix, and the ranks that are read off them.

`matrix_rank` alone says little: a random 1 % mask of a square matrix has full rank by it. So five
figures are taken, each in units of rank (0 … min(m, n)), all 0 for a zero matrix:

=================  ==========================================================================
`matrix_rank`      singular values above max(m, n) · 2^-23 · σ1: the default tolerance of
                   `torch.linalg.matrix_rank` in fp32, which the published script uses
`rank_atol=1e-06`  singular values above 1e-6 (2507.17107)
`energy_rank`      fewest directions that hold 99 % of Σσ² (2602.07729)
`entropy_rank`     exp(-Σ p log p) with p = σ²/Σσ². The "effective rank" of Roy and Vetterli (2007)
                   has p = σ/Σσ; shares of energy are used here, to agree with the other figures
`stable_rank`      Σσ² / σ1²
=================  ==========================================================================

Small matrices get exact singular values. Larger ones get stochastic Lanczos quadrature: random
probe vectors see the spectrum of the Gram matrix through a few dozen products with it, so that
neither a Gram matrix nor a second copy of the matrix is held. Its figures carry an error.

Source: Ubaru, Chen, Saad (2017), "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, exp, fsum, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.floating[Any]]
Vector = NDArray[np.float64]

FIGURES = ("matrix_rank", "rank_atol=1e-06", "energy_rank", "entropy_rank", "stable_rank")
RANK_ATOL = 1e-6
ENERGY = 0.99
PRINCIPAL_SHARE = 0.1
"""How many directions of a matrix count as principal, by default, as a share of min(m, n)."""

_BLOCK = 1 << 22
"""Elements of a matrix that are converted to fp64 at once."""


def rank_tolerance(shape: tuple[int, int], largest: float) -> float:
    """Singular values above this count for `matrix_rank`; `largest` is σ1."""
    return max(shape) * float(np.finfo(np.float32).eps) * largest


def energy(matrix: Matrix) -> float:
    """Sum of squares, in fp64."""
    return fsum(float(np.vdot(block, block)) for block in _blocks(matrix.reshape(-1, 1)))


def _blocks(matrix: Matrix) -> Iterator[Vector]:
    """The rows of a matrix in fp64, some at a time."""
    rows = max(1, _BLOCK // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), rows):
        yield matrix[start : start + rows].astype(np.float64)


def _upright(matrix: Matrix) -> Matrix:
    """The matrix or its transpose, whichever has no fewer rows than columns."""
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T


def gram(matrix: Matrix) -> Vector:
    """The smaller of AᵀA and AAᵀ, in fp64."""
    tall = _upright(matrix)
    product = np.zeros((tall.shape[1], tall.shape[1]))
    for block in _blocks(tall):
        product += block.T @ block
    return product


def singular_values(matrix: Matrix, *, smallest: float = 0.0) -> Vector:
    """All min(m, n) singular values, largest first, in fp64.

    Roots of the eigenvalues of a Gram matrix are three to four times as fast to get and need less
    memory than an SVD, but what lies below about √(max(m, n) · 2^-52) · ‖A‖ is noise in them. The
    SVD is taken where that matters.

    Args:
        matrix: 2-D, finite.
        smallest: Singular values above this must be right; below it they may be noise.
    """
    if not matrix.size:
        return np.zeros(0)
    floor = sqrt(max(matrix.shape) * float(np.finfo(np.float64).eps) * energy(matrix))
    if smallest > floor:
        squares = np.linalg.eigvalsh(gram(matrix))[::-1]
        return np.asarray(np.sqrt(np.maximum(squares, 0)))
    return np.asarray(np.linalg.svd(matrix.astype(np.float64), compute_uv=False))


def principal_directions(matrix: Matrix, count: int) -> tuple[Vector, Vector]:
    """Orthonormal bases of the leading left and right singular directions.

    Args:
        matrix: 2-D, finite, of shape (m, n).
        count: How many directions, k.

    Returns:
        `(left, right)` of shapes (m, k) and (n, k), fp64. Fewer than k where the matrix has fewer
        singular values that stand above rounding noise.
    """
    tall = _upright(matrix)
    squares, vectors = np.linalg.eigh(gram(matrix))
    noise = max(matrix.shape) * float(np.finfo(np.float64).eps) * float(squares.sum())
    count = min(count, int(np.count_nonzero(squares > noise)))
    right = vectors[:, ::-1][:, :count]
    image = np.concatenate([block @ right for block in _blocks(tall)])
    left = np.linalg.qr(image)[0]
    return (left, right) if tall is matrix else (right, left)


def principal_part(matrix: Matrix, right: Vector) -> Matrix:
    """A matrix within its leading directions: `A V Vᵀ`, its best approximation of that rank.

    Args:
        matrix: 2-D, of shape (m, n).
        right: Its leading right singular directions, of shape (n, k).

    Returns:
        A new array of the matrix's shape and dtype.
    """
    right = right.astype(matrix.dtype)
    return (matrix @ right) @ right.T


def exact_ranks(values: Vector, shape: tuple[int, int]) -> dict[str, float]:
    """The five figures from all singular values.

    Args:
        values: Singular values, largest first.
        shape: Shape of the matrix.
    """
    squares = np.square(values)
    total = fsum(squares)
    if not total > 0:
        return dict.fromkeys(FIGURES, 0.0)
    shares = squares / total
    occurring = shares[shares > 0]
    held = np.cumsum(shares)
    # Rounding can leave the sum of all shares a little short of 1, never of ENERGY.
    return {
        "matrix_rank": float(np.count_nonzero(values > rank_tolerance(shape, values[0]))),
        "rank_atol=1e-06": float(np.count_nonzero(values > RANK_ATOL)),
        "energy_rank": float(np.searchsorted(held, ENERGY) + 1),
        "entropy_rank": exp(-fsum(occurring * np.log(occurring))),
        "stable_rank": total / float(squares[0]),
    }


@dataclass(frozen=True)
class Quadrature:
    """What random probes saw of the eigenvalues of a Gram matrix.

    Attributes:
        nodes: Ritz values, shape (probes, steps), ascending.
        weights: Share of all min(m, n) eigenvalues that each node stands for; rows sum to 1.
        residuals: How far each Ritz pair is from an eigenpair.
        total: Sum of all eigenvalues, exact.
    """

    nodes: Vector
    weights: Vector
    residuals: Vector
    total: float


def lanczos_quadrature(
    matrix: Matrix, *, probes: int, steps: int, rng: np.random.Generator
) -> Quadrature:
    """Look at the spectrum of the smaller Gram matrix through random ±1 vectors.

    Every probe runs its own Lanczos recurrence with full reorthogonalisation; all take each
    product with the matrix together.

    Args:
        matrix: 2-D, finite, not zero.
        probes: Random vectors; the error from chance falls with its root.
        steps: Products with the Gram matrix; more resolve finer detail of the spectrum.
        rng: Source of the probes.
    """
    tall = _upright(matrix)
    size = tall.shape[1]
    steps = min(steps, size)
    basis = np.zeros((probes, steps + 1, size))
    basis[:, 0] = rng.choice((-1.0, 1.0), size=(probes, size)) / sqrt(size)
    diagonal, coupling = np.zeros((probes, steps)), np.zeros((probes, steps))
    total = energy(matrix)
    for step in range(steps):
        vectors = basis[:, step].T
        image = np.zeros((size, probes))
        for block in _blocks(tall):
            image += block.T @ (block @ vectors)
        image = image.T
        diagonal[:, step] = np.einsum("vp,vp->v", basis[:, step], image)
        known = basis[:, : step + 1]
        for _ in range(2):  # once is not enough in floating point, twice is
            overlap = known @ image[:, :, None]
            image = image - (overlap.transpose(0, 2, 1) @ known)[:, 0]
        norm = np.linalg.norm(image, axis=1)
        # A converged probe stops: zeros give its further nodes no weight.
        norm[norm <= size * float(np.finfo(np.float64).eps) * total] = 0
        coupling[:, step] = norm
        basis[:, step + 1] = image / np.where(norm > 0, norm, np.inf)[:, None]
    tridiagonal = np.zeros((probes, steps, steps))
    index = np.arange(steps)
    tridiagonal[:, index, index] = diagonal
    tridiagonal[:, index[1:], index[:-1]] = coupling[:, :-1]
    nodes, vectors = np.linalg.eigh(tridiagonal)
    return Quadrature(
        nodes=np.maximum(nodes, 0),
        weights=np.square(vectors[:, 0]),
        residuals=coupling[:, -1:] * np.abs(vectors[:, -1]),
        total=total,
    )


def estimated_ranks(
    quadrature: Quadrature, shape: tuple[int, int]
) -> dict[str, tuple[float, float]]:
    """The five figures as (estimate, error) from a quadrature.

    The error of `energy_rank` and `entropy_rank` is the jackknife standard error over probes.
    Counts add to it the eigenvalues of nodes next to the tolerance that Lanczos has not settled on
    one side of it. For `stable_rank`, whose numerator is exact, it is the bound of Kuczyński and
    Woźniakowski (1992) on the expected relative error of a Lanczos σ1²; the estimate is never low.
    """
    size, (probes, steps) = min(shape), quadrature.nodes.shape
    largest = float(quadrature.nodes.max())
    tolerances = {
        "matrix_rank": rank_tolerance(shape, sqrt(largest)),
        "rank_atol=1e-06": RANK_ATOL,
    }

    def pooled(chosen: NDArray[np.bool_]) -> Vector:
        nodes = quadrature.nodes[chosen].ravel()
        weights = quadrature.weights[chosen].ravel() / np.count_nonzero(chosen)
        counts = [weights[nodes > tolerance**2].sum() for tolerance in tolerances.values()]
        return np.array(
            [
                *(size * np.array(counts)),
                size * _share_holding(ENERGY, nodes, weights),
                exp(_entropy(nodes, weights, quadrature.total)),
            ]
        )

    estimates = pooled(np.ones(probes, dtype=np.bool_))
    estimates[2] = ceil(estimates[2] - 1e-9)  # a number of directions, as the exact figure is
    without_one = np.array([pooled(np.arange(probes) != probe) for probe in range(probes)])
    errors = np.sqrt((probes - 1) * np.var(without_one, axis=0))
    for row, tolerance in enumerate(tolerances.values()):
        errors[row] += size * _unsettled(quadrature, tolerance**2)
    stable = quadrature.total / largest
    log_bound = log(size * max(steps - 1, 1) ** 4) / max(steps - 1, 1)
    shortfall = 0.103 * log_bound**2 if steps < size else 0.0
    pairs = zip(
        np.minimum((*estimates, stable), size).tolist(),
        (*errors.tolist(), stable * shortfall),
        strict=True,
    )
    return dict(zip(FIGURES, pairs, strict=True))


def _share_holding(part: float, nodes: Vector, weights: Vector) -> float:
    """Share of the eigenvalues, from the largest down, whose sum is `part` of all.

    A node represents eigenvalues on both sides of it, so half of its weight is reached at it.
    """
    order = np.argsort(nodes)[::-1]
    count, held = weights[order], (weights * nodes)[order]
    reached = np.concatenate(([0.0], np.cumsum(held) - held / 2, [held.sum()])) / held.sum()
    counted = np.concatenate(([0.0], np.cumsum(count) - count / 2, [count.sum()]))
    return float(np.interp(part, reached, counted))


def _entropy(nodes: Vector, weights: Vector, total: float) -> float:
    """-Σ p log p with p = node / total, the sum of eigenvalues being known exactly."""
    seen = (weights > 0) & (nodes > 0)
    held = weights[seen] * nodes[seen]
    return log(total) - float((held * np.log(nodes[seen])).sum() / held.sum())


def _unsettled(quadrature: Quadrature, bound: float) -> float:
    """Mean share of eigenvalues that may be on the wrong side of `bound`.

    A Gauss quadrature can misplace at most the weights of the nodes next to the bound. A node whose
    residual is below 1 % of its distance to the bound is on its side.
    """
    shares = []
    for nodes, weights, residuals in zip(
        quadrature.nodes, quadrature.weights, quadrature.residuals, strict=True
    ):
        above = int(np.searchsorted(nodes, bound, side="right"))
        neighbours = [node for node in (above - 1, above) if 0 <= node < len(nodes)]
        shares.append(
            fsum(
                weights[node]
                for node in neighbours
                if residuals[node] > 0.01 * abs(nodes[node] - bound)
            )
        )
    return fsum(shares) / len(shares)
