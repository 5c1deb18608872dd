"""Count tied tensors once, wherever they are stored twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.pairing import Pair

__all__ = ["Hashes", "without_tied_copies"]

Hashes = tuple[Mapping[str, str], Mapping[str, str]]
"""Name -> xxh3-128 of every tensor stored in base, and of every tensor stored in tuned."""


def without_tied_copies(
    pairs: Sequence[Pair],
    doubtful: frozenset[Pair],
    hashes: Hashes,
    base: Checkpoint,
    tuned: Checkpoint,
) -> tuple[list[Pair], list[dict[str, Any]]]:
    """Drop pairs that repeat another pair on both sides, such as a stored copy of tied embeddings.

    Only hashes can tell: a checkpoint may say that two tensors are tied and store two that differ.

    Args:
        pairs: All pairs.
        doubtful: Those that `may_repeat` names.
        hashes: Of all stored tensors.
        base: Before training.
        tuned: After training.

    Returns:
        The pairs that count, in the order given, and a coverage row for each that was dropped.
    """
    seen: dict[tuple[str, str], Pair] = {}
    kept: list[Pair] = []
    tied: list[dict[str, Any]] = []
    # What a pair would repeat comes before it.
    for pair in sorted(pairs, key=doubtful.__contains__):
        key = hashes[0][pair.base.name], hashes[1][pair.tuned.name]
        first = seen.get(key)
        if first is not None and pair in doubtful and first.shape == pair.shape:
            stored_in = [
                side
                for side, checkpoint in (("base", base), ("tuned", tuned))
                if pair.name in checkpoint.tensors
            ]
            tied.append(
                {
                    "name": pair.name,
                    "tied_to": first.name,
                    "num_elements": pair.base.num_elements,
                    "stored_in": stored_in,
                }
            )
        else:
            seen.setdefault(key, pair)
            kept.append(pair)
    order = {pair: index for index, pair in enumerate(pairs)}
    return sorted(kept, key=order.__getitem__), tied
