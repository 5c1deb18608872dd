"""Tensors that stay on disk: where each one is in its file, and how any part of it is read.

Files are not mapped: bytes are read into the caller's buffer, so resident memory is what the caller
allocates.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits, DType
from trimtab.errors import CheckpointError, CheckpointNotFoundError
from trimtab.inputs import check_regular, identity_of, open_regular
from trimtab.words import one_line

Hashes = Sequence[Mapping[str, str]]
"""Name -> xxh3-128 of every stored tensor, for each of several checkpoints."""


HASH = re.compile("[0-9a-f]{32}")
"""What `hash_of` returns, and any xxh3-128 in a file."""


def hash_of(bits: Bits) -> str:
    """xxh3-128 of the bytes of a tensor."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data)


def hash_of_file(path: Path) -> str:
    """xxh3-128 of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


class FilePool:
    """Keeps at most `limit` idle files open, shared by all shards of a checkpoint.

    A reader takes a file handle out of the pool, so no two threads ever share a file position.
    The number of open handles is bounded by `limit` plus the number of reading threads.
    """

    def __init__(self, limit: int = 32) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._idle: list[tuple[DataFile, io.FileIO]] = []  # least recently used first
        self._closed = False

    def take(self, file: DataFile) -> io.FileIO:
        """A handle of `file` for one reader, to be given back."""
        with self._lock:
            if self._closed:
                raise ValueError(f"{file.path}: the checkpoint is closed")
            for index, (owner, handle) in enumerate(self._idle):
                if owner is file:
                    del self._idle[index]
                    return handle
        return file.open()

    def give_back(self, file: DataFile, handle: io.FileIO) -> None:
        """Keep a handle for the next reader."""
        with self._lock:
            self._idle.append((file, handle))
            surplus = len(self._idle) if self._closed else len(self._idle) - self._limit
            expired = [self._idle.pop(0)[1] for _ in range(surplus)]
        for old in expired:
            old.close()

    def close(self) -> None:
        """Close every file; reading afterwards is an error."""
        with self._lock:
            self._closed = True
            handles = [handle for _, handle in self._idle]
            self._idle.clear()
        for handle in handles:
            handle.close()


class Pooled:
    """A context manager that reads through a `FilePool` and closes it at the end."""

    _pool: FilePool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files. Reading afterwards is an error."""
        self._pool.close()


