"""The stored bits of the base, in a file beside that of the updates.

Every point compares with it. It is read piece by piece, from the system's cache of files where that
has room for it, so it takes no memory of the process; and a run that is resumed, which begins with
other weights, finds it there.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xxhash

from trimtab.checkpoints.tensors import DataFile, FilePool, Pooled
from trimtab.elements.dtypes import Bits
from trimtab.errors import CheckpointError
from trimtab.outputs import new_file

__all__ = ["BaseFile", "base_path", "write_base"]


def base_path(path: Path, process: int, num_processes: int) -> Path:
    """Where a process keeps its part of the base, beside a file of tracked updates."""
    number = f"-{process}" if num_processes > 1 else ""
    return path.with_name(f"{path.name}.base{number}")


class BaseFile(Pooled):
    """An open base; use it as a context manager.

    Attributes:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        """Open.

        Raises:
            CheckpointError: There is no such file.
        """
        self.path = path
        self._pool = FilePool()
        self._file = DataFile(path, self._pool)

    def read_into(self, start: int, out: Bits) -> None:
        """Fill `out` from a byte on; any thread may.

        Raises:
            CheckpointError: The file is shorter, or was replaced.
        """
        if self._file.read_into(start, out.view(np.uint8)) < out.nbytes:
            raise CheckpointError(f"{self.path}: shorter than the base that it was written from")

    def digest(self) -> str:
        """xxh3-128 of the whole file, hexadecimal."""
        hasher = xxhash.xxh3_128()
        buffer = np.empty(1 << 22, np.uint8)
        start = 0
        while num_read := self._file.read_into(start, buffer):
            hasher.update(buffer[:num_read].data)
            start += num_read
        return hasher.hexdigest()


def write_base(path: Path, parts: Iterable[Bits]) -> None:
    """Write the stored bits of all parts, one after the other, in the place of an old file."""
    with new_file(path, force=True) as file:
        for bits in parts:
            file.write(bits.data)
