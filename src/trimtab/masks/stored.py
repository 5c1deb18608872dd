"""A mask file whose bits stay on disk: everything about them is checked once, then read at will.

Opening reads the file once from first byte to last, holding one tensor's bits at a time, and
refuses it unless counts, unused bits and the digest are right: what `Mask.load` would refuse,
`open_mask` refuses. Afterwards a tensor's bits are in memory only while somebody holds them, so
what works through a `StoredMask` tensor by tensor needs memory for its largest tensor (1/8 byte
for each element), however large the mask is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.tensors import FilePool, Pooled
from trimtab.masks.mask_file import MaskFile, read_mask_file
from trimtab.masks.packed import BaseTensor
from trimtab.words import one_line

__all__ = ["StoredMask", "open_mask"]


class StoredMask(Pooled):
    """A mask whose bits are on disk: it is read like a `Mask`, a tensor at a time.

    Use it as a context manager, or call `close`. Make one with `open_mask`.
    """

    def __init__(self, file: MaskFile, pool: FilePool) -> None:
        self._file = file
        self._pool = pool

    @property
    def path(self) -> str:
        """The file, as it was given."""
        return self._file.path

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in order."""
        return tuple(self._file.outline.shapes)

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the mask comes from; `steps` lists how it was made, the first step first."""
        return MappingProxyType(self._file.outline.provenance)

    @property
    def base(self) -> Mapping[str, BaseTensor]:
        """What the tensors were that the mask was made against; empty if it is not known."""
        return MappingProxyType(self._file.outline.base)

    @property
    def digest(self) -> str:
        """xxh3-128 of names, shapes and bits, hexadecimal: the identity of the mask."""
        return self._file.digest

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._file.outline.shapes[name]

    def packed(self, name: str) -> NDArray[np.uint8]:
        """Read the bits of a tensor, as `Mask.packed` gives them. Any thread may call this.

        Returns:
            A new array, uint8 `[ceil(num_elements / 8)]`; bits after the last element are 0.

        Raises:
            MaskError: The file was changed since it was opened, or cannot be read.
        """
        bits = self._file.read(name).bits
        bits.flags.writeable = False
        return bits

    def num_selected(self, name: str | None = None) -> int:
        """Selected elements of a tensor, or of all."""
        counts = self._file.num_selected
        return sum(counts.values()) if name is None else counts[name]

    def num_elements(self, name: str | None = None) -> int:
        """Elements of a tensor, or of all tensors of the mask."""
        return self._file.outline.num_elements(name)

    @property
    def density(self) -> float:
        """Selected / all elements of the mask's tensors; 0 for a mask without elements."""
        return self.num_selected() / self.num_elements() if self.num_elements() else 0.0

    def renamed(self, names: Mapping[str, str]) -> StoredMask:
        """The same file with other names for some of its tensors, and the digest that it has.

        It reads through the files of this one, and is closed with it.

        Args:
            names: Name of a tensor of this mask -> its new name.
        """
        return StoredMask(self._file.renamed(names), self._pool)

    def __contains__(self, name: object) -> bool:
        return name in self._file.outline.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.outline.shapes)

    def __len__(self) -> int:
        return len(self._file.outline.shapes)

    def __repr__(self) -> str:
        return one_line(self, f"{self.path}, digest {self.digest}")


def open_mask(path: str | os.PathLike[str]) -> StoredMask:
    """Open a mask file, check all of it, and leave its bits on disk.

    Raises:
        MaskError: It is no mask file, or a damaged one.
    """
    pool = FilePool()
    try:
        file = read_mask_file(path, pool)
        for _ in file.checked():
            pass
    except BaseException:
        pool.close()
        raise
    return StoredMask(file, pool)
