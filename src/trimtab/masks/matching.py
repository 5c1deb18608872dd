"""Bring masks of one model to one set of names, and check them against each other and a base.

Wrappers, a missing head or another version of transformers change the names of tensors
(`trimtab.checkpoints.names.core_name`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.names import match_stored
from trimtab.checkpoints.quantized import refuse_quantized
from trimtab.errors import MaskMismatchError
from trimtab.masks.header import BaseTensor, PackedMask
from trimtab.words import first_few

AMask = TypeVar("AMask", bound=PackedMask)


def named_like(
    mask: AMask, names: Collection[str], tied: Mapping[str, str] = MappingProxyType({})
) -> AMask:
    """Rename tensors of a mask to the names that others use for them.

    Args:
        mask: The mask.
        names: Names of tensors of the same model.
        tied: Further names -> the one of `names` that is the same tensor.

    Returns:
        The renamed mask, with the same digest; unmatched tensors keep their names. The mask itself
        if nothing changes.
    """
    new_names: dict[str, str] = match_stored([*mask], names, tied)
    return mask.renamed(new_names) if new_names else mask


def named_as_in(mask: AMask, checkpoint: Checkpoint) -> AMask:
    """The mask with the names that a checkpoint uses; see `named_like`."""
    return named_like(mask, checkpoint.tensors, checkpoint.tied)


def named_alike(masks: Sequence[AMask], base: Checkpoint | None = None) -> list[AMask]:
    """Masks with one set of names: those of a base, or else of the first mask that has a tensor.

    Args:
        masks: Masks of one model.
        base: A checkpoint whose names take precedence.
    """
    names = set(base.tensors if base is not None else ())
    alike = []
    for mask in masks:
        alike.append(named_like(mask, names, base.tied if base is not None else {}))
        names.update(alike[-1])
    return alike


class CommonModel(NamedTuple):
    """The model of several masks.

    Attributes:
        shapes: Name -> shape of all tensors, those of the first mask first.
        base: Name -> the tensor that the masks were made against, where they agree.
        base_differs: Names of the tensors for which they do not.
    """

    shapes: Mapping[str, tuple[int, ...]]
    base: Mapping[str, BaseTensor]
    base_differs: tuple[str, ...]


def common_model(masks: Sequence[PackedMask]) -> CommonModel:
    """Check that masks are of one model, and return it; see `named_alike` for their names.

    Raises:
        MaskMismatchError: Shapes differ; the message names the tensors, up to a handful.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    base: dict[str, BaseTensor] = {}
    wrong: dict[str, str] = {}
    differs: dict[str, None] = {}
    for number, mask in enumerate(masks, 1):
        for name in mask:
            if mask.shape(name) != shapes.setdefault(name, mask.shape(name)):
                wrong[name] = f"{name} is {shapes[name]}, and {mask.shape(name)} in mask {number}"
            if name in mask.base and mask.base[name] != base.setdefault(name, mask.base[name]):
                differs[name] = None
    if wrong:
        raise MaskMismatchError(
            f"masks of different models: {len(wrong)} of {len(shapes)} tensors differ in shape: "
            f"{first_few(list(wrong.values()), '; ')}. Transfer one to the model of the other "
            "first (`trimtab mask transfer`)"
        )
    agreed = {name: base[name] for name in shapes if name in base and name not in differs}
    return CommonModel(shapes, agreed, tuple(differs))


def check_shapes(shapes: Mapping[str, tuple[int, ...]], base: Checkpoint) -> None:
    """Check that a base has the tensors of masks, unquantised.

    Raises:
        MaskMismatchError: It lacks some, or they have other shapes.
        CheckpointError: It is quantised, so that magnitudes are not known.
    """
    problems = []
    for name, shape in shapes.items():
        if name not in base.tensors:
            problems.append(f"{name} is not in it")
        elif base.tensors[name].shape != tuple(shape):
            problems.append(f"{name} has shape {list(base.tensors[name].shape)}, not {list(shape)}")
    if problems:
        raise MaskMismatchError(
            f"the base {base.id} does not fit, in {len(problems)} of {len(shapes)} tensors: "
            f"{first_few(problems, '; ')}. Give the base that the masks were made from"
        )
    refuse_quantized(base.tensors, base.config, shapes, base.id)


def check_digests(
    masks: Sequence[PackedMask], digests: Mapping[str, str], base: Checkpoint
) -> None:
    """Check that a base that has been read is the one that the masks were made against.

    Args:
        masks: Masks; tensors without a recorded base are skipped.
        digests: Name -> xxh3-128 of the stored bytes.
        base: The base.

    Raises:
        MaskMismatchError: It is another one.
    """
    problems = [
        f"{name} has the digest {digests[name]}, and {made_against.digest} when mask {number} was "
        "made"
        for number, mask in enumerate(masks, 1)
        for name, made_against in mask.base.items()
        if digests.get(name, made_against.digest) != made_against.digest
    ]
    if problems:
        raise MaskMismatchError(
            f"the masks were made against other weights than {base.id}: "
            f"{first_few(problems, '; ')}. Give the base that they were made from"
        )


def base_tensors(base: Checkpoint, digests: Mapping[str, str]) -> dict[str, BaseTensor]:
    """The base tensors of a mask.

    Args:
        base: Their checkpoint.
        digests: Name -> xxh3-128 of the stored bytes of each.
    """
    return {name: BaseTensor(base.tensors[name].dtype.name, digests[name]) for name in digests}