class DataFile:
    """One file of a checkpoint, opened when it is first read.

    Attributes:
        path: Where it is.
        size: Its size in bytes when the checkpoint was opened.
    """

    def __init__(self, path: Path, pool: FilePool) -> None:
        try:
            stat = path.stat()
        except FileNotFoundError:
            raise CheckpointNotFoundError(f"{path}: no such file") from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
        check_regular(stat, path, CheckpointError)
        self.path = path
        self.size = stat.st_size
        self._identity = identity_of(stat)
        self._pool = pool

    def __repr__(self) -> str:
        return one_line(self, str(self.path))

    def open(self) -> io.FileIO:
        """Open a new handle; the caller closes it.

        Raises:
            CheckpointError: The file is gone, cannot be read, or has changed since the checkpoint
                was opened.
        """
        handle = open_regular(self.path, CheckpointError)
        if identity_of(os.fstat(handle.fileno())) != self._identity:
            handle.close()
            raise self._changed()
        return handle

    def check(self) -> None:
        """Check that the file is still the one that was opened first.

        Raises:
            CheckpointError: It was written to, replaced or removed since.
        """
        try:
            stat = self.path.stat()
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror})") from None
        if identity_of(stat) != self._identity:
            raise self._changed()

    def _changed(self) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: the file changed while it was being read: wait until it is written, "
            "and start again"
        )

    def read_into(self, offset: int, out: NDArray[np.uint8]) -> int:
        """Fill `out` with the bytes from `offset` on. Thread-safe.

        Args:
            offset: First byte to read.
            out: Contiguous bytes to fill.

        Returns:
            Number of bytes read; fewer than `out` holds only at the end of the file.

        Raises:
            CheckpointError: The file cannot be read, or has changed since the checkpoint was
                opened.
        """
        unread = memoryview(out.data)
        handle = self._pool.take(self)
        try:
            handle.seek(offset)
            while unread:
                count = handle.readinto(unread)
                if not count:
                    break
                unread = unread[count:]
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror})") from None
        finally:
            self._pool.give_back(self, handle)
        self.check()  # after reading, so that the bytes are those of the original file
        return len(out) - len(unread)

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Bytes from `offset` on, fewer where the file ends."""
        out = np.empty(max(0, min(num_bytes, self.size - offset)), dtype=np.uint8)
        return out[: self.read_into(offset, out)].tobytes()


class MemoryFile(DataFile):
    """The bytes of one tensor that is in memory, for whatever reads stored tensors.

    Attributes:
        path: What messages call it; not a file.
        size: Its size in bytes.
    """

    def __init__(
        self, path: Path, size: int, fill: Callable[[int, NDArray[np.uint8]], None]
    ) -> None:
        """Wrap a function.

        Args:
            path: What messages call it.
            size: Number of bytes of the tensor.
            fill: Fills its second argument with the bytes from the first on, which is a multiple
                of the size of an element, as the number of bytes is; called in any thread.
        """
        self.path = path
        self.size = size
        self._fill = fill

    def open(self) -> io.FileIO:
        """There is nothing to open.

        Raises:
            CheckpointError: Always.
        """
        raise CheckpointError(f"{self.path}: the tensor is in memory, and has no file")

    def check(self) -> None:
        """Memory is not replaced as a file can be; nothing to check."""

    def read_into(self, offset: int, out: NDArray[np.uint8]) -> int:
        """As `DataFile.read_into`."""
        self._fill(offset, out)
        return len(out)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as it lies in a file: contiguous in C order, little-endian.

    Attributes:
        name: Its name in the checkpoint.
        dtype: As stored.
        shape: As stored; `()` for a scalar.
        file: The file that holds it.
        offset: Byte of the file at which its first element starts.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: DataFile
    offset: int

    def __repr__(self) -> str:
        return one_line(self, f"{self.name}: {self.dtype.name} {list(self.shape)}")

    @property
    def num_elements(self) -> int:
        """Elements in the tensor."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return self.num_elements * self.dtype.num_bytes

    def read_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the tensor's bytes from byte `start` on.

        Args:
            start: First byte, counted from the start of the tensor.
            out: Contiguous bytes to fill; `start + len(out)` must not pass the tensor's end.

        Raises:
            CheckpointError: The file is shorter than its header said, was replaced, or cannot
                be read.
        """
        if start < 0 or start + len(out) > self.num_bytes:
            raise IndexError(
                f"{self.name}: bytes {start} to {start + len(out)} of {self.num_bytes}"
            )
        num_read = self.file.read_into(self.offset + start, out)
        if num_read < len(out):
            raise CheckpointError(
                f"{self.name}: {self.file.path} ends after {num_read} of {len(out)} bytes at "
                f"offset {self.offset + start}; the file was cut short while it was being read"
            )

    def elements(self, start: int, stop: int) -> Bits:
        """A vector of the elements from `start` to `stop`, in C order, as `read` gives them.

        Raises:
            CheckpointError: As in `read_into`.
        """
        out: Bits = np.empty(stop - start, dtype=self.dtype.bits)
        self.read_into(start * self.dtype.num_bytes, out.view(np.uint8))
        return out

    def read(self) -> Bits:
        """The whole tensor as unsigned integers of the stored width, in its shape."""
        out: Bits = np.empty(self.shape, dtype=self.dtype.bits)
        self.read_into(0, out.reshape(-1).view(np.uint8))
        return out
