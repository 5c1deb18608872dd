"""Count tied tensors once, wherever they are stored twice."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeVar

from trimtab.checkpoints.tensors import Counterparts, Hashes

__all__ = ["without_tied_copies"]

Item = TypeVar("Item", bound=Counterparts)


def without_tied_copies(
    items: Sequence[Item], doubtful: Collection[Item], hashes: Hashes
) -> tuple[list[Item], list[tuple[Item, Item]]]:
    """Drop items that repeat another in all checkpoints, such as a stored copy of tied embeddings.

    Only hashes can tell: a checkpoint may say that two tensors are tied and store two that differ.

    Args:
        items: All items.
        doubtful: Those that, a config says, only repeat another one.
        hashes: Of all stored tensors.

    Returns:
        The items that count, in the order given, and each that was dropped, before the one that it
        repeats.
    """
    originals: dict[tuple[str, ...], Item] = {}
    copies: dict[Item, Item] = {}
    # What an item would repeat comes before it.
    for item in sorted(items, key=doubtful.__contains__):
        key = tuple([of[tensor.name] for of, tensor in zip(hashes, item.stored, strict=True)])
        original = originals.setdefault(key, item)
        if item in doubtful and original is not item and original.shape == item.shape:
            copies[item] = original
    return [item for item in items if item not in copies], list(copies.items())
