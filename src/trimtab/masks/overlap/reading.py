"""The bits of several masks, tensor by tensor: a file is checked while it is read.

A mask file is only known to be whole once all of it was read. Who reads every tensor, in the order
of the names, reads it once and learns at the end.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints import Checkpoint
from trimtab.checkpoints.tensors import FilePool
from trimtab.masks.mask_file import MaskFile, read_mask_file
from trimtab.masks.naming import named_alike
from trimtab.masks.packed import PackedMask
from trimtab.masks.stored import StoredMask

__all__ = ["Given", "given_mask", "in_one_naming", "tensors_in_order"]


class Given(NamedTuple):
    """A mask, as it was given.

    Attributes:
        mask: The mask.
        id: The path of its file, or None.
        unchecked: Its file, if nobody has read that yet; then trust nothing but its header.
    """

    mask: PackedMask
    id: str | None
    unchecked: MaskFile | None


def given_mask(mask: str | os.PathLike[str] | PackedMask, stack: ExitStack) -> Given:
    """Take a mask as it is, or open its file for as long as the stack lasts.

    Raises:
        MaskError: It is no mask file.
    """
    if not isinstance(mask, str | os.PathLike):
        return Given(mask, mask.path, None)
    pool = FilePool()
    stack.callback(pool.close)
    file = read_mask_file(mask, pool)
    return Given(StoredMask(file, pool), os.fspath(mask), file)


def in_one_naming(masks: Sequence[Given], base: Checkpoint | None) -> list[Given]:
    """The masks under one set of names; see `trimtab.masks.naming.named_alike`.

    A file whose tensors get other names is checked now: its own order is not that of the others.

    Raises:
        MaskError: Such a file is damaged.
    """
    alike = named_alike([given.mask for given in masks], base)
    found = []
    for given, mask in zip(masks, alike, strict=True):
        if mask is given.mask:
            found.append(given)
            continue
        if given.unchecked is not None:
            deque(given.unchecked.checked(), maxlen=0)
        found.append(Given(mask, given.id, None))
    return found


def tensors_in_order(
    masks: Sequence[Given], executor: Executor
) -> Iterator[tuple[str, list[NDArray[np.uint8]]]]:
    """Read each tensor of all masks once, sorted by name; files are checked by the end.

    Args:
        masks: The masks.
        executor: Reads a tensor of all masks at the same time.

    Yields:
        A name, and the bits in each mask that has the tensor, as `Mask.packed` gives them. Those of
        a damaged file can be anything.

    Raises:
        MaskError: A file is damaged; known at the end.
    """
    of_each = [_in_order(given) for given in masks]
    for name in sorted({name for given in masks for name in given.mask}):
        having = [
            of_mask for of_mask, given in zip(of_each, masks, strict=True) if name in given.mask
        ]
        yield name, list(executor.map(next, having))
    for of_mask in of_each:
        deque(of_mask, maxlen=0)  # what a file says of all its tensors comes after the last


def _in_order(given: Given) -> Iterator[NDArray[np.uint8]]:
    if given.unchecked is None:
        for name in sorted(given.mask):
            yield given.mask.packed(name)
    else:
        for _, tensor in given.unchecked.checked():
            yield tensor.bits
