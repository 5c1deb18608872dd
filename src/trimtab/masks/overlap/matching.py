"""Which tensors of several masks belong together, and whether a base is theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trimtab.checkpoints import Checkpoint
from trimtab.checkpoints.quantized import refuse_quantized
from trimtab.errors import MaskMismatchError
from trimtab.masks.overlap.counts import OverlapCoverage
from trimtab.masks.overlap.result import LETTERS
from trimtab.masks.packed import PackedMask
from trimtab.words import first_few, plural

__all__ = ["check_digests", "check_shapes", "coverage_of", "names_in_all"]


def names_in_all(masks: Sequence[PackedMask]) -> list[str]:
    """Tensors that all masks have, in the order of the first.

    Raises:
        MaskMismatchError: There are none, or their shapes differ.
    """
    names = [name for name in masks[0] if all(name in mask for mask in masks)]
    if not names:
        raise MaskMismatchError(
            f"no tensor is in all {len(masks)} masks (the first has {first_few(list(masks[0]))}): "
            "expected masks of one model"
        )
    every_name = dict.fromkeys(name for mask in masks for name in mask)
    problems = []
    for name in every_name:
        shapes = {
            letter: mask.shape(name)
            for letter, mask in zip(LETTERS, masks, strict=False)
            if name in mask
        }
        if len(set(shapes.values())) > 1:
            said = ", ".join(f"{list(shape)} in {letter}" for letter, shape in shapes.items())
            problems.append(f"{name} has shape {said}")
    if problems:
        raise MaskMismatchError(
            f"{plural(len(problems), 'tensor')} of different shapes in the masks: "
            f"{first_few(problems, '; ')}. Masks can be compared element by element only if they "
            "are of models of one shape"
        )
    return names


def check_shapes(masks: Sequence[PackedMask], names: Sequence[str], base: Checkpoint) -> None:
    """Check that a base has the tensors that the masks have.

    Raises:
        MaskMismatchError: It lacks some, or they have other shapes.
        CheckpointError: It is quantised, so that magnitudes are not known.
    """
    problems = []
    for name in names:
        shape = masks[0].shape(name)
        if name not in base.tensors:
            problems.append(f"{name} is not in it")
        elif base.tensors[name].shape != shape:
            problems.append(f"{name} has shape {list(base.tensors[name].shape)}, not {list(shape)}")
    if problems:
        raise MaskMismatchError(
            f"the masks do not fit the base {base.id}, in {len(problems)} of {len(names)} tensors: "
            f"{first_few(problems, '; ')}. Give the base that they were made from"
        )
    refuse_quantized(base.tensors, base.config, names, base.id)


def check_digests(
    masks: Sequence[PackedMask], names: Sequence[str], digests: Mapping[str, str], base: Checkpoint
) -> None:
    """Check that a base is the one that the masks say they were made against.

    Args:
        masks: Those that do not say of a tensor are not asked.
        names: Tensors that all masks have.
        digests: Name -> xxh3-128 of the stored bytes.
        base: The base.

    Raises:
        MaskMismatchError: It is another one.
    """
    problems = [
        f"{name} has the digest {digests[name]}, and {mask.base[name].digest} when mask {letter} "
        "was made"
        for letter, mask in zip(LETTERS, masks, strict=False)
        for name in names
        if name in mask.base and mask.base[name].digest != digests[name]
    ]
    if problems:
        raise MaskMismatchError(
            f"the masks were made against other weights than {base.id}: "
            f"{first_few(problems, '; ')}. Give the base that they were made from"
        )


def coverage_of(masks: Sequence[PackedMask], names: Sequence[str]) -> OverlapCoverage:
    """Sort the tensors of all masks into compared and not, and find disagreements on the base."""
    in_all = set(names)
    every_name = dict.fromkeys(name for mask in masks for name in mask)
    not_compared = [
        {
            "name": name,
            "shape": list(next(mask for mask in masks if name in mask).shape(name)),
            "num_selected": [mask.num_selected(name) if name in mask else None for mask in masks],
        }
        for name in every_name
        if name not in in_all
    ]
    other_base = []
    for name in names:
        recorded = [mask.base.get(name) for mask in masks]
        if len({of.digest for of in recorded if of is not None}) > 1:
            rows = [None if of is None else of._asdict() for of in recorded]
            other_base.append({"name": name, "base": rows})
    return OverlapCoverage(
        num_compared=sum(masks[0].num_elements(name) for name in names),
        not_compared=tuple(not_compared),
        other_base=tuple(other_base),
    )
