"""Find where the tensors of a `pytorch_model.bin` lie, without loading or executing anything.

A torch.save file is an uncompressed zip: a pickle that describes the tensors, and one record of raw
bytes for each storage. The zip directory is checked in full before the pickle is followed
(`state_dict.py`); then the file is read like any other. torch is not needed.
"""

from __future__ import annotations

import io
import zipfile
from itertools import pairwise
from math import prod
from typing import Any
from zlib import crc32

from trimtab.checkpoints.state_dict import (
    MAX_PICKLE_BYTES,
    PickledTensor,
    PickleError,
    read_state_dict,
)
from trimtab.checkpoints.tensors import DataFile, StoredTensor
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import CheckpointError
from trimtab.words import first_few

DTYPES_BY_TORCH_NAME = {dtype.storage.name: dtype for dtype in DTYPES.values()}
"""torch, NumPy and ml_dtypes use the same names."""

LOCAL_HEADER_BYTES = 30
"""Of a zip record, before its name and extra field."""

MAX_DIRECTORY_BYTES = 32 << 20
"""Longest directory of a zip that is read: about 300,000 records."""

KNOWN_RECORDS = frozenset({"data.pkl", "byteorder", "version", ".format_version"})
"""Records that torch reads by name."""

CURE = "load it where it was made and save it as safetensors"


def read_torch_file(file: DataFile) -> list[StoredTensor]:
    """List the tensors of a torch.save file by offset. Tied ones share their offset.

    Raises:
        CheckpointError: The file is not a state dict of plain tensors, or is damaged.
    """
    try:
        records = _records(file)
        byte_order = _content(file, records, "byteorder")
        if byte_order not in (None, b"little"):
            raise _FileError("saved on a big-endian machine")
        pickle = _content(file, records, "data.pkl")
        if pickle is None:
            raise _FileError("has no record data.pkl, which torch.save writes")
        state = read_state_dict(pickle)
        if not isinstance(state, dict):
            kind = "tensor" if isinstance(state, PickledTensor) else type(state).__name__
            raise _FileError(f"expected a state dict, found a {kind}")
        tensors, problems = [], []
        for name, value in state.items():
            try:
                tensors.append(_locate(file, name, value, records))
            except _TensorError as error:
                problems.append(f"{name!r} {error}" if isinstance(name, str) else str(error))
        if problems:
            raise _FileError(first_few(problems, "; "))
    except _FileError as error:
        raise CheckpointError(f"{file.path}: {error}; {CURE}") from None
    except PickleError as error:
        raise CheckpointError(
            f"{file.path}: not a plain state dict ({error}); trimtab executes no pickle: {CURE}"
        ) from None
    return sorted(tensors, key=lambda tensor: tensor.offset)


class _FileError(Exception):
    """Why a file cannot be read, without its name."""


class _TensorError(Exception):
    """Why an entry of a state dict cannot be read, without its name."""


class _Bounded(io.RawIOBase):
    """A data file as zipfile wants it, from which a directory cannot ask for more than it may."""

    def __init__(self, file: DataFile) -> None:
        self._file = file
        self._position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise zipfile.BadZipFile("an offset before the start of the file")
        self._position = start + offset
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._file.size - self._position)
        size = left if size < 0 else min(size, left)
        if size > MAX_DIRECTORY_BYTES:
            raise _FileError(f"its zip directory has {size} bytes, {MAX_DIRECTORY_BYTES} are read")
        content = self._file.read(self._position, size)
        self._position += len(content)
        return content


