"""Match the tensors of a base with those of other checkpoints, by name.

Every stored tensor ends up in exactly one list, so that nothing drops out of a denominator unseen.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

from trimtab.checkpoints.architectures import MODALITIES, TIED
from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.names import match_renamed, tied_names, without_wrappers
from trimtab.checkpoints.quantized import BlockScale, block_scales, quantized_weights, scales_of
from trimtab.checkpoints.tensors import Hashes, StoredTensor
from trimtab.elements.dtypes import DTYPES, DType
from trimtab.errors import CheckpointError, TensorMismatchError
from trimtab.words import are, first_few

VOCABULARY = re.compile(
    r"(?:^|\.)(?:embed_tokens(?:_per_layer)?|word_embeddings|tok_embeddings|wte|embed_in|shared|"
    r"lm_head|embed_out|shared_head\.head)\.weight$"
)
"""Names whose rows are tokens: tensors of two sizes have their first rows in common.

This does not hold for other embeddings (positions, patches, token types) or wider layers.
"""

MAX_SHOWN = 3
"""Tensors of different dtypes that a message names."""


class HasNames(Protocol):
    """What names are matched by: a checkpoint, or what has its tensors."""

    @property
    def tensors(self) -> Mapping[str, Any]:
        """Name -> tensor."""

    @property
    def tied(self) -> Mapping[str, str]:
        """Names that repeat a stored tensor without being stored -> its name."""


@dataclass(frozen=True, eq=False)
class Aligned:
    """A tensor of the model, as the base and every other checkpoint store it.

    Attributes:
        name: Name in base, or the tied name that replaces it there.
        stored: The stored tensors, base first.
        dtype: Dtype in which elements are compared.
        shape: Shape of what is compared: that of all, or the rows that all have.
        scales: For each of `stored`, the scales to multiply in first, or None.
        is_tied: In some checkpoint this name is only another name of a tensor.
    """

    name: str
    stored: tuple[StoredTensor, ...]
    dtype: DType
    shape: tuple[int, ...]
    scales: tuple[BlockScale | None, ...]
    is_tied: bool = False

    @property
    def num_elements(self) -> int:
        """Elements that are compared."""
        return prod(self.shape)

    @property
    def is_resized(self) -> bool:
        """Whether some checkpoint has rows of it that another lacks."""
        return any(tensor.shape != self.shape for tensor in self.stored)


@dataclass(frozen=True, eq=False)
class Side:
    """How the tensors of one other checkpoint correspond to those of the base.

    Attributes:
        shared: Name in base -> the tensor of the other that can be compared with it.
        renamed: Name in base -> name in the other, where they differ.
        missing: Name -> tensor of base that the other lacks.
        extra: Tensors that only the other has.
        mismatched: Pairs of tensors of one name whose shapes have nothing in common.
    """

    shared: Mapping[str, StoredTensor]
    renamed: Mapping[str, str]
    missing: dict[str, StoredTensor]
    extra: tuple[StoredTensor, ...]
    mismatched: tuple[tuple[StoredTensor, StoredTensor], ...]


@dataclass(frozen=True, eq=False)
class Alignment:
    """All stored tensors of some checkpoints, sorted into what can be compared and what cannot.

    Attributes:
        checkpoints: The base and the others.
        items: The tensors to compare, in base's order.
        apart: Tensors that are in no item, each with the index of its checkpoint; base is 0.
        sides: One for each checkpoint except base.
        doubtful: Items that, according to a config, only repeat another one.
        scales: Name of a tensor that scales or modifies a quantised weight -> that weight.
        folded: Those of them that are multiplied into their weights.
        is_quantized: Whether there are tensors that are not the weights themselves.
        conversion: Description of how elements are converted before the comparison, or None.
    """

    checkpoints: tuple[Checkpoint, ...]
    items: tuple[Aligned, ...]
    apart: tuple[tuple[int, StoredTensor], ...]
    sides: tuple[Side, ...] = ()
    doubtful: frozenset[Aligned] = frozenset()
    scales: Mapping[str, str] = field(default_factory=dict)
    folded: Mapping[str, str] = field(default_factory=dict)
    is_quantized: bool = False
    conversion: str | None = None

    def conversion_given(self, hashes: Hashes) -> str | None:
        """The conversion and, for scales stored apart from weights, how many of them differ.

        Args:
            hashes: Of all stored tensors.
        """
        compared = [item.stored for item in self.items if item.stored[0].name in self.scales]
        num_apart = sum(
            len({by_name[t.name] for by_name, t in zip(hashes, stored, strict=True)}) > 1
            for stored in compared
        )
        if not num_apart:
            return self.conversion
        return (
            f"{self.conversion}; {num_apart} of {len(compared)} scales differ, so weights differ "
            "whose elements are the same"
        )


def align(
    base: Checkpoint,
    *others: Checkpoint,
    cast: str | None = None,
    dequantize: bool = False,
    exact: bool = False,
    labels: Sequence[str] | None = None,
) -> Alignment:
    """Match the tensors of a base with those of other checkpoints, each by its name in base.

    Args:
        base: The checkpoint before training.
        others: At least one checkpoint after it.
        cast: Name of a float dtype (`bf16`); every float tensor is rounded to it.
        dequantize: Multiply quantised weights by their scales, to fp32 (or to `cast`).
        exact: Set tensors of different shapes apart; by default the rows that all sizes of a
            vocabulary have are compared. Messages do not suggest a cast.
        labels: Names of the checkpoints in messages; by default "base" and the ids of the others.

    Raises:
        TensorMismatchError: Some have no tensor in common with base, or no tensor is in all; or
            some are stored in different dtypes and `cast` is not given. All of it is counted, the
            first few are named.
        CheckpointError: `cast` is not a float dtype, or is given for quantised weights without
            `dequantize`, or they cannot be dequantised.
    """
    checkpoints = (base, *others)
    target = _cast_target(cast)
    quantized: dict[str, str] = {}
    scales: dict[str, str] = {}
    for checkpoint in checkpoints:
        quantized |= quantized_weights(checkpoint.tensors, checkpoint.config)
        scales |= scales_of(checkpoint.tensors, checkpoint.config)
    if target is not None and quantized and not dequantize:
        name, how = next(iter(quantized.items()))
        raise CheckpointError(
            f"{name} is {how}: its elements mean nothing without their scales, so they cannot be "
            "cast alone; add dequantize=True (--dequantize)"
        )
    folded = scales if dequantize else {}
    block = [block_scales(c.tensors, c.config, c.id) if dequantize else {} for c in checkpoints]
    sides = [_side(base, other, folded, exact) for other in others]

    def compared_in(index: int, tensor: StoredTensor) -> DType:
        return _compared_dtype(tensor, block[index].get(tensor.name), target)

    opposite = list(zip(others, sides, strict=True))
    problems = [
        f"{base.id} and {other.id} have no tensor in common: expected checkpoints of one model, "
        f"found names such as {_example(base)} and {_example(other)}"
        for other, side in opposite
        if not side.shared
    ]
    labels = labels or ("base", *(other.id for other in others))
    items: list[Aligned] = []
    mixed: list[str] = []
    has_mixed_fp8 = False
    for name in dict.fromkeys(name for side in sides for name in side.shared):
        in_base = _stored(base, name)
        dtype = compared_in(0, in_base)
        counterparts = [_counterpart(base, name, *each) for each in opposite]
        unlike = [
            f"{tensor.dtype.name} in {labels[index]}"
            for index, tensor in enumerate(counterparts, 1)
            if tensor is not None and compared_in(index, tensor) != dtype
        ]
        stored = (in_base, *(tensor for tensor in counterparts if tensor is not None))
        if unlike:
            before = f"{name} is {in_base.dtype.name} in {labels[0]}"
            mixed.append(f"{before}{', ' if len(unlike) > 1 else ' and '}{first_few(unlike)}")
            has_mixed_fp8 |= any(tensor.dtype.name.startswith("F8") for tensor in stored)
        if None in counterparts:
            if name not in base.tensors:  # tied in base, and stored in some of the others
                for side, tensor in zip(sides, counterparts, strict=True):
                    if tensor is None:
                        side.missing[name] = in_base
            continue
        shapes = [common_shape(name, in_base.shape, tensor.shape) for tensor in stored]
        items.append(
            Aligned(
                name=name,
                stored=stored,
                dtype=dtype,
                shape=min(shape for shape in shapes if shape is not None),  # they differ in rows
                scales=tuple(by_name.get(t.name) for by_name, t in zip(block, stored, strict=True)),
                is_tied=name not in base.tensors
                or any(side.renamed.get(name, name) not in o.tensors for o, side in opposite),
            )
        )
    if mixed:
        problems.append(_mixed_dtypes(mixed, exact=exact, has_fp8=has_mixed_fp8))
    if problems:
        raise TensorMismatchError(first_few(problems, "; "))
    if not items:
        one_shape = " with one shape" if exact else ""
        raise TensorMismatchError(
            f"no tensor is in all of {first_few([c.id for c in checkpoints])}{one_shape}: expected "
            "checkpoints of one model"
        )
    heads = {
        head
        for c in checkpoints
        for head in tied_names(c.tensors.keys() - set(TIED.values()), c.config)
    }
    return Alignment(
        checkpoints=checkpoints,
        items=tuple(items),
        apart=_apart(checkpoints, items),
        sides=tuple(sides),
        doubtful=frozenset(item for item in items if item.is_tied or item.name in heads),
        scales=scales,
        folded=folded,
        is_quantized=bool(quantized),
        conversion=_conversion(items, target, quantized, dequantize),
    )


def alone(base: Checkpoint, names: Iterable[str], *, is_all_hashed: bool = False) -> Alignment:
    """Some tensors of one checkpoint, to be read as they are stored.

    Args:
        base: The checkpoint.
        names: Names of the tensors.
        is_all_hashed: Whether the other tensors are hashed too, as `apart`.
    """
    items = [
        Aligned(name, (tensor,), tensor.dtype, tensor.shape, (None,))
        for name in names
        for tensor in [base.tensors[name]]
    ]
    return Alignment((base,), tuple(items), _apart((base,), items) if is_all_hashed else ())


def _apart(
    checkpoints: Sequence[Checkpoint], items: Iterable[Aligned]
) -> tuple[tuple[int, StoredTensor], ...]:
    used = {id(tensor) for item in items for tensor in item.stored}
    return tuple(
        (index, tensor)
        for index, checkpoint in enumerate(checkpoints)
        for tensor in checkpoint.tensors.values()
        if id(tensor) not in used
    )


def _side(base: Checkpoint, other: Checkpoint, folded: Collection[str], exact: bool) -> Side:
    matches = match_names(base, other)
    shared, mismatched = {}, []
    for name, its_name in matches.items():
        if name in folded or its_name in folded:
            continue
        pair = _stored(base, name), _stored(other, its_name)
        shapes = pair[0].shape, pair[1].shape
        if shapes[0] == shapes[1] or not (exact or common_shape(name, *shapes) is None):
            shared[name] = pair[1]
        else:
            mismatched.append(pair)
    in_base, in_other = folded | matches.keys(), {*folded, *matches.values()}
    return Side(
        shared=shared,
        renamed={name: its_name for name, its_name in matches.items() if name != its_name},
        missing={name: t for name, t in base.tensors.items() if name not in in_base},
        extra=tuple(t for name, t in other.tensors.items() if name not in in_other),
        mismatched=tuple(mismatched),
    )


def _stored(checkpoint: Checkpoint, name: str) -> StoredTensor:
    """A tensor by its name, or by a name that is tied to it."""
    return checkpoint.tensors[checkpoint.tied.get(name, name)]


def _counterpart(base: Checkpoint, name: str, other: Checkpoint, side: Side) -> StoredTensor | None:
    if name in side.shared or name not in other.tied:
        return side.shared.get(name)
    # A tied name that neither stores is not a name that the two share.
    return side.shared.get(base.tied.get(name, ""))


def _cast_target(cast: str | None) -> DType | None:
    if cast is None:
        return None
    aliases = {"BFLOAT16": "BF16", "FLOAT16": "F16", "FP16": "F16", "FP32": "F32", "FLOAT32": "F32"}
    target = DTYPES.get(aliases.get(cast.upper(), cast.upper()))
    if target is None or not target.is_float:
        floats = ", ".join(name.lower() for name, dtype in DTYPES.items() if dtype.is_float)
        raise CheckpointError(f"cannot cast to {cast!r}: expected one of {floats}")
    return target


def match_names(base: HasNames, other: HasNames) -> dict[str, str]:
    """Name in base -> name in the other, in base's order."""
    in_base = set(base.tensors) | set(base.tied)
    in_other = set(other.tensors) | set(other.tied)
    ordered = [*base.tensors, *(name for name in base.tied if name in other.tensors)]
    left = [name for name in base.tensors if name not in in_other]
    right = [name for name in other.tensors if name not in in_base]
    renamed = match_renamed(left, right)
    matches: dict[str, str] = {}
    for name in ordered:
        if name in in_other and (name in base.tensors or name in other.tensors):
            matches[name] = name
        elif name in renamed:
            matches[name] = renamed[name]
    return matches


