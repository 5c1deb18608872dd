"""What is made of the gradients of an element: the formulas, and the sums that they add to.

Each measure adds up something of every gradient, and makes a score of the sum at the end; higher
says that training is more likely to move the element. Units do not matter, since only the order is
used. The sums, one fp32 number for each element of a model, are in a file that has no name. It is
mapped, and a tensor's pages are let go of as soon as its gradient has been added: they stay in the
system's cache of files, which is not memory of the process, and go to the disk where that has no
room. Since the file has no name, it is gone however the process ends.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.checkpoints.weights import CHUNK_ELEMENTS
from trimtab.errors import SettingsError
from trimtab.masks.header import BaseTensor


@dataclass(frozen=True)
class Measure:
    """How gradients become scores. Tensors are flat and fp32.

    Attributes:
        name: Of the measure, as the command line and the provenance have it.
        add: Adds a gradient, which it may overwrite, to the sums.
        finish: Turns sums into scores, in place, given the weights and how many were added.
    """

    name: str
    add: Callable[[Tensor, Tensor], None]
    finish: Callable[[Tensor, Tensor, int], None]


def _add_square(sums: Tensor, gradient: Tensor) -> None:
    sums.addcmul_(gradient, gradient)


def _add_sign(sums: Tensor, gradient: Tensor) -> None:
    sums.add_(gradient.sign_())


def _add(sums: Tensor, gradient: Tensor) -> None:
    sums.add_(gradient)


def _mean(sums: Tensor, weights: Tensor, num: int) -> None:
    sums.div_(num)


def _share_of_signs(sums: Tensor, weights: Tensor, num: int) -> None:
    sums.abs_().div_(num)


def _saliency(sums: Tensor, weights: Tensor, num: int) -> None:
    sums.div_(num).mul_(weights).abs_()


FISHER = Measure("fisher", _add_square, _mean)
"""The diagonal of the model Fisher: the mean of (∂ log p(y | x) / ∂w)² over prompts x and
completions y that the model itself gives them.

y is a whole completion. Its tokens one by one would give the same expectation, since the gradients
of different tokens of a sample of the model are uncorrelated.

Source:
    arXiv 2609.36262: a small diagonal of the model Fisher means small expected gradients.
"""

SIGN_CONSISTENCY = Measure("sign-consistency", _add_sign, _share_of_signs)
"""|sum of the signs of the gradient| / N over N batches: 1 if all push the element the same way.

A gradient of 0 has no sign and counts as a batch that does not push.
"""

SNIP = Measure("snip", _add, _saliency)
"""|w g| with g the mean gradient over all batches: how much the loss would change, to first order,
if the element were 0.

Source:
    Lee, Ajanthan and Torr, SNIP, ICLR 2019 (arXiv 1810.02340), section 4, without the division
    by the sum over all elements, which changes no order.
"""


class ElementSums:
    """A number for each element, 0 at first: `Scores` of masks. A context manager.

    Attributes:
        shapes: Name -> shape of each tensor.
        base: What the tensors are.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        base: Mapping[str, BaseTensor],
        folder: Path,
    ) -> None:
        """Take the room on the disk.

        Args:
            shapes: Name -> shape of each tensor.
            base: What the tensors are.
            folder: On whose disk the file lies; its first parent that exists, if it does not.

        Raises:
            SettingsError: There is no room for it.
        """
        self.shapes = dict(shapes)
        self.base = dict(base)
        while not folder.is_dir():
            folder = folder.parent
        self._places: dict[str, int] = {}
        end = 0
        for name, shape in self.shapes.items():
            self._places[name] = end
            end += _whole_pages(4 * prod(shape))
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the map
        try:
            _reserve(self._file.fileno(), end, folder)
            self._map = mmap.mmap(self._file.fileno(), max(end, 1))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ElementSums:
        return self

    def __exit__(self, *exception: object) -> None:
        self._map.close()
        self._file.close()

    @contextmanager
    def of(self, name: str) -> Iterator[Tensor]:
        """The numbers of a tensor, flat, to be read and written as long as the context lasts."""
        count, place = prod(self.shapes[name]), self._places[name]
        if not count:
            yield torch.empty(0)
            return
        yield torch.frombuffer(self._map, dtype=torch.float32, count=count, offset=place)
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, place, _whole_pages(4 * count))

    def chunks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """The numbers of a tensor, as in `trimtab.masks.selection.scores.Scores`."""
        place, end = self._places[name], self._places[name] + 4 * prod(self.shapes[name])
        for start in range(place, end, 4 * CHUNK_ELEMENTS):
            yield np.frombuffer(self._map[start : min(end, start + 4 * CHUNK_ELEMENTS)], np.float32)


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _reserve(file: int, num_bytes: int, folder: Path) -> None:
    """Take room now: a mapped file that finds none when it is written to ends the process."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, max(num_bytes, 1))
        else:
            os.truncate(file, max(num_bytes, 1))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        raise SettingsError(
            f"{folder}: no room for {num_bytes / 1e6:,.0f} MB, 4 bytes for each element of the "
            "model: write the mask to another disk"
        ) from None
