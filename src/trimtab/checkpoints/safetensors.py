"""Read and write the header of a safetensors file.

The file is 8 bytes of header length (little-endian), a JSON header, then the data of all tensors
without gaps (format: https://github.com/huggingface/safetensors#format). This reader streams the
raw bits of every dtype and makes the checks of the reference implementation. Headers are untrusted:
nothing is allocated by what they claim.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from reprlib import repr as short
from typing import Any, TypeAlias

from trimtab.checkpoints.tensors import DataFile, StoredTensor
from trimtab.elements.dtypes import DTYPES, DType
from trimtab.errors import CheckpointError
from trimtab.inputs import parse_json
from trimtab.words import first_few

MAX_HEADER_BYTES = 100_000_000
"""Longest header that is read, as in the reference implementation."""

MAX_DIMENSIONS = 64
"""Most dimensions of an array, in NumPy and in PyTorch."""


ALIGNMENT = 8
"""A header is padded with spaces to a multiple of this, as in the reference implementation."""


class _HeaderError(Exception):
    """What is wrong with a header, without the name of the file."""


Entry: TypeAlias = tuple[DType, tuple[int, ...], int, int]
"""Dtype, shape, and begin and end in bytes after the header."""


def read_safetensors(file: DataFile) -> list[StoredTensor]:
    """List the tensors of a safetensors file by offset, reading the header only.

    Raises:
        CheckpointError: The file is not valid; the message lists what is wrong.
    """
    return read_with_metadata(file)[0]


def read_with_metadata(file: DataFile) -> tuple[list[StoredTensor], dict[str, str]]:
    """Like `read_safetensors`, with the strings of the header's `__metadata__`; empty if none.

    Raises:
        CheckpointError: The file is not valid; the message lists what is wrong.
    """
    try:
        raw = _read_header(file)
        entries, metadata = _parse_header(raw, file.size - 8 - len(raw))
    except _HeaderError as error:
        raise CheckpointError(f"{file.path}: not a valid safetensors file: {error}") from None
    tensors = [
        StoredTensor(name, dtype, shape, file, 8 + len(raw) + begin)
        for name, (dtype, shape, begin, _) in entries.items()
    ]
    return tensors, metadata


def parse_start(start: bytes, num_bytes: int, where: str) -> dict[str, Entry]:
    """The tensors that the start of a safetensors file describes, by offset.

    Args:
        start: The length of the header and the header, as `file_start` returns them.
        num_bytes: Bytes of the whole file.
        where: What the start was read from, for the message.

    Raises:
        CheckpointError: It is not the start of a safetensors file of that size.
    """
    try:
        if int.from_bytes(start[:8], "little") != len(start) - 8:
            raise _HeaderError(
                f"its header has {len(start) - 8} bytes, another number than it claims"
            )
        return _parse_header(start[8:], num_bytes - len(start))[0]
    except _HeaderError as error:
        raise CheckpointError(f"{where}: not a valid safetensors file: {error}") from None


def _parse_header(raw: bytes, num_data: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors by offset, and the metadata, of a header before so many bytes of data."""
    problems: list[str] = []
    entries: dict[str, Entry] = {}
    if not raw.startswith(b"{"):
        raise _HeaderError("its header does not start with '{'")
    try:
        header = parse_json(raw, strict=True)
    except UnicodeDecodeError:
        raise _HeaderError("its header is not UTF-8") from None
    except ValueError as error:
        raise _HeaderError(f"its header is not JSON ({error})") from None
    for name, value in header.items():
        try:
            if name == "__metadata__":
                _check_metadata(value)
            else:
                entries[name] = _parse_entry(name, value)
        except _HeaderError as error:
            problems.append(f"{short(name)} {error}")
    spans = sorted((begin, end, name) for name, (_, _, begin, end) in entries.items())
    if not problems:  # a tensor that could not be parsed would show as a hole here
        problems = _layout_problems(spans, num_data)
    if problems:
        raise _HeaderError(first_few(problems, "; "))
    return {name: entries[name] for _, _, name in spans}, header.get("__metadata__", {})


def _read_header(file: DataFile) -> bytes:
    prefix = file.read(0, 8)
    if len(prefix) < 8:
        raise _HeaderError(f"it has {file.size} bytes, fewer than the 8 of the header's length")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise _HeaderError(f"its header claims {length} bytes; at most {MAX_HEADER_BYTES} are read")
    if 8 + length > file.size:
        raise _HeaderError(
            f"its header claims {length} bytes but only {file.size - 8} follow; "
            "the file is truncated or of another format"
        )
    raw = file.read(8, length)
    if len(raw) < length:
        raise _HeaderError("it was cut short while its header was being read")
    return raw


def _parse_entry(name: str, entry: Any) -> Entry:
    if not name.isprintable():  # among others a lone surrogate, which no output could encode
        raise _HeaderError("is a name with unprintable characters")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _HeaderError("lacks one of dtype, shape, data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        known = ", ".join(DTYPES)
        raise _HeaderError(f"has dtype {short(entry['dtype'])}; expected one of {known}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise _HeaderError(f"has shape {short(shape)}; expected at most {MAX_DIMENSIONS} sizes")
    if prod(max(size, 1) for size in shape) * dtype.num_bytes >= 2**63:
        raise _HeaderError(f"has shape {short(shape)}, which overflows 64 bits")
    if not are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _HeaderError(
            f"has data_offsets {short(offsets)}; expected [begin, end] with begin <= end"
        )
    begin, end = offsets
    expected = prod(shape) * dtype.num_bytes
    if end - begin != expected:
        raise _HeaderError(
            f"has {short(end - begin)} bytes; {dtype.name} of shape {short(shape)} takes {expected}"
        )
    return dtype, tuple(shape), begin, end


def are_sizes(value: Any) -> bool:
    """Whether a value from JSON is a list of sizes or offsets, each of at most 63 bits."""
    # `type`, not isinstance: JSON's true is no size.
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size < 2**63 for size in value
    )


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _HeaderError("is not a mapping from strings to strings")


def _layout_problems(spans: Sequence[tuple[int, int, str]], data_bytes: int) -> list[str]:
    """Holes, overlaps and a wrong end, of tensors sorted by offset."""
    problems = []
    previous, expected = "", 0
    for begin, end, name in spans:
        if begin < expected:
            problems.append(f"{short(previous)} and {short(name)} overlap")
        elif begin > expected:
            problems.append(f"{begin - expected} bytes before {short(name)} belong to no tensor")
        if end >= expected:
            previous, expected = name, end
    if expected > data_bytes:
        problems.append(
            f"its tensors take {expected} bytes but {data_bytes} are there: the file is "
            "truncated, download or save it again"
        )
    elif expected < data_bytes:
        problems.append(f"{data_bytes - expected} bytes at its end belong to no tensor")
    return problems


def file_start(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str],
    *,
    num_bytes: int | None = None,
) -> bytes:
    """The beginning of a file: the length of its header and the header.

    The data of the tensors follow in the order given, without gaps.

    Args:
        tensors: Name -> safetensors name of the dtype, and shape.
        metadata: Strings of `__metadata__`.
        num_bytes: Length of the result, to overwrite a header written before its content was known;
            must suffice.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + prod(shape) * DTYPES[dtype].num_bytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    length = -(-len(raw) // ALIGNMENT) * ALIGNMENT if num_bytes is None else num_bytes - 8
    return length.to_bytes(8, "little") + raw.ljust(length)
