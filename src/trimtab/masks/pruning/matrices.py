"""Which tensors of a checkpoint are pruned: by default the matrices of the layers.

Embeddings and the language-modelling head are left alone, as are norms, biases and routers: they
are few, or what removing them costs is out of proportion (Sun et al. 2024, arXiv 2306.11695,
sec. 4: "linear layers, excluding the first embedding layer and the final classification head").
"""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.checkpoints import Checkpoint, StoredTensor, parts_of
from trimtab.checkpoints.quantized import refuse_quantized
from trimtab.errors import CheckpointError
from trimtab.words import first_few

__all__ = ["matrices_of"]

FLOATS = ("BF16", "F16", "F32", "F64")

LEFT_ALONE = frozenset(
    {"embed", "lm_head", "norm", "bias", "router", "scale", "buffer", "other"}
    | {"vision", "audio", "projector", "sinks", "linear_attn.conv1d", "linear_attn.A_log"}
)
"""Kinds that are pruned only if they are asked for."""


def matrices_of(base: Checkpoint, kinds: Sequence[str] | None = None) -> list[StoredTensor]:
    """The tensors to prune.

    Args:
        base: An open checkpoint.
        kinds: Which kinds; None for all but `LEFT_ALONE`. A fused tensor is taken if all of its
            parts are.

    Raises:
        CheckpointError: There are none of a kind, or they are stored in a dtype that is not pruned,
            or quantised.
    """
    found = {
        name: {part.kind for part in parts_of(name, tensor.shape, base.config)}
        for name, tensor in base.tensors.items()
        if len(tensor.shape) >= 2
    }
    there = {kind for of in found.values() for kind in of}
    wanted = there - LEFT_ALONE if kinds is None else set(kinds)
    if absent := sorted(wanted - there):
        raise CheckpointError(
            f"{base.id} has no matrices of kind {first_few(absent)}: it has "
            f"{', '.join(sorted(there)) or 'none'}"
        )
    chosen = [base.tensors[name] for name, of in found.items() if of <= wanted]
    if not chosen:
        raise CheckpointError(f"{base.id} has no matrices of layers to prune")
    wrong = [f"{t.name} is {t.dtype.name}" for t in chosen if t.dtype.name not in FLOATS]
    if wrong:
        raise CheckpointError(
            f"{base.id} cannot be pruned: {first_few(wrong)}; expected {', '.join(FLOATS)}. Save "
            "the model in one of them first"
        )
    refuse_quantized(base.tensors, base.config, [tensor.name for tensor in chosen], base.id)
    return chosen
