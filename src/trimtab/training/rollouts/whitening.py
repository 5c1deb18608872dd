"""Means over the tokens of completions, and whitening: mean 0 and variance 1."""

from __future__ import annotations

from torch import Tensor

__all__ = ["masked_mean", "whiten"]

EPSILON = 1e-8
"""Added to the variance, so that equal values stay finite."""


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask is True, over all rows together."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum()


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale values to variance 1, over all tokens of all rows together.

    Args:
        values: Any shape.
        mask: Which of them count; bool, of the same shape.
        shift_mean: Whether their mean becomes 0, or stays.

    Returns:
        The whitened values; 0 where the mask is False. One value alone has no variance and is
        returned as it is, or as 0 if the mean is shifted.
    """
    mean = masked_mean(values, mask)
    centred = values - mean
    # The unbiased estimate, over n - 1.
    variance = (centred.masked_fill(~mask, 0.0) ** 2).sum() / (mask.sum() - 1).clamp(min=1)
    if mask.sum() > 1:
        centred = centred * (variance + EPSILON).rsqrt()
    return (centred if shift_mean else centred + mean).masked_fill(~mask, 0.0)
