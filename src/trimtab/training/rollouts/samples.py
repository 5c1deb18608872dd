"""`Samples`: completions as tensors, and how to take some of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["Batch", "Samples", "split", "take"]

Batch = TypeVar("Batch", bound=Any)


@dataclass(frozen=True)
class Samples:
    """Completions of prompts; one row for each.

    Attributes:
        prompt_ids: Padded on the left. `[rows, prompt width]`, int64.
        prompt_mask: False on the padding. Bool.
        completion_ids: Padded on the right. `[rows, completion width]`, int64.
        completion_mask: True up to and with the token that ended the completion. Bool.
        has_ended: Whether a completion ended by itself, before the length limit. `[rows]`, bool.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    has_ended: Tensor

    def __len__(self) -> int:
        return len(self.completion_ids)

    @property
    def input_ids(self) -> Tensor:
        """Prompt and completion."""
        return torch.cat([self.prompt_ids, self.completion_ids], dim=1)

    @property
    def attention_mask(self) -> Tensor:
        """False on the padding at both ends."""
        return torch.cat([self.prompt_mask, self.completion_mask], dim=1)

    @property
    def position_ids(self) -> Tensor:
        """Positions counted from the first token that is no padding, as `generate` counts them."""
        return (self.attention_mask.long().cumsum(1) - 1).clamp(min=0)

    @property
    def num_tokens(self) -> int:
        """Completion tokens of all rows."""
        return int(self.completion_mask.sum())


def take(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a dataclass of tensors, in the order asked for.

    Args:
        batch: Fields that are tensors have rows as their first axis; fields that are dataclasses
            are such as this one; all others are kept.
        rows: Indices.
    """
    taken: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            taken[field.name] = value[rows]
        elif is_dataclass(value):
            taken[field.name] = take(value, rows)
    return replace(batch, **taken)


def split(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Rows in parts of one size; the last may be smaller."""
    for first in range(0, len(rows), size):
        yield rows[first : first + size]
