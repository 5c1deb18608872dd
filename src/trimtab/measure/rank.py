"""Rank of the update of every matrix, and of a random update of the same magnitudes.

A sparse random matrix has nearly full `matrix_rank`, so "the update is full rank" means something
only against a control: the elements of the same update, zeros included, in random order. It has the
density, the values and the norm of the update, and none of its structure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Annotated, Any, TypedDict
from zlib import crc32

import numpy as np

from trimtab.elements import spectrum
from trimtab.measure.matrices import Matrix, MatrixAnalysis, Skipped, reason_to_skip
from trimtab.results.schema import Amount, Count

PROBES, STEPS = 8, 96
"""Of the estimate, for matrices that are too large for exact singular values."""


class RankFigure(TypedDict):
    """A rank of a matrix; `fraction` is of the most that its shape allows."""

    value: Amount
    fraction: Amount
    error: Amount


class RankSummary(TypedDict):
    """A rank over the matrices."""

    min: Amount | None
    mean: Amount | None
    random_min: Amount | None
    random_mean: Amount | None


class Ranks(TypedDict):
    """All ranks of a matrix, and of the same elements in random order."""

    shape: tuple[Count, ...]
    method: str
    update: Mapping[str, RankFigure]
    random: Mapping[str, RankFigure]


def _same_figures(ranks: Ranks) -> str | None:
    wanted = {"matrix_rank", "rank_atol=1e-06", "energy_rank", "entropy_rank", "stable_rank"}
    for side in (ranks["update"], ranks["random"]):
        if side.keys() != wanted:
            return f"expected the figures {', '.join(sorted(wanted))}"
    return None


class RankMethod(TypedDict):
    """How ranks were found."""

    exact_up_to: Count
    max_elements: Count
    estimate: str
    random: str
    seed: int


class Rank(TypedDict):
    """What `RankAnalysis.to_dict` gives."""

    tolerance: Mapping[str, str | float]
    method: RankMethod
    num_matrices: Count
    num_zero_updates: Count
    skipped: tuple[Skipped, ...]
    summary: Mapping[str, RankSummary]
    by_tensor: Mapping[str, Annotated[Ranks, _same_figures]]


def random_control(update: Matrix, rng: np.random.Generator) -> Matrix:
    """A copy of the update with its elements, zeros included, in random order."""
    elements = update.flatten()
    rng.shuffle(elements)
    return elements.reshape(update.shape)


@dataclass
class RankAnalysis(MatrixAnalysis):
    """Collects the ranks of a model's update, one matrix at a time.

    The result depends on the seed and on each tensor's name, not on the order of tensors. A matrix
    needs a copy of `update` for the control and, for exact singular values, a Gram matrix of min(m,
    n)² fp64 numbers.

    Attributes:
        seed: Seeds the controls and the probes of estimates.
        exact_up_to: Largest min(m, n) with exact singular values; larger matrices are estimated.
            4096 × 14336 and its control took 22 s on two cores.
    """

    seed: int = 0
    exact_up_to: int = 4096

    def _reason_to_skip(self, base: Matrix, tuned: Matrix, update: Matrix) -> str | None:
        return reason_to_skip(update, self.max_elements)

    def _figures(self, name: str, base: Matrix, tuned: Matrix, update: Matrix) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, crc32(name.encode())])
        control = random_control(update, rng)
        return {
            "shape": list(update.shape),
            "method": "exact" if min(update.shape) <= self.exact_up_to else "estimate",
            "update": self._ranks(update, rng),
            "random": self._ranks(control, rng),
        }

    def _ranks(self, matrix: Matrix, rng: np.random.Generator) -> dict[str, dict[str, float]]:
        size, norm = min(matrix.shape), sqrt(spectrum.energy(matrix))
        if norm == 0:
            ranks = dict.fromkeys(spectrum.FIGURES, (0.0, 0.0))
        elif size <= self.exact_up_to:
            # σ1 is at least the root mean square of all singular values.
            smallest = min(
                spectrum.RANK_ATOL, spectrum.rank_tolerance(matrix.shape, norm / sqrt(size))
            )
            values = spectrum.singular_values(matrix, smallest=smallest)
            exact = spectrum.exact_ranks(values, matrix.shape)
            ranks = {figure: (value, 0.0) for figure, value in exact.items()}
        else:
            quadrature = spectrum.lanczos_quadrature(matrix, probes=PROBES, steps=STEPS, rng=rng)
            ranks = spectrum.estimated_ranks(quadrature, matrix.shape)
        return {
            figure: {"value": value, "fraction": value / size, "error": error}
            for figure, (value, error) in ranks.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON.

        `by_tensor` has for `update` and `random` each figure's `value`, its `fraction` of
        min(m, n), and its `error` in units of rank (0 where exact). `summary` has the least and
        the mean fraction over the matrices, each counting once as in 2505.11711; a matrix that did
        not change counts with rank 0 (`num_zero_updates` says how many).
        """
        rows = list(self._by_tensor.values())
        return {
            "tolerance": {
                "matrix_rank": "max(m, n) * 2**-23 * largest singular value",
                "rank_atol=1e-06": spectrum.RANK_ATOL,
                "energy_rank": spectrum.ENERGY,
            },
            "method": {
                "exact_up_to": self.exact_up_to,
                "max_elements": self.max_elements,
                "estimate": f"stochastic Lanczos quadrature, {PROBES} probes, {STEPS} steps",
                "random": "the elements of the update in random order",
                "seed": self.seed,
            },
            "num_matrices": len(rows),
            "num_zero_updates": sum(row["update"]["stable_rank"]["value"] == 0 for row in rows),
            "skipped": list(self._skipped),
            "summary": {figure: _summary(figure, rows) for figure in spectrum.FIGURES},
            "by_tensor": dict(self._by_tensor),
        }


def _summary(figure: str, rows: list[dict[str, Any]]) -> dict[str, float | None]:
    update = [row["update"][figure]["fraction"] for row in rows]
    random = [row["random"][figure]["fraction"] for row in rows]
    return {
        "min": min(update, default=None),
        "mean": sum(update) / len(update) if update else None,
        "random_min": min(random, default=None),
        "random_mean": sum(random) / len(random) if random else None,
    }
