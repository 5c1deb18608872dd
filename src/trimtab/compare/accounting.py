"""Where every stored element went: compared, tied, left over; and what each checkpoint was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xxhash

from trimtab.checkpoints import Checkpoint, StoredTensor, tied_names
from trimtab.checkpoints.architectures import TIED
from trimtab.checkpoints.pairing import Pair, Pairing, num_columns, num_rows
from trimtab.compare.result import CheckpointRecord, Coverage

__all__ = ["coverage_of", "may_repeat", "record_of", "without_tied_copies"]

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


def may_repeat(pairs: Sequence[Pair], base: Checkpoint, tuned: Checkpoint) -> frozenset[Pair]:
    """The pairs that, a config says, only repeat another one, stored or not."""
    heads: set[str] = set()
    for checkpoint in (base, tuned):
        heads |= tied_names(
            checkpoint.tensors.keys() - set(TIED.values()), checkpoint.config
        ).keys()
    return frozenset(pair for pair in pairs if pair.tied_to is not None or pair.name in heads)


def record_of(checkpoint: Checkpoint, hashes: Mapping[str, str]) -> CheckpointRecord:
    """Say what a checkpoint was, with one hash over all its tensors."""
    dtypes: dict[str, int] = {}
    hasher = xxhash.xxh3_128()
    for name, tensor in sorted(checkpoint.tensors.items()):
        dtypes[tensor.dtype.name] = dtypes.get(tensor.dtype.name, 0) + tensor.num_elements
        row = f"{name}\0{tensor.dtype.name}\0{tensor.shape}\0{hashes[name]}\n"
        hasher.update(row.encode())
    return CheckpointRecord(
        id=checkpoint.id,
        revision=checkpoint.revision,
        architecture=checkpoint.architecture,
        num_tensors=len(checkpoint.tensors),
        num_elements=sum(tensor.num_elements for tensor in checkpoint.tensors.values()),
        dtypes=dtypes,
        content_hash=hasher.hexdigest(),
    )


def coverage_of(
    base: Checkpoint,
    tuned: Checkpoint,
    pairing: Pairing,
    kept: Sequence[Pair],
    tied: Sequence[Mapping[str, Any]],
    hashes: Hashes,
) -> Coverage:
    """Sort every stored element into compared, tied, missing, extra, mismatched or folded."""

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
        tied=tuple(tied),
        missing=tuple(alone(tensor, 0) for tensor in pairing.missing),
        extra=tuple(alone(tensor, 1) for tensor in pairing.extra),
        shape_mismatch=tuple(
            [mismatch(pair.base, pair.tuned, num_compared(pair)) for pair in resized]
            + [mismatch(b, t, 0) for b, t in pairing.mismatched]
        ),
        renamed=tuple({"base": b, "tuned": t} for b, t in pairing.renamed.items()),
        folded=tuple(scale_rows),
    )
