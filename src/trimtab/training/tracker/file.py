"""The file of tracked updates while a run goes on, and that of the base beside it.

A point is one write at the end of the file: a run that is killed leaves the file with its last
whole point, or with a piece of the next that readers pass over and a resumed run cuts off. Every
point compares with the stored bits of the base. They are read piece by piece, from the system's
cache of files where that has room for it, so they take no memory of the process; and a run that is
resumed, which begins with other weights, finds them there.
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
from trimtab.results.records import CheckpointRecord, content_hash
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
    """Where a process keeps its part of the base, beside a file of tracked updates."""
    number = f"-{process}" if num_processes > 1 else ""
    return path.with_name(f"{path.name}.base{number}")


class BaseFile(Pooled):
    """An open base; use it as a context manager.

    Attributes:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        """Open; CheckpointError if there is no such file."""
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


def new_header(
    model: Any,
    parameters: Mapping[str, Tensor],
    stored: str,
    every: int,
    parts: Sequence[Part],
    base_digests: Sequence[str],
) -> dict[str, Any]:
    """Build the header of a file. All processes that share the model must call it.

    Args:
        model: The base.
        parameters: Its parameters.
        stored: Dtype in which fp32 weights are compared.
        every: Steps from point to point.
        parts: The parts of all processes.
        base_digests: Of the base file of each process.
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
            "trained_dtypes": sorted({dtype_name(of.dtype) for of in parameters.values()}),
            "torch_version": torch.__version__,
        },
    }


def check_header(
    found: Mapping[str, Any], every: int, asked: str | None, parts: Sequence[Part]
) -> None:
    """Check that a resumed run has the settings and the parts of the file.

    `asked` is the dtype in which fp32 weights are to be compared, or None for that of the file.

    Raises:
        SettingsError: It does not; names every difference.
    """
    problems = []
    if found["every"] != every:
        problems.append(f"every={found['every']} (now {every})")
    if asked not in (None, found["stored_dtype"]):
        problems.append(f"stored_dtype={found['stored_dtype']!r} (now {asked!r})")
    theirs = [Part(*of) for of in found["parts"]]
    if theirs != list(parts):
        differ = [str(part.name) for part in {*theirs} ^ {*parts}]
        problems.append(f"other tensors or processes ({first_few(sorted(differ))})")
    if problems:
        raise SettingsError(
            f"the file of tracked updates belongs to a run with {', '.join(problems)}: resume "
            "with the same, or track to another file from the base on"
        )


def _base(model: Any, parameters: Mapping[str, Tensor], stored: str) -> CheckpointRecord:
    """What the base is, with the hash that `trimtab compare` gives a checkpoint of it."""
    config = getattr(model, "config", None)
    dtypes: dict[str, int] = {}
    rows = []
    for name, of, piece in sorted(
        stored_tensors(parameters, Layout.of(model)), key=lambda tensor: tensor[0]
    ):
        parameter = parameters[of]
        dtype = stored_name(parameter, stored)
        values = parameter if piece is None else piece.of(dict.fromkeys(piece.sources, parameter))
        dtypes[dtype] = dtypes.get(dtype, 0) + values.numel()
        rows.append((name, dtype, tuple(values.shape), _digest(values, dtype)))
    architectures = getattr(config, "architectures", None)
    return CheckpointRecord(
        id=getattr(config, "_name_or_path", None) or f"a {type(model).__name__} made in memory",
        revision=getattr(config, "_commit_hash", None),
        architecture=architectures[0] if architectures else None,
        num_tensors=len(rows),
        num_elements=sum(parameter.numel() for parameter in parameters.values()),
        dtypes=dtypes,
        content_hash=content_hash(rows),
    )


def _digest(parameter: Tensor, dtype: str) -> str:
    flat = whole(parameter.detach()).reshape(-1)
    hasher = xxhash.xxh3_128()
    for chunk in torch.split(flat, CHUNK):
        hasher.update(stored_bits(chunk, DTYPES[dtype]).data)
    return hasher.hexdigest()


def create_file(path: Path, header: Mapping[str, Any]) -> None:
    """Write a file without points, in the place of an old one."""
    content = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    with new_file(path, force=True) as file:
        file.write(MAGIC + pack_record(content, len(MAGIC)))


def append_point(path: Path, content: bytes, version: int) -> None:
    """Append a point to a file of a format version, whole or not at all."""
    append(path, pack_record(content, path.stat().st_size, version))


Sets = tuple[NDArray[np.uint64], NDArray[np.uint64]]
"""The elements of a part that differ from the base, and those that ever did."""


def open_at_step(path: Path, step: int) -> TrackedFile:
    """Open the file of a run that is resumed: as if it ended with the point at a step.

    Raises:
        ResultFormatError: The file is gone or damaged, or has no point at that step.
    """
    tracked = open_tracked(path)
    points = tuple(point for point in tracked.points if point.figures.step <= step)
    if not points or points[-1].figures.step != step:
        raise ResultFormatError(
            f"{path}: has no point at step {step}, after which the run is resumed: resume "
            "from a checkpoint that was saved while it was tracked, or without the tracker"
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