def common_shape(
    name: str, base: tuple[int, ...], other: tuple[int, ...]
) -> tuple[int, ...] | None:
    """What two tensors of a name have in common: all, the first rows of a vocabulary, or None."""
    if base == other:
        return base
    if has_vocabulary_rows(name) and len(base) == len(other) == 2 and base[1] == other[1]:
        return min(base[0], other[0]), base[1]
    return None


def has_vocabulary_rows(name: str) -> bool:
    """Whether the rows of a tensor of this name are tokens."""
    return VOCABULARY.search(without_wrappers(name)) is not None and not any(
        word in MODALITIES for word in name.split(".")
    )


def _compared_dtype(tensor: StoredTensor, scale: BlockScale | None, target: DType | None) -> DType:
    dtype = DTYPES["F32"] if scale is not None else tensor.dtype
    return target if target is not None and dtype.is_float else dtype


def _mixed_dtypes(mixed: Sequence[str], *, exact: bool, has_fp8: bool) -> str:
    more = f" (and {len(mixed) - MAX_SHOWN} more)" if len(mixed) > MAX_SHOWN else ""
    text = (
        f"{are(len(mixed), 'tensor')} stored in different dtypes: "
        f"{'; '.join(mixed[:MAX_SHOWN])}{more}. A cast would manufacture equal elements"
    )
    if exact:
        return f"{text}: save all in one dtype"
    text += ", so none is made unless you ask for it: cast='bf16' (--cast bf16)"
    if has_fp8:
        text += ", with dequantize=True (--dequantize) for fp8 weights that have scales"
    return text


