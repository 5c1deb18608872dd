"""What the formats of others share: zstd payloads with a checksum of the bytes that result.

All of it works tensor by tensor. Writing holds a chunk of a tensor, reading the tensor that
results. What a file claims is never allocated: a payload gives at most the bytes that the tensor
of the base allows, and a zstd window that is larger than those is refused.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import IO, Any, Literal, NamedTuple, Protocol, cast, get_args

import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.safetensors import file_start, read_with_metadata
from trimtab.checkpoints.tensors import DataFile, FilePool, Pooled, StoredTensor
from trimtab.checkpoints.weights import CHUNK_ELEMENTS, elements_of
from trimtab.deltas.source import TunedTensor, Weights
from trimtab.elements.dtypes import Bits
from trimtab.errors import CheckpointError, DeltaError, TensorMismatchError
from trimtab.extras import require
from trimtab.words import first_few, one_line

CHUNK_BYTES = 1 << 20
"""Bytes of a payload that are decompressed at once."""

CHUNK_POSITIONS = 1 << 17
"""Positions that are read at once."""

MAX_WINDOW = 1 << 27
"""Largest window of a zstd frame, in bytes, as in the reference implementation."""

Bytes = NDArray[np.uint8]

Checksum = Literal["adler32", "xxh3-128", "blake3"]
CHECKSUMS: tuple[Checksum, ...] = get_args(Checksum)


class Hasher(Protocol):
    """A checksum that is computed piece by piece."""

    def update(self, data: Any, /) -> object:
        """Add bytes."""

    def hexdigest(self) -> str:
        """The checksum of all bytes so far."""


class Adler32:
    """Adler-32 with the methods of a hash of `hashlib`."""

    def __init__(self) -> None:
        self.value = 1

    def update(self, data: Any, /) -> None:
        """Add bytes."""
        self.value = zlib.adler32(data, self.value)

    def hexdigest(self) -> str:
        """Eight hexadecimal digits."""
        return f"{self.value:08x}"


class DecimalAdler32(Adler32):
    """Adler-32 as Fireworks writes it: a decimal number."""

    def hexdigest(self) -> str:
        """Decimal digits."""
        return str(self.value)


def hasher_of(checksum: str) -> Callable[[], Hasher]:
    """What computes a checksum, called without arguments.

    Args:
        checksum: One of `CHECKSUMS`.

    Raises:
        DeltaError: It is none of them.
        MissingExtraError: BLAKE3 is not installed.
    """
    match checksum:
        case "adler32":
            return Adler32
        case "xxh3-128":
            return xxhash.xxh3_128
        case "blake3":
            hasher: Callable[[], Hasher] = require("blake3", "pip install 'trimtab[blake3]'").blake3
            return hasher
    raise DeltaError(f"checksum {checksum!r}: expected {', '.join(CHECKSUMS)}")


def ensure_same_tensors(
    base: Checkpoint | Weights, tuned: Checkpoint | Weights, format: str
) -> None:
    """Check that a checkpoint has the names, dtypes and shapes of its base.

    Args:
        base: The base.
        tuned: The checkpoint.
        format: What cannot hold anything else, for the message.

    Raises:
        TensorMismatchError: It has not.
    """
    problems = []
    for name in sorted(base.tensors.keys() | tuned.tensors.keys()):
        ours, theirs = base.tensors.get(name), tuned.tensors.get(name)
        if ours is None or theirs is None:
            problems.append(f"{name} is only in the {'tuned' if ours is None else 'base'}")
        elif (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            problems.append(
                f"{name} is {ours.dtype.name} {list(ours.shape)} in the base and "
                f"{theirs.dtype.name} {list(theirs.shape)} in the tuned"
            )
    if problems:
        raise TensorMismatchError(
            f"{tuned.id} cannot be a delta of {base.id} in {format}, which holds the same tensors "
            f"in both: {first_few(problems, '; ')}"
        )


def chunks_in(tensor: TunedTensor) -> Iterator[Bits]:
    """The elements of a tensor, a chunk at a time; one that lies in a file is read so, too."""
    if isinstance(tensor, StoredTensor):
        yield from elements_of(tensor)
        return
    bits = tensor.read().reshape(-1)
    for start in range(0, len(bits), CHUNK_ELEMENTS):
        yield bits[start : start + CHUNK_ELEMENTS]


def pairs_of(base: TunedTensor, tuned: TunedTensor) -> Iterator[tuple[int, Bits, Bits]]:
    """Both tensors a chunk at a time: the position of its first element, and the elements."""
    start = 0
    for ours, theirs in zip(chunks_in(base), chunks_in(tuned), strict=True):
        yield start, ours, theirs
        start += len(ours)


class Change(NamedTuple):
    """What tells whether a tensor changed: the checksum of the tuned one, and how many units."""

    digest: str
    num_changed: int


def change_of(
    base: TunedTensor, tuned: TunedTensor, hasher: Callable[[], Hasher], *, in_bytes: bool = True
) -> Change:
    """Read a tensor of both checkpoints once.

    Args:
        base: The tensor.
        tuned: The tuned one, of the same dtype and shape.
        hasher: Computes the checksum.
        in_bytes: Count bytes that differ; else elements.
    """
    digest, num_changed = hasher(), 0
    for _, ours, theirs in pairs_of(base, tuned):
        old, new = ours.view(np.uint8), theirs.view(np.uint8)
        digest.update(new.data)
        differ = old != new if in_bytes else ours != theirs
        num_changed += int(np.count_nonzero(differ))
    return Change(digest.hexdigest(), num_changed)


def xor_pieces(base: TunedTensor, tuned: TunedTensor) -> Iterator[Bytes]:
    """The bytes of the tuned tensor XOR those of the base, in order."""
    for _, ours, theirs in pairs_of(base, tuned):
        yield (ours ^ theirs).view(np.uint8)


class PayloadFile:
    """A safetensors file of compressed byte vectors, written under its name when it is complete.

    Its header is known last, so the payloads lie in a temporary file until then.

    Args:
        folder: Where the temporary file lies, without a name.
        level: Level of zstd.
    """

    def __init__(self, folder: Path, *, level: int = 1) -> None:
        self._data = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._level = level
        self.digests: dict[str, str] = {}
        self._lengths: dict[str, int] = {}

    def close(self) -> None:
        """Drop the temporary file."""
        self._data.close()

    @property
    def num_bytes(self) -> int:
        """Bytes of all payloads."""
        return self._data.tell()

    def add(self, name: str, digest: str, pieces: Iterable[Bytes], num_bytes: int) -> None:
        """Compress a payload.

        Args:
            name: Of the tensor.
            digest: Checksum of the tuned tensor.
            pieces: The payload.
            num_bytes: How long it is; readers of this format need it in the frame.
        """
        start = self._data.tell()
        compressor = zstandard.ZstdCompressor(level=self._level).compressobj(size=num_bytes)
        for piece in pieces:
            self._data.write(compressor.compress(piece.data))
        self._data.write(compressor.flush())
        self._lengths[name] = self._data.tell() - start
        self.digests[name] = digest

    def write(self, path: Path) -> int:
        """Write the file, and return how many bytes it has."""
        start = file_start(
            {name: ("U8", (num,)) for name, num in self._lengths.items()}, self.digests
        )
        num_bytes = len(start) + self.num_bytes
        with path.open("xb") as file:
            file.write(start)
            self._data.seek(0)
            copyfileobj(self._data, file, CHUNK_BYTES)
        return num_bytes


@dataclass(frozen=True)
class Exported:
    """What a writer wrote.

    Attributes:
        num_tensors: Tensors of the checkpoint.
        num_changed: Tensors that differ from the base.
        num_bytes: Bytes of the files of the delta, without copies of configurations.
    """

    num_tensors: int
    num_changed: int
    num_bytes: int


@dataclass(frozen=True, repr=False)
class OpenDelta(Pooled):
    """An open delta of one of these formats: its headers were read and checked, and no payload.

    Use it as a context manager, or call `close`.

    Attributes:
        path: Where it is.
        names: Its tensors, which the base has too. Others are as in the base.
        tuned: Name -> bits of the tuned tensor, in its shape, checked; raises `DeltaError`.
        unchecked: Those of its tensors for which it has no checksum.
        version: Its version, if the format has one.
    """

    path: Path
    names: tuple[str, ...]
    tuned: Callable[[str], Bits]
    _pool: FilePool
    unchecked: tuple[str, ...] = ()
    version: str | None = None

    def __repr__(self) -> str:
        return one_line(self, str(self.path))

    def __iter__(self) -> Iterator[tuple[str, Bits]]:
        """Name and bits of each tuned tensor, one at a time."""
        return ((name, self.tuned(name)) for name in self.names)


@contextmanager
def pool_of_delta() -> Iterator[FilePool]:
    """A pool for the files of a delta, closed where opening the delta fails."""
    pool = FilePool()
    try:
        yield pool
    except BaseException:
        pool.close()
        raise


def read_file(path: Path, pool: FilePool) -> tuple[dict[str, StoredTensor], Mapping[str, str]]:
    """Tensors and metadata of a safetensors file of a delta; only its header is read.

    Raises:
        DeltaError: There is no such file, or it is not valid.
    """
    try:
        tensors, metadata = read_with_metadata(DataFile(path, pool))
    except CheckpointError as error:
        raise DeltaError(str(error)) from None
    return {tensor.name: tensor for tensor in tensors}, metadata


def check_payloads(
    base: Checkpoint | Weights,
    path: Path,
    payloads: Iterable[StoredTensor],
    metadata: Mapping[str, str],
) -> None:
    """Check that a file holds byte vectors with checksums, of tensors of the base.

    Raises:
        DeltaError: It does not.
    """
    problems = []
    for payload in payloads:
        if payload.name not in base.tensors:
            problems.append(f"{payload.name} is not a tensor of {base.id}")
        elif payload.dtype.name != "U8" or len(payload.shape) != 1:
            problems.append(
                f"{payload.name} is {payload.dtype.name} {list(payload.shape)}, expected a vector "
                "of compressed bytes (U8)"
            )
        elif payload.name not in metadata:
            problems.append(f"{payload.name} has no checksum in the header")
    if problems:
        raise DeltaError(f"{path}: {first_few(problems, '; ')}")


class Decompressed:
    """The decompressed bytes of a payload, in order.

    Args:
        payload: One or more zstd frames.
        most: Most bytes that it may hold.
    """

    def __init__(self, payload: StoredTensor, most: int) -> None:
        self._payload = payload
        self._at = 0
        window = 1 << max(10, (max(most, 1) - 1).bit_length())
        self._stream = zstandard.ZstdDecompressor(
            max_window_size=min(window, MAX_WINDOW)
        ).stream_reader(cast(IO[bytes], self), read_across_frames=True)

    def read(self, num_bytes: int) -> bytes:
        """The next compressed bytes, for the decompressor."""
        num_bytes = min(num_bytes, self._payload.num_bytes - self._at)
        out = np.empty(num_bytes, dtype=np.uint8)
        self._payload.read_into(self._at, out)
        self._at += num_bytes
        return out.tobytes()

    def fill(self, out: Bytes) -> None:
        """Fill `out` with the next bytes.

        Raises:
            DeltaError: There are fewer bytes than `out` has, or they cannot be decompressed.
        """
        unread = memoryview(out.data)
        while unread:
            if not (count := self._read_into(unread)):
                raise self.error("its payload is too short for the tensor of the base")
            unread = unread[count:]

    def skip(self, num_bytes: int) -> None:
        """Pass over bytes."""
        scratch = np.empty(min(num_bytes, CHUNK_BYTES), dtype=np.uint8)
        for start in range(0, num_bytes, CHUNK_BYTES):
            self.fill(scratch[: num_bytes - start])

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            DeltaError: There is.
        """
        if self._read_into(memoryview(bytearray(1))):
            raise self.error("its payload is too long for the tensor of the base")

    def error(self, problem: str) -> DeltaError:
        """An error of this tensor."""
        return DeltaError(f"{self._payload.file.path}: {self._payload.name}: {problem}")

    def _read_into(self, out: memoryview) -> int:
        try:
            return int(self._stream.readinto(out))
        except zstandard.ZstdError as error:
            raise self.error(f"its payload cannot be decompressed ({error})") from None


def apply_xor(payload: StoredTensor, base: TunedTensor) -> Bits:
    """The tuned tensor, of a payload that has to be XORed with the base.

    Raises:
        DeltaError: The payload does not fit the tensor.
    """
    bits = base.read()
    raw = bits.reshape(-1).view(np.uint8)
    stream = Decompressed(payload, base.num_bytes)
    scratch = np.empty(min(CHUNK_BYTES, len(raw)), dtype=np.uint8)
    for start in range(0, len(raw), CHUNK_BYTES):
        part = raw[start : start + CHUNK_BYTES]
        stream.fill(scratch[: len(part)])
        part ^= scratch[: len(part)]
    stream.finish()
    return bits


def check_digest(
    bits: Bits, expected: str, hasher: Callable[[], Hasher], path: Path, name: str
) -> None:
    """Check that a tuned tensor is the one that was written.

    Raises:
        DeltaError: It is not.
    """
    digest = hasher()
    digest.update(bits.reshape(-1).view(np.uint8).data)
    if (actual := digest.hexdigest()) != expected:
        raise DeltaError(
            f"{path}: {name}: the result has checksum {actual}, expected {expected[:40]!r}: the "
            "base is not the one that the delta was made from, or the delta is damaged"
        )
