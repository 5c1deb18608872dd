"""Masks made from other masks: intersection, union, difference, complement and restriction.

The result has the tensors of both masks; in a tensor that one of them lacks, that one selects
nothing. The complement is of the mask's own tensors, so `a - b` is `a & ~b` only if both have the
same tensors. The base digest of a tensor is kept unless the masks disagree on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.names import TensorPart, parts_of
from trimtab.errors import MaskError
from trimtab.masks.header import MaskHeader, PackedMask, provenance_from, provenance_with
from trimtab.masks.matching import common_model, named_alike
from trimtab.masks.on_disk import write_mask_file
from trimtab.masks.packed import PackedTensor
from trimtab.words import first_few, one_line


@dataclass(frozen=True, eq=False)
class DerivedMask:
    """A mask that is computed on demand, in memory by `Mask.of` or tensor by tensor by `save`.

    All but the bits is known and checked at once. Saving needs memory for a few copies of the
    largest tensor's bits.

    Attributes:
        header: Header of the mask.
        tensor: Computes the bits of a tensor, given its name; a new array at each call.
    """

    header: MaskHeader
    tensor: Callable[[str], PackedTensor]

    __repr__ = one_line

    def with_provenance(self, **entries: Any) -> DerivedMask:
        """The same mask with entries of its provenance set."""
        provenance = {**self.header.provenance, **entries}
        return replace(self, header=replace(self.header, provenance=provenance))

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> int:
        """Compute the mask and write it, whole or not at all, one tensor at a time.

        Args:
            path: The file; missing parent folders are created. It may be one of those that the mask
                is made from.
            force: Replace an existing file.

        Returns:
            Number of selected elements.

        Raises:
            OutputExistsError: The file exists and `force` is not set, or the path is a folder.
            MaskError: A mask that this one is made from was changed on disk.
        """
        return write_mask_file(path, self.header, self.tensor, force=force)


Operation: TypeAlias = Literal["and", "or", "xor", "minus"]

_Bits: TypeAlias = NDArray[np.uint8]

OPERATIONS: Mapping[Operation, Callable[[_Bits, _Bits], _Bits]] = {
    "and": lambda first, second: first & second,
    "or": lambda first, second: first | second,
    "xor": lambda first, second: first ^ second,
    "minus": lambda first, second: first & ~second,
}
"""Operation on the bits of two masks. Unused bits, 0 in both, stay 0."""


def combine(operation: Operation, first: PackedMask, second: PackedMask) -> DerivedMask:
    """Combine two masks.

    Args:
        operation: `and`, `or`, `xor` or `minus` (what the first selects and the second does not).
        first: A mask.
        second: Another mask of the same model: shapes agree where both have a tensor. Names that
            differ by a wrapper or a prefix are one name, that of the first.

    Returns:
        A mask with the tensors of both, those of the first before the others. Its provenance
        contains that of both, and in `base_differs` the tensors whose bases differ.

    Raises:
        MaskMismatchError: Shapes differ; the message names the tensors, up to a handful.
    """
    first, second = named_alike([first, second])
    model = common_model([first, second])
    shapes = model.shapes
    step = {"step": operation, "base_differs": list(model.base_differs)}
    header = MaskHeader(shapes, model.base, provenance_from((first, second), step))

    def tensor(name: str) -> PackedTensor:
        shape = shapes[name]
        bits = (mask.tensor(name, shape).bits for mask in (first, second))
        return PackedTensor.of(shape, OPERATIONS[operation](*bits))

    return DerivedMask(header, tensor)


def complement(mask: PackedMask) -> DerivedMask:
    """The elements that a mask does not select, of the same tensors."""
    shapes = {name: mask.shape(name) for name in mask}
    provenance = provenance_with(mask.provenance, {"step": "complement", "of": mask.digest})
    return DerivedMask(
        MaskHeader(shapes, mask.base, provenance),
        lambda name: mask.tensor(name, shapes[name]).complement(),
    )


def restrict(
    mask: PackedMask,
    *,
    kinds: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    tensors: Sequence[str] | None = None,
) -> DerivedMask:
    """The part of a mask in some of its tensors: those that meet every condition given.

    Args:
        mask: The mask.
        kinds: Kinds of tensors, such as `q_proj`; they follow from names alone, so a fused tensor
            is one tensor of one kind.
        layers: Indices of transformer layers; tensors outside the layers are in none.
        tensors: Names, or patterns with `*`, `?` and `[...]` as in a shell.

    Returns:
        A mask with only those tensors.

    Raises:
        MaskError: No condition is given; or a kind, layer or name matches no tensor of the mask, or
            no tensor meets all conditions.
    """
    conditions = {"kinds": kinds, "layers": layers, "tensors": tensors}
    requested = {key: list(wanted) for key, wanted in conditions.items() if wanted is not None}
    if not requested:
        raise MaskError("restricted to nothing: expected kinds, layers or tensors")
    parts = {name: parts_of(name, mask.shape(name), {})[0] for name in mask}
    meets: dict[str, Callable[[str, Any], bool]] = {
        "kinds": lambda name, kind: parts[name].kind == kind,
        "layers": lambda name, layer: parts[name].layer == layer,
        "tensors": lambda name, wanted: (
            name == wanted if wanted in parts else fnmatchcase(name, wanted)
        ),
    }
    names = list(parts)
    for key, wanted in requested.items():
        if absent := [str(one) for one in wanted if not any(meets[key](n, one) for n in parts)]:
            raise MaskError(f"the mask has no {key} {first_few(absent)}; {_there_is(key, parts)}")
        names = [name for name in names if any(meets[key](name, one) for one in wanted)]
    if not names:
        raise MaskError(f"no tensor of the mask is in all of the {' and '.join(requested)} given")
    shapes = {name: mask.shape(name) for name in names}
    step = {"step": "restrict", "of": mask.digest, **dict.fromkeys(conditions), **requested}
    base = {name: mask.base[name] for name in names if name in mask.base}
    header = MaskHeader(shapes, base, provenance_with(mask.provenance, step))
    return DerivedMask(header, lambda name: mask.tensor(name, shapes[name]))


def _there_is(key: str, parts: Mapping[str, TensorPart]) -> str:
    """What a mask has, for the message about what it lacks."""
    if key == "kinds":
        return f"it has {', '.join(sorted({part.kind for part in parts.values()}))}"
    if key == "layers":
        layers = sorted({part.layer for part in parts.values() if part.layer is not None})
        return f"it has {layers[0]} to {layers[-1]}" if layers else "it has none"
    return f"its first is {next(iter(parts))}" if parts else "it has none"
