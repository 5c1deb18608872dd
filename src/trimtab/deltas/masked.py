"""Deltas that are coded over the elements of a mask, because no others were trained.

Whoever has the mask needs no positions beside those within it: of each chunk of a tensor, the
elements that the mask selects are taken together, before and after, and coded as if they were all
there is. Time goes by their number, and so does what a sender keeps of the version before.

The mask is sent once. A delta names it by its digest, and its reader is given the file, or finds it
beside the delta under `mask_file_name`. Importing this module loads Numba.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from threading import Lock
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.names import match_stored
from trimtab.deltas.source import Weights
from trimtab.elements.dtypes import Bits
from trimtab.elements.simd import LANES, compiled, num_ones, trailing_zeros
from trimtab.elements.update_fit import Readable
from trimtab.elements.update_kernels import changes
from trimtab.errors import DeltaError, MaskError
from trimtab.inputs import AnyPath
from trimtab.masks.header import MaskHeader, PackedMask
from trimtab.masks.on_disk import open_mask, write_mask_file
from trimtab.masks.packed import PackedTensor
from trimtab.words import first_few

AnyMask: TypeAlias = AnyPath | PackedMask

Words = NDArray[np.uint64]


def mask_file_name(digest: str) -> str:
    """Name of the file of a mask that lies beside the deltas that are coded over it."""
    return f"mask-{digest}.safetensors"


def saved_mask(mask: AnyMask, folder: Path) -> AnyPath:
    """The file of a mask; one that is in memory is written to a folder first."""
    if not isinstance(mask, PackedMask):
        return mask
    if mask.path is not None:
        return mask.path
    header = MaskHeader({name: mask.shape(name) for name in mask}, mask.base, mask.provenance)
    path = folder / mask_file_name(mask.digest)
    write_mask_file(path, header, lambda name: mask.tensor(name, mask.shape(name)), force=True)
    return path


class Selection:
    """The elements of a tensor that a mask selects.

    Args:
        tensor: Their bits.
    """

    def __init__(self, tensor: PackedTensor) -> None:
        content = np.zeros(-(-tensor.num_elements // LANES) * 8, np.uint8)
        content[: tensor.bits.size] = tensor.bits
        self._words: Words = content.view("<u8").astype(np.uint64, copy=False)

    def gather(self, bits: Bits, start: int = 0) -> Bits:
        """The selected ones of elements that lie together in the tensor.

        Args:
            bits: A vector of elements, up to the end of the tensor or a multiple of 64.
            start: Number of the first in the tensor, a multiple of 64.
        """
        words = self._of(bits, start)
        values = np.empty(int(_num_selected(words)), bits.dtype)
        _gather(words, bits, values)
        return values

    def scatter(self, values: Bits, bits: Bits, start: int = 0) -> None:
        """The inverse of `gather`: replace the selected elements by values, in place."""
        _scatter(self._of(bits, start), values, bits)

    def count_changes(self, before: Bits, after: Bits, start: int = 0) -> tuple[int, int]:
        """How many elements differ, and how many of them are not selected."""
        num, num_outside = _count_changes(self._of(before, start), before, after)
        return int(num), int(num_outside)

    def _of(self, bits: Bits, start: int) -> Words:
        return self._words[start // LANES : -(-(start + bits.size) // LANES)]


@dataclass(frozen=True, eq=False)
class Selected:
    """The selected elements of a tensor, chunk by chunk: fewer than are asked for."""

    tensor: Readable
    selection: Selection

    def elements(self, start: int, stop: int) -> Bits:
        """The selected ones of the elements from `start` to `stop`, in C order."""
        return self.selection.gather(self.tensor.elements(start, stop), start)


class MaskOfBase:
    """A mask, and the tensors of a base that it selects from.

    Args:
        mask: The mask.
        base: The base, whose names may differ from those of the mask as those of wrappers do.

    Raises:
        MaskMismatchError: The mask selects elements of a tensor that the base does not have, or has
            in another shape.
    """

    def __init__(self, mask: PackedMask, base: Checkpoint | Weights) -> None:
        renamed = match_stored([*mask], base.tensors, base.tied)
        known = mask.renamed(renamed) if renamed else mask
        known.check({name: tensor.shape for name, tensor in base.tensors.items()})
        self.mask = mask
        self._names = {renamed.get(name, name): name for name in mask}

    def name(self, base: str | None) -> str | None:
        """The name that the mask has for a tensor of the base; None if it selects nothing of it."""
        name = None if base is None else self._names.get(base)
        return name if name is not None and self.mask.num_selected(name) else None

    def selection(self, base: str, shape: tuple[int, ...]) -> Selection:
        """What it selects of a tensor of the base of this shape."""
        if (name := self.name(base)) is None:
            return Selection(PackedTensor(shape, np.zeros(-(-prod(shape) // 8), np.uint8), 0))
        return Selection(self.mask.tensor(name, shape))


class Masks:
    """The masks of deltas: those that were given, and those that lie beside a delta.

    Use it as a context manager, or call `close`.

    Args:
        given: Masks, or their files.
    """

    def __init__(self, given: AnyMask | Sequence[AnyMask] | None = None) -> None:
        if given is None:
            given = []
        self._given = [given] if isinstance(given, str | os.PathLike | PackedMask) else [*given]
        self._known: dict[str, PackedMask] = {}
        self._lock = Lock()
        self._files = ExitStack()

    def __enter__(self) -> Masks:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def find(self, digest: str, delta: Path) -> PackedMask:
        """The mask of a delta, checked.

        Args:
            digest: That of the mask.
            delta: The file of the delta.

        Raises:
            DeltaError: None of those given has this digest, and none lies beside the delta; or a
                file is damaged.
        """
        with self._lock:
            while self._given and digest not in self._known:
                mask = self._given.pop(0)
                if not isinstance(mask, PackedMask):
                    mask = self._opened(mask)
                self._known[mask.digest] = mask
            beside = delta.parent / mask_file_name(digest)
            if digest not in self._known and beside.is_file():
                mask = self._opened(beside)
                self._known[mask.digest] = mask
            if digest not in self._known:
                raise DeltaError(
                    f"{delta} is coded over the elements of the mask {digest}, "
                    + (f"and given was {first_few([*self._known])}" if self._known else "not given")
                    + f": give its file by --mask or mask=, or put it there as {beside.name}"
                )
            return self._known[digest]

    def _opened(self, path: AnyPath) -> PackedMask:
        try:
            return self._files.enter_context(open_mask(path))
        except MaskError as error:
            raise DeltaError(str(error)) from None


@compiled()
def _num_selected(words: Words) -> int:
    num = 0
    for word in words:
        num += num_ones(word)
    return num


@compiled()
def _gather(words: Words, bits: Bits, values: Bits) -> None:
    num = 0
    for i in range(words.size):
        todo = words[i]
        while todo != 0:
            values[num] = bits[LANES * i + trailing_zeros(todo)]
            todo &= todo - np.uint64(1)
            num += 1


@compiled()
def _scatter(words: Words, values: Bits, bits: Bits) -> None:
    num = 0
    for i in range(words.size):
        todo = words[i]
        while todo != 0:
            bits[LANES * i + trailing_zeros(todo)] = values[num]
            todo &= todo - np.uint64(1)
            num += 1


@compiled()
def _count_changes(words: Words, before: Bits, after: Bits) -> tuple[int, int]:
    num = num_outside = 0
    for i in range(words.size):
        changed = changes(before, after, LANES * i)
        num += num_ones(changed)
        num_outside += num_ones(changed & ~words[i])
    return num, num_outside
