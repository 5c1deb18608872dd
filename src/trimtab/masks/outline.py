"""All of a mask but its bits: names and shapes, what it was made against, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from trimtab.errors import MaskError
from trimtab.masks.packed import BaseTensor
from trimtab.masks.provenance import plain_provenance
from trimtab.words import first_few, one_line

__all__ = ["MaskOutline"]


@dataclass(frozen=True, eq=False)
class MaskOutline:
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

    def renamed(self, names: Mapping[str, str]) -> MaskOutline:
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
        return MaskOutline(shapes, base, self.provenance)

    def num_elements(self, name: str | None = None) -> int:
        """Elements of a tensor, or of all."""
        if name is not None:
            return prod(self.shapes[name])
        return sum(prod(shape) for shape in self.shapes.values())
