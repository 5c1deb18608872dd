"""A mask that is made from others tensor by tensor: in memory at once, or straight into a file.

Everything but the bits is known, and checked, before the first tensor is made. Saved from masks
that are on disk, it needs memory for a few copies of the largest tensor's bits, and never for the
mask.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from trimtab.masks.outline import MaskOutline
from trimtab.masks.packed import PackedMask, PackedTensor, num_packed_bytes
from trimtab.masks.writing import write_mask_file
from trimtab.words import one_line

__all__ = ["DerivedMask", "tensor_of"]


@dataclass(frozen=True, eq=False)
class DerivedMask:
    """A recipe for a mask; `Mask.of` follows it in memory, `save` on disk.

    Attributes:
        outline: Of the mask.
        tensor: Makes the bits of a tensor, given its name; new ones at each call.
    """

    outline: MaskOutline
    tensor: Callable[[str], PackedTensor]

    __repr__ = one_line

    def with_provenance(self, **told: Any) -> DerivedMask:
        """The same mask with entries of its provenance set."""
        provenance = {**self.outline.provenance, **told}
        return replace(self, outline=replace(self.outline, provenance=provenance))

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> int:
        """Make the mask and write it, whole or not at all, one tensor at a time.

        Args:
            path: The file; missing parent folders are made. It may be one of those that the mask
                is made from.
            force: Replace an existing file.

        Returns:
            How many elements the mask selects.

        Raises:
            OutputExistsError: The file exists and `force` is not set, or the path is a folder.
            MaskError: A mask that this one is made from was changed on disk.
        """
        return write_mask_file(path, self.outline, self.tensor, force=force)


def tensor_of(mask: PackedMask, name: str, shape: tuple[int, ...]) -> PackedTensor:
    """What a mask selects of a tensor of this shape: nothing if it does not have the tensor."""
    if name not in mask:
        return PackedTensor(shape, np.zeros(num_packed_bytes(prod(shape)), np.uint8), 0)
    return PackedTensor(shape, mask.packed(name), mask.num_selected(name))
