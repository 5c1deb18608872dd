"""Which tensors of a base and of other checkpoints belong together, and what is left over.

Everything stored on any side ends up in exactly one list, so that nothing can leave the
denominator in silence.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

from trimtab.checkpoints.architectures import MODALITIES, TIED
from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.names import match_renamed, tied_names, without_wrappers
from trimtab.checkpoints.quantized import BlockScale, block_scales, quantized_weights, scales_of
from trimtab.checkpoints.tensors import Counterparts, Hashes, StoredTensor
from trimtab.elements.dtypes import DTYPES, DType
from trimtab.errors import CheckpointError, TensorMismatchError
from trimtab.words import are

__all__ = [
    "Pair",
    "Pairing",
    "common_shape",
    "has_vocabulary_rows",
    "may_repeat",
    "num_columns",
    "num_rows",
    "pair_tensors",
    "without_tied_copies",
]

VOCABULARY = re.compile(
    r"(?:^|\.)(?:embed_tokens(?:_per_layer)?|word_embeddings|tok_embeddings|wte|embed_in|shared|"
    r"lm_head|embed_out|shared_head\.head)\.weight$"
)
"""Names whose rows are tokens, so that two sizes still have rows in common.

Of other embeddings (positions, patches, token types) and of wider layers row 7 of one size is not
row 7 of another.
"""


@dataclass(frozen=True, eq=False)
class Pair:
    """A tensor of base and its counterpart.

    Attributes:
        name: Name in base, or the tied name that stands for it there.
        base: As stored in base.
        tuned: As stored in tuned.
        dtype: In which the two are compared.
        shape: What is compared: base's shape, or the rows that both have.
        base_scale: Scales to multiply into base first, or None.
        tuned_scale: The same for tuned.
        tied_to: On one side this name is only another name of that tensor, else None.
    """

    name: str
    base: StoredTensor
    tuned: StoredTensor
    dtype: DType
    shape: tuple[int, ...]
    base_scale: BlockScale | None = None
    tuned_scale: BlockScale | None = None
    tied_to: str | None = None

    @property
    def stored(self) -> tuple[StoredTensor, StoredTensor]:
        """As stored in base and in tuned."""
        return self.base, self.tuned


@dataclass(frozen=True, eq=False)
class Pairing:
    """All stored tensors, sorted into what can be compared and what cannot.

    Attributes:
        pairs: To compare, in base's order.
        missing: Only in base.
        extra: Only in tuned.
        mismatched: In both, but of shapes that have nothing in common.
        renamed: Name in base -> name in tuned, where they differ.
        folded: Name of scales -> the weight that they are multiplied into.
        scales: The same of everything that says what quantised weights are, multiplied or not.
        is_quantized: Whether there are tensors that are not the weights themselves.
        conversion: Words for what is done to elements before they are compared, or None.
    """

    pairs: tuple[Pair, ...]
    missing: tuple[StoredTensor, ...]
    extra: tuple[StoredTensor, ...]
    mismatched: tuple[tuple[StoredTensor, StoredTensor], ...]
    renamed: dict[str, str]
    folded: dict[str, str]
    scales: dict[str, str]
    is_quantized: bool
    conversion: str | None

    def apart(self, base: Checkpoint, tuned: Checkpoint) -> list[tuple[int, StoredTensor]]:
        """Stored tensors that are in no pair, with 0 for those of base and 1 for those of tuned."""
        rows = [*((0, tensor) for tensor in self.missing), *((1, tensor) for tensor in self.extra)]
        for two in self.mismatched:
            rows += enumerate(two)
        for side, checkpoint in enumerate((base, tuned)):
            names = checkpoint.tensors.keys() & self.folded.keys()
            rows += ((side, checkpoint.tensors[name]) for name in sorted(names))
        return rows


def pair_tensors(
    base: Checkpoint, tuned: Checkpoint, *, cast: str | None = None, dequantize: bool = False
) -> Pairing:
    """Match the tensors of two checkpoints.

    Args:
        base: Before training.
        tuned: After training.
        cast: Name of a float dtype (`bf16`); every float tensor of both sides is rounded to it.
        dequantize: Multiply quantised weights by their scales, to fp32 (or to `cast`).

    Raises:
        TensorMismatchError: No tensor is in both, or some are stored in different dtypes and no
            cast was asked for. Every such tensor is counted, the first few are named.
        CheckpointError: `cast` is not a float dtype, or a cast of quantised weights was asked for
            without dequantising them, or they cannot be dequantised.
    """
    target = _cast_target(cast)
    quantized = quantized_weights(base.tensors, base.config) | quantized_weights(
        tuned.tensors, tuned.config
    )
    if target is not None and quantized and not dequantize:
        name, how = next(iter(quantized.items()))
        raise CheckpointError(
            f"{name} is {how}: its elements mean nothing without their scales, so they cannot be "
            "cast alone; add dequantize=True (--dequantize)"
        )
    scales = scales_of(base.tensors, base.config) | scales_of(tuned.tensors, tuned.config)
    base_scales, tuned_scales = (
        block_scales(of.tensors, of.config, of.id) if dequantize else {} for of in (base, tuned)
    )
    matches, renamed = _match_names(base, tuned)
    pairs: list[Pair] = []
    mismatched: list[tuple[StoredTensor, StoredTensor]] = []
    for name, tuned_name in matches.items():
        tied_to = None
        base_tensor = base.tensors.get(name)
        tuned_tensor = tuned.tensors.get(tuned_name)
        if base_tensor is None:
            tied_to = base.tied[name]
            base_tensor = base.tensors[tied_to]
        if tuned_tensor is None:
            tied_to = tuned.tied[tuned_name]
            tuned_tensor = tuned.tensors[tied_to]
        if dequantize and (name in scales or tuned_name in scales):
            continue
        shape = common_shape(name, base_tensor.shape, tuned_tensor.shape)
        if shape is None:
            mismatched.append((base_tensor, tuned_tensor))
            continue
        base_scale = base_scales.get(base_tensor.name)
        tuned_scale = tuned_scales.get(tuned_tensor.name)
        pairs.append(
            Pair(
                name=name,
                base=base_tensor,
                tuned=tuned_tensor,
                dtype=_compared_dtype(base_tensor, base_scale, target),
                shape=shape,
                base_scale=base_scale,
                tuned_scale=tuned_scale,
                tied_to=tied_to,
            )
        )
    if not pairs:
        raise TensorMismatchError(
            f"{base.id} and {tuned.id} have no tensor in common: expected two checkpoints of one "
            f"model, found names such as {_example(base)} and {_example(tuned)}"
        )
    _refuse_mixed_dtypes(pairs, target)
    folded = scales if dequantize else {}
    in_base, in_tuned = folded.keys() | matches.keys(), folded.keys() | set(matches.values())
    return Pairing(
        pairs=tuple(pairs),
        missing=tuple(t for name, t in base.tensors.items() if name not in in_base),
        extra=tuple(t for name, t in tuned.tensors.items() if name not in in_tuned),
        mismatched=tuple(mismatched),
        renamed=renamed,
        folded=folded,
        scales=scales,
        is_quantized=bool(quantized),
        conversion=_conversion(pairs, target, quantized, dequantize),
    )


def _cast_target(cast: str | None) -> DType | None:
    if cast is None:
        return None
    aliases = {"BFLOAT16": "BF16", "FLOAT16": "F16", "FP16": "F16", "FP32": "F32", "FLOAT32": "F32"}
    target = DTYPES.get(aliases.get(cast.upper(), cast.upper()))
    if target is None or not target.is_float:
        floats = ", ".join(name.lower() for name, dtype in DTYPES.items() if dtype.is_float)
        raise CheckpointError(f"cannot cast to {cast!r}: expected one of {floats}")
    return target


def _match_names(base: Checkpoint, tuned: Checkpoint) -> tuple[dict[str, str], dict[str, str]]:
    """Name in base -> name in tuned, and those of them that differ."""
    in_base = set(base.tensors) | set(base.tied)
    in_tuned = set(tuned.tensors) | set(tuned.tied)
    ordered = [*base.tensors, *(name for name in base.tied if name in tuned.tensors)]
    left = [name for name in base.tensors if name not in in_tuned]
    right = [name for name in tuned.tensors if name not in in_base]
    renamed = match_renamed(left, right)
    matches: dict[str, str] = {}
    for name in ordered:
        if name in in_tuned and (name in base.tensors or name in tuned.tensors):
            matches[name] = name
        elif name in renamed:
            matches[name] = renamed[name]
    return matches, renamed


def common_shape(
    name: str, base: tuple[int, ...], tuned: tuple[int, ...]
) -> tuple[int, ...] | None:
    """What two tensors of a name have in common: all, the first rows of a vocabulary, or None."""
    if base == tuned:
        return base
    if has_vocabulary_rows(name) and len(base) == len(tuned) == 2 and base[1] == tuned[1]:
        return min(base[0], tuned[0]), base[1]
    return None


def has_vocabulary_rows(name: str) -> bool:
    """Whether the rows of a tensor of this name are tokens."""
    return VOCABULARY.search(without_wrappers(name)) is not None and not any(
        word in MODALITIES for word in name.split(".")
    )


def _compared_dtype(base: StoredTensor, scale: BlockScale | None, target: DType | None) -> DType:
    dtype = DTYPES["F32"] if scale is not None else base.dtype
    return target if target is not None and dtype.is_float else dtype


def _refuse_mixed_dtypes(pairs: Iterable[Pair], target: DType | None) -> None:
    mixed = [
        pair
        for pair in pairs
        if _compared_dtype(pair.tuned, pair.tuned_scale, target) != pair.dtype
    ]
    if not mixed:
        return
    shown = "; ".join(
        f"{pair.name} is {pair.base.dtype.name} in base and {pair.tuned.dtype.name} in tuned"
        for pair in mixed[:3]
    )
    more = f" (and {len(mixed) - 3} more)" if len(mixed) > 3 else ""
    raise TensorMismatchError(
        f"{are(len(mixed), 'tensor')} stored in different dtypes: {shown}{more}. A cast would "
        "manufacture equal elements, so none is made unless you ask for it: cast='bf16' "
        "(--cast bf16)" + _fp8_hint(mixed)
    )


def _fp8_hint(mixed: Iterable[Pair]) -> str:
    if any(t.dtype.name.startswith("F8") for pair in mixed for t in (pair.base, pair.tuned)):
        return ", with dequantize=True (--dequantize) for fp8 weights that have scales"
    return ""


def _conversion(
    pairs: Iterable[Pair], target: DType | None, quantized: Mapping[str, str], dequantize: bool
) -> str | None:
    words = []
    if quantized:
        name, how = next(iter(quantized.items()))
        words.append(
            "quantised weights multiplied by their scales in fp32"
            if dequantize
            else f"quantised tensors ({len(quantized)}) compared as stored, apart from their "
            f"scales: {name} is {how}"
        )
    if target is not None:
        stored = sorted({t.dtype.name for p in pairs for t in (p.base, p.tuned)})
        words.append(f"elements stored as {', '.join(stored)} rounded to {target.name}")
    return "; ".join(words) or None


def _example(checkpoint: Checkpoint) -> str:
    return next(iter(checkpoint.tensors), "none at all")


def may_repeat(pairs: Sequence[Pair], base: Checkpoint, tuned: Checkpoint) -> frozenset[Pair]:
    """The pairs that, a config says, only repeat another one, stored or not."""
    heads: set[str] = set()
    for checkpoint in (base, tuned):
        heads |= tied_names(
            checkpoint.tensors.keys() - set(TIED.values()), checkpoint.config
        ).keys()
    return frozenset(pair for pair in pairs if pair.tied_to is not None or pair.name in heads)


def num_columns(shape: tuple[int, ...]) -> int:
    """Columns of the 2-D view of a tensor: its last axis."""
    return shape[-1] if shape else 1


def num_rows(shape: tuple[int, ...]) -> int:
    """Rows of the 2-D view of a tensor: all other axes."""
    return prod(shape[:-1])


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
