"""Writes the file of tracked updates during a run, and the file of the base next to it.

A point is appended by a single write: a run that is killed leaves a file that ends with a complete
point, or with a part of the next one, which readers skip and a resumed run truncates. The stored
bits of the base are read from their file in chunks for every point, so that they take no memory
and a resumed run, which starts from other weights, has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from trimtab._version import __version__
from trimtab.checkpoints.tensors import DataFile, FilePool, Pooled
from trimtab.elements import step_kernels
from trimtab.elements.dtypes import DTYPES, Bits
from trimtab.errors import CheckpointError, ResultFormatError, SettingsError
from trimtab.measure.tracked_file import (
    FORMAT,
    FORMAT_VERSION,
    MAGIC,
    Part,
    TrackedFile,
    open_tracked,
    pack_record,
)
from trimtab.outputs import append, new_file
from trimtab.results.records import CheckpointRecord, record_of_tensors
from trimtab.training.layout import Layout, dtype_name
from trimtab.training.optimizers.distributed import whole
from trimtab.training.tracker.parts import (
    CHUNK,
    stored_bits,
    stored_name,
    stored_tensors,
)
from trimtab.words import first_few


def base_path(path: Path, process: int, num_processes: int) -> Path:
    """The path of a process's part of the base, next to a file of tracked updates."""
    number = f"-{process}" if num_processes > 1 else ""
    return path.with_name(f"{path.name}.base{number}")


class BaseFile(Pooled):
    """An open base file, as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open the file; CheckpointError if it does not exist."""
        self.path = path
        self._pool = FilePool()
        self._file = DataFile(path, self._pool)

    def read_into(self, start: int, out: Bits) -> None:
        """Read into `out`, starting at a byte. Thread-safe.

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
    """Write the stored bits of all parts, replacing an existing file."""
    with new_file(path, force=True) as file:
        for bits in parts:
            file.write(bits.data)


def new_header(
    model: Any,
    parameters: Mapping[str, Tensor],
    stored: str,
    every: int,
    parts: Sequence[Part],
    base_digests: Sequence[str],
) -> dict[str, Any]:
    """Build the header of a file. Collective: all processes that share the model must call it.

    Args:
        model: The base.
        parameters: Its parameters.
        stored: Dtype in which fp32 weights are compared.
        every: Steps between points.
        parts: The parts of all processes.
        base_digests: Digest of the base file of each process.
    """
    first = next(iter(parameters.values()))
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "every": every,
        "stored_dtype": stored,
        "base": _base(model, parameters, stored).to_dict(),
        "base_digests": list(base_digests),
        "parts": [list(part) for part in parts],
        "provenance": {
            "trimtab_version": __version__,
            "command": None,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": first.device.type,
            "threads": torch.get_num_threads(),
            "trained_dtypes": sorted({dtype_name(p.dtype) for p in parameters.values()}),
            "torch_version": torch.__version__,
        },
    }


def check_header(
    header: Mapping[str, Any], every: int, stored_dtype: str | None, parts: Sequence[Part]
) -> None:
    """Check that a resumed run has the settings and parts of the file; None for its stored dtype.

    Raises:
        SettingsError: They differ; names every difference.
    """
    problems = []
    if header["every"] != every:
        problems.append(f"every={header['every']} (now {every})")
    if stored_dtype not in (None, header["stored_dtype"]):
        problems.append(f"stored_dtype={header['stored_dtype']!r} (now {stored_dtype!r})")
    recorded = [Part(*row) for row in header["parts"]]
    if recorded != list(parts):
        differ = [str(part.name) for part in {*recorded} ^ {*parts}]
        problems.append(f"other tensors or processes ({first_few(sorted(differ))})")
    if problems:
        raise SettingsError(
            f"the file of tracked updates belongs to a run with {', '.join(problems)}: resume "
            "with the same, or start from the base with another file"
        )


def _base(model: Any, parameters: Mapping[str, Tensor], stored: str) -> CheckpointRecord:
    """The record of the base, with the content hash of its checkpoint as in `trimtab compare`."""
    rows = []
    for name, source, piece in stored_tensors(parameters, Layout.of(model)):
        parameter = parameters[source]
        dtype = stored_name(parameter, stored)
        values = parameter if piece is None else piece.of(dict.fromkeys(piece.sources, parameter))
        rows.append((name, dtype, tuple(values.shape), _digest(values, dtype)))
    config = getattr(model, "config", None)
    architectures = getattr(config, "architectures", None)
    return record_of_tensors(
        rows,
        id=getattr(config, "_name_or_path", None) or f"a {type(model).__name__} made in memory",
        revision=getattr(config, "_commit_hash", None),
        architecture=architectures[0] if architectures else None,
    )


def _digest(parameter: Tensor, dtype: str) -> str:
    flat = whole(parameter.detach()).reshape(-1)
    hasher = xxhash.xxh3_128()
    for chunk in torch.split(flat, CHUNK):
        hasher.update(stored_bits(chunk, DTYPES[dtype]).data)
    return hasher.hexdigest()


def create_file(path: Path, header: Mapping[str, Any]) -> None:
    """Write a file without points, replacing an existing one."""
    content = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    with new_file(path, force=True) as file:
        file.write(MAGIC + pack_record(content, len(MAGIC)))


def append_point(path: Path, content: bytes, version: int) -> None:
    """Append a point to a file of a format version, completely or not at all."""
    append(path, pack_record(content, path.stat().st_size, version))


Sets = tuple[NDArray[np.uint64], NDArray[np.uint64]]
"""Bit sets of the elements of a part that differ from the base, and of those that ever did."""


def open_at_step(path: Path, step: int) -> TrackedFile:
    """Open the file of a resumed run, up to the point at a step.

    Raises:
        ResultFormatError: The file is missing or damaged, or has no point at that step.
    """
    tracked = open_tracked(path)
    points = tuple(point for point in tracked.points if point.figures.step <= step)
    if not points or points[-1].figures.step != step:
        raise ResultFormatError(
            f"{path}: has no point at step {step}, from which the run is resumed: resume from a "
            "checkpoint that was saved while it was tracked, or without the tracker"
        )
    return replace(tracked, points=points, end=points[-1].end)


def sets_of(tracked: TrackedFile, number: int) -> Sets:
    """The sets of a part at the last point of a file."""
    words = step_kernels.num_words(tracked.parts[number].num_elements)
    changed, ever = np.zeros(words, np.uint64), np.zeros(words, np.uint64)
    for toggled in tracked.toggles(number):
        step_kernels.flip(changed, toggled)
        ever |= changed
    return changed, ever
