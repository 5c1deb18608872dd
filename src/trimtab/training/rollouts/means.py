"""Means of what is logged, over all that happened since the last log."""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor

__all__ = ["Means"]


class Means:
    """Weighted means by name; sums stay on their device until they are asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, float | Tensor] = defaultdict(float)
        self._weights: dict[str, float] = defaultdict(float)

    def add(self, name: str, total: float | Tensor, weight: float) -> None:
        """Add to a sum, and to the number of things that the mean is over."""
        self._sums[name] = self._sums[name] + total
        self._weights[name] += weight

    def take(self) -> dict[str, float]:
        """All means, in the order of their first `add`; then begin anew."""
        means = {name: float(total) / self._weights[name] for name, total in self._sums.items()}
        self._sums.clear()
        self._weights.clear()
        return means