def _records(file: DataFile) -> dict[str, tuple[zipfile.ZipInfo, int]]:
    """Name within the archive's folder -> entry and first byte, for every record of the zip.

    Zip readers disagree on duplicates and on case, so a file on which two could differ is refused.
    """
    try:
        with zipfile.ZipFile(_Bounded(file)) as archive:
            entries = archive.infolist()
    except (_FileError, CheckpointError):
        raise
    except zipfile.BadZipFile:
        raise _FileError(
            "not a zip file of torch.save: truncated, or saved by a PyTorch before 1.6"
        ) from None
    except Exception as error:  # zipfile raises many classes on a damaged file
        raise _FileError(f"its zip directory cannot be read ({error})") from None
    records: dict[str, tuple[zipfile.ZipInfo, int]] = {}
    folded: set[str] = set()
    spans = []
    folder = entries[0].filename.partition("/")[0] if entries else ""
    for entry in entries:
        first, _, name = entry.filename.partition("/")
        if first != folder or not name or entry.filename != entry.orig_filename:
            raise _FileError(f"its record {_named(entry)} is not in the folder of the others")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise _FileError("its records are compressed")
        if entry.flag_bits & 1:
            raise _FileError("its records are encrypted")
        if name.casefold() in folded:
            raise _FileError(f"has two records of the name {_named(entry)}, by case or in full")
        if name.casefold() in KNOWN_RECORDS and name not in KNOWN_RECORDS:
            raise _FileError(f"its record {_named(entry)} should be {name.casefold()}")
        folded.add(name.casefold())
        start = _start(file, entry)
        records[name] = (entry, start)
        spans.append((entry.header_offset, start + entry.file_size, entry))
    spans.sort(key=lambda span: span[:2])
    for (_, end, _), (begin, _, entry) in pairwise(spans):
        if begin < end:
            raise _FileError(f"its record {_named(entry)} overlaps another")
    if spans and spans[-1][1] > file.size:
        raise _FileError(f"its record {_named(spans[-1][2])} ends after the file: truncated")
    return records


def _start(file: DataFile, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a record begin, by its own header, which must name it too."""
    local = file.read(entry.header_offset, LOCAL_HEADER_BYTES)
    name_bytes = int.from_bytes(local[26:28], "little")
    extra_bytes = int.from_bytes(local[28:30], "little")
    after = entry.header_offset + LOCAL_HEADER_BYTES
    name = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
    if local[:4] != b"PK\x03\x04" or file.read(after, name_bytes) != name:
        raise _FileError(f"its record {_named(entry)} is not where its zip directory says")
    return after + name_bytes + extra_bytes


def _content(
    file: DataFile, records: dict[str, tuple[zipfile.ZipInfo, int]], name: str
) -> bytes | None:
    """The bytes of one of the small records; None if there is none of this name."""
    if name not in records:
        return None
    entry, start = records[name]
    if entry.file_size > MAX_PICKLE_BYTES:
        raise _FileError(f"its {name} has {entry.file_size} bytes, {MAX_PICKLE_BYTES} are read")
    content = file.read(start, entry.file_size)
    if crc32(content) != entry.CRC:
        raise _FileError(f"its {name} is damaged: another checksum than its zip directory has")
    return content


def _named(entry: zipfile.ZipInfo) -> str:
    return ascii(entry.orig_filename[:100])


def _locate(
    file: DataFile, name: Any, value: Any, records: dict[str, tuple[zipfile.ZipInfo, int]]
) -> StoredTensor:
    if not isinstance(name, str):
        raise _TensorError(f"a key of the type {type(name).__name__} is not a tensor name")
    if not name.isprintable():
        raise _TensorError("is not a tensor name")
    if not isinstance(value, PickledTensor):
        raise _TensorError(f"is a {type(value).__name__}, not a tensor")
    if value.odd:
        raise _TensorError(value.odd)
    if not _is_contiguous(value):
        raise _TensorError(f"is a view with strides {value.strides}, not contiguous")
    dtype = DTYPES_BY_TORCH_NAME.get(value.dtype)
    if dtype is None:
        raise _TensorError(f"has dtype torch.{value.dtype}, which trimtab does not read")
    if (record := records.get(f"data/{value.storage}")) is None:
        raise _TensorError(f"lies in the record {value.storage[:100]!a}, which is not there")
    entry, first = record
    start = value.offset * dtype.num_bytes
    tensor = StoredTensor(name, dtype, value.shape, file, first + start)
    if start + tensor.num_bytes > entry.file_size:
        raise _TensorError("needs more bytes than its record in the file has")
    return tensor


def _is_contiguous(tensor: PickledTensor) -> bool:
    """As torch defines it: strides of dimensions of one entry, or of no elements, do not count."""
    if 0 in tensor.shape:
        return True
    dimensions = zip(tensor.shape, tensor.strides, strict=True)
    sizes = [(size, stride) for size, stride in dimensions if size > 1]
    return all(
        stride == prod(size for size, _ in sizes[index + 1 :])
        for index, (_, stride) in enumerate(sizes)
    )