def _conversion(
    items: Iterable[Aligned], target: DType | None, quantized: Mapping[str, str], dequantize: bool
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
        stored = sorted({tensor.dtype.name for item in items for tensor in item.stored})
        words.append(f"elements stored as {', '.join(stored)} rounded to {target.name}")
    return "; ".join(words) or None


def _example(checkpoint: Checkpoint) -> str:
    return next(iter(checkpoint.tensors), "none at all")


def num_columns(shape: tuple[int, ...]) -> int:
    """Columns of the 2-D view of a tensor: its last axis."""
    return shape[-1] if shape else 1


def num_rows(shape: tuple[int, ...]) -> int:
    """Rows of the 2-D view of a tensor: all other axes."""
    return prod(shape[:-1])


def without_tied_copies(
    items: Sequence[Aligned], doubtful: Collection[Aligned], hashes: Hashes
) -> tuple[list[Aligned], list[tuple[Aligned, Aligned]]]:
    """Drop items that repeat another in all checkpoints, such as a stored copy of tied embeddings.

    Only hashes tell: a checkpoint may declare two tensors tied and store two that differ.

    Args:
        items: All items.
        doubtful: Items that, according to a config, only repeat another one.
        hashes: Of all stored tensors.

    Returns:
        The items that count, in the order given, and each dropped item with the one that it
        repeats.
    """
    originals: dict[tuple[str, ...], Aligned] = {}
    copies: dict[Aligned, Aligned] = {}
    # The doubtful items come last, after those that they may repeat.
    for item in sorted(items, key=doubtful.__contains__):
        key = tuple(
            [by_name[tensor.name] for by_name, tensor in zip(hashes, item.stored, strict=True)]
        )
        original = originals.setdefault(key, item)
        if item in doubtful and original is not item and original.shape == item.shape:
            copies[item] = original
    return [item for item in items if item not in copies], list(copies.items())
