"""Where every stored element went: compared, tied, left over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.checkpoints import Checkpoint, StoredTensor
from trimtab.checkpoints.align import Pair, Pairing, num_columns, num_rows
from trimtab.checkpoints.tensors import Hashes
from trimtab.compare.result import Coverage

__all__ = ["coverage_of"]


def coverage_of(
    base: Checkpoint,
    tuned: Checkpoint,
    pairing: Pairing,
    kept: Sequence[Pair],
    tied: Sequence[tuple[Pair, Pair]],
    hashes: Hashes,
) -> Coverage:
    """Sort every stored element into compared, tied, missing, extra, mismatched or folded.

    Args:
        base: Before training.
        tuned: After training.
        pairing: Of the two.
        kept: The pairs that count.
        tied: Pairs that do not, each before the one that it repeats.
        hashes: Of all stored tensors.
    """

    def alone(tensor: StoredTensor, side: int) -> dict[str, Any]:
        return {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "dtype": tensor.dtype.name,
            "num_elements": tensor.num_elements,
            "hash": hashes[side][tensor.name],
        }

    def mismatch(b: StoredTensor, t: StoredTensor, num_compared: int) -> dict[str, Any]:
        return {
            "name": b.name,
            "base_shape": list(b.shape),
            "tuned_shape": list(t.shape),
            "num_compared": num_compared,
            "num_uncompared_base": b.num_elements - num_compared,
            "num_uncompared_tuned": t.num_elements - num_compared,
            "base_hash": hashes[0][b.name],
            "tuned_hash": hashes[1][t.name],
        }

    def repeated(pair: Pair, original: Pair) -> dict[str, Any]:
        sides = (("base", base), ("tuned", tuned))
        return {
            "name": pair.name,
            "tied_to": original.name,
            "num_elements": pair.base.num_elements,
            "stored_in": [side for side, checkpoint in sides if pair.name in checkpoint.tensors],
        }

    def num_compared(pair: Pair) -> int:
        return num_rows(pair.shape) * num_columns(pair.shape)

    resized = [pair for pair in kept if pair.base.shape != pair.tuned.shape]
    scale_rows = [
        {"name": name, "into": into, "num_elements": checkpoint.tensors[name].num_elements}
        for name, into in pairing.folded.items()
        for checkpoint in (base, tuned)
        if name in checkpoint.tensors
    ]
    return Coverage(
        num_base=sum(pair.base.num_elements for pair in kept)
        + sum(t.num_elements for t in (*pairing.missing, *(b for b, _ in pairing.mismatched))),
        num_tuned=sum(pair.tuned.num_elements for pair in kept)
        + sum(t.num_elements for t in (*pairing.extra, *(t for _, t in pairing.mismatched))),
        num_compared=sum(num_compared(pair) for pair in kept),
        tied=tuple(repeated(pair, original) for pair, original in tied),
        missing=tuple(alone(tensor, 0) for tensor in pairing.missing),
        extra=tuple(alone(tensor, 1) for tensor in pairing.extra),
        shape_mismatch=tuple(
            [mismatch(pair.base, pair.tuned, num_compared(pair)) for pair in resized]
            + [mismatch(b, t, 0) for b, t in pairing.mismatched]
        ),
        renamed=tuple({"base": b, "tuned": t} for b, t in pairing.renamed.items()),
        folded=tuple(scale_rows),
    )
