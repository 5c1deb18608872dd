"""All of a mask but its bits: names and shapes, what it was made against, and how it was made.

How it was made are its steps, the first step first, each with the digests of what it used. A mask
that was made from several others has in `made_from` what the provenance of each was, by digest, and
that of those that they were made from: side by side, so that the masks of a long loop are not
nested in each other, and one that was used twice is there once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from trimtab.errors import MaskError
from trimtab.masks.packed import BaseTensor, PackedMask
from trimtab.results.records import made_now
from trimtab.words import first_few, one_line

__all__ = [
    "MaskHeader",
    "plain_provenance",
    "provenance_from",
    "provenance_of",
    "provenance_with",
    "provenances_by_digest",
]


def provenance_of(steps: list[Any]) -> dict[str, Any]:
    """The provenance of a mask made just now."""
    return made_now(steps=steps)


def provenance_with(before: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a mask made just now by one step from another mask.

    Args:
        before: Of the other mask.
        step: What was done to it.
    """
    return {**before, **provenance_of([*before.get("steps", ()), dict(step)])}


def provenance_from(masks: Sequence[PackedMask], step: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a mask made just now by one step from several others.

    Args:
        masks: The others; the step has their digests in `of`, in this order.
        step: What was done with them.
    """
    of_all = {**step, "of": [mask.digest for mask in masks]}
    return {**provenance_of([of_all]), "made_from": provenances_by_digest(masks)}


def provenances_by_digest(masks: Sequence[PackedMask]) -> dict[str, Any]:
    """The provenance of each of some masks, and of those that they were made from, by digest."""
    made_from: dict[str, Any] = {}
    for mask in masks:
        provenance = dict(mask.provenance)
        before = provenance.pop("made_from", {})
        # What is there already stays: then no mask is ever said to be made from itself.
        for digest, of in before.items() if isinstance(before, dict) else ():
            made_from.setdefault(digest, of)
        made_from.setdefault(mask.digest, provenance)
    return made_from


def plain_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a provenance as JSON has it, so that no later change can reach it.

    Raises:
        MaskError: It cannot be stored.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(provenance), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise MaskError(f"the provenance cannot be stored as JSON: {error}") from None
    steps = plain.get("steps", [])
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise MaskError("the provenance has steps that are not a list of objects")
    return plain


@dataclass(frozen=True, eq=False)
class MaskHeader:
    """What is known of a mask before its bits. Checked when made, and copied.

    Attributes:
        shapes: Name -> shape, in the mask's order.
        base: Name -> what the tensor was when the mask was made; may lack any.
        provenance: Plain data.

    Raises:
        MaskError: A name, the base or the provenance could not be stored in a file.
    """

    shapes: Mapping[str, tuple[int, ...]]
    base: Mapping[str, BaseTensor]
    provenance: Mapping[str, Any]

    __repr__ = one_line

    def __post_init__(self) -> None:
        # A name that no header may hold would make a file that cannot be read.
        if bad := [n for n in self.shapes if n == "__metadata__" or not n.isprintable()]:
            raise MaskError(f"{first_few([repr(name) for name in bad])}: not names of tensors")
        if strangers := sorted(self.base.keys() - self.shapes.keys()):
            raise MaskError(f"base has {first_few(strangers)}, which the mask does not have")
        if bad := [name for name, of in self.base.items() if not of.has_digest]:
            raise MaskError(f"base of {first_few(bad)}: a digest is not 32 hexadecimal digits")
        object.__setattr__(self, "shapes", dict(self.shapes))
        object.__setattr__(self, "base", dict(self.base))
        object.__setattr__(self, "provenance", plain_provenance(self.provenance))

    def renamed(self, names: Mapping[str, str]) -> MaskHeader:
        """The same with other names for some of the tensors.

        Raises:
            MaskError: Two tensors would have one name.
        """
        shapes = {names.get(name, name): shape for name, shape in self.shapes.items()}
        if len(shapes) < len(self.shapes):
            raise MaskError(
                f"two tensors cannot have one name: {first_few(sorted(names.values()))}"
            )
        base = {names.get(name, name): of for name, of in self.base.items()}
        return MaskHeader(shapes, base, self.provenance)

    def num_elements(self, name: str | None = None) -> int:
        """Elements of a tensor, or of all."""
        if name is not None:
            return prod(self.shapes[name])
        return sum(prod(shape) for shape in self.shapes.values())
