"""Which tensor of base belongs to which of tuned, and what is left over.

Everything stored on either side ends up in exactly one list, so that nothing can leave the
denominator in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from trimtab.checkpoints.architectures import TIED
from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.names import match_renamed, tied_names
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.elements.dtypes import DTYPES, DType
from trimtab.errors import CheckpointError, TensorMismatchError

__all__ = [
    "BlockScale",
    "Pair",
    "Pairing",
    "common_shape",
    "has_vocabulary_rows",
    "may_repeat",
    "num_columns",
    "num_rows",
    "pair_tensors",
]

VOCABULARY = ("embed", "lm_head", "wte", "shared.weight")
"""Names whose rows are tokens, so that two sizes still have rows in common."""


@dataclass(frozen=True, eq=False)
class BlockScale:
    """The scales of an fp8 weight, one for each block of `block` rows and columns."""

    tensor: StoredTensor
    block: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Pair:
    """A tensor of base and its counterpart.

    Attributes:
        name: Name in base, or the tied name that stands for it there.
        base: As stored in base.
        tuned: As stored in tuned.
        dtype: In which the two are compared.
        shape: What is compared: base's shape, or the rows that both have.
        base_scale: Block scales to multiply into base first, or None.
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
        folded: Name of a block scale -> the weight that it is multiplied into.
        has_block_scales: Whether there are fp8 weights with block scales, folded or not.
        conversion: Words for what is done to elements before they are compared, or None.
    """

    pairs: tuple[Pair, ...]
    missing: tuple[StoredTensor, ...]
    extra: tuple[StoredTensor, ...]
    mismatched: tuple[tuple[StoredTensor, StoredTensor], ...]
    renamed: dict[str, str]
    folded: dict[str, str]
    has_block_scales: bool
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
        dequantize: Multiply fp8 weights by their block scales, to fp32 (or to `cast`).

    Raises:
        TensorMismatchError: No tensor is in both, or some are stored in different dtypes and no
            cast was asked for. Every such tensor is counted, the first few are named.
        CheckpointError: `cast` is not a float dtype, or a cast of block-quantised weights was
            asked for without dequantising them.
    """
    target = _cast_target(cast)
    folded = _block_scales(base) | _block_scales(tuned)
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
        if dequantize and name in folded:
            continue
        shape = common_shape(name, base_tensor.shape, tuned_tensor.shape)
        if shape is None:
            mismatched.append((base_tensor, tuned_tensor))
            continue
        base_scale = _scale(base, base_tensor) if dequantize else None
        tuned_scale = _scale(tuned, tuned_tensor) if dequantize else None
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
    if target is not None and folded and not dequantize:
        raise CheckpointError(
            f"{next(iter(folded.values()))}: its fp8 elements mean nothing without their block "
            "scales, so they cannot be cast alone; add dequantize=True (--dequantize)"
        )
    _refuse_mixed_dtypes(pairs, target)
    matched = set(matches)
    return Pairing(
        pairs=tuple(pairs),
        missing=tuple(t for name, t in base.tensors.items() if name not in matched),
        extra=tuple(t for name, t in tuned.tensors.items() if name not in set(matches.values())),
        mismatched=tuple(mismatched),
        renamed=renamed,
        folded=folded if dequantize else {},
        has_block_scales=bool(folded),
        conversion=_conversion(pairs, target, bool(folded), dequantize),
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


def _block_scales(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        scale.name: name
        for name in checkpoint.tensors
        if (scale := checkpoint.scale_of(name)) is not None
    }


def _scale(checkpoint: Checkpoint, weight: StoredTensor) -> BlockScale | None:
    scale = checkpoint.scale_of(weight.name)
    if scale is None:
        return None
    quantization = checkpoint.config.get("quantization_config")
    block = quantization.get("weight_block_size") if isinstance(quantization, Mapping) else None
    if not (isinstance(block, list) and len(block) == 2 and all(_is_size(b) for b in block)):
        raise CheckpointError(
            f"{checkpoint.id}: cannot dequantise {weight.name}: expected two block sizes in "
            f"config.json under quantization_config.weight_block_size, found {block!r}"
        )
    rows, columns = block
    expected = tuple(-(-size // b) for size, b in zip(weight.shape, block, strict=False))
    if len(weight.shape) != 2 or scale.shape != expected:
        raise CheckpointError(
            f"{scale.name}: expected shape {expected} for a weight of shape {weight.shape} in "
            f"blocks of {rows} × {columns}, found {scale.shape}"
        )
    return BlockScale(scale, (rows, columns))


def _is_size(value: object) -> bool:
    return isinstance(value, int) and value > 0


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
    return any(word in name for word in VOCABULARY)


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
        f"{len(mixed)} tensors are stored in different dtypes: {shown}{more}. A cast would "
        "manufacture equal elements, so none is made unless you ask for it: cast='bf16' "
        "(--cast bf16)" + _fp8_hint(mixed)
    )


def _fp8_hint(mixed: Iterable[Pair]) -> str:
    if any(t.dtype.name.startswith("F8") for pair in mixed for t in (pair.base, pair.tuned)):
        return ", with dequantize=True (--dequantize) for fp8 weights"
    return ""


def _conversion(
    pairs: Iterable[Pair], target: DType | None, has_scales: bool, dequantize: bool
) -> str | None:
    words = []
    if has_scales:
        words.append(
            "fp8 weights multiplied by their block scales in fp32"
            if dequantize
            else "fp8 weights compared as stored, apart from their block scales"
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
