"""The first record of a file of tracked updates: what is tracked, of which base, and with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
import xxhash
from torch import Tensor

from trimtab._version import __version__
from trimtab.compare.tracked_file import FORMAT, FORMAT_VERSION, Part
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import SettingsError
from trimtab.results.records import CheckpointRecord, content_hash
from trimtab.training.layout import Layout
from trimtab.training.optimizers.sharding import whole
from trimtab.training.tracker.bits import CHUNK, stored_bits
from trimtab.training.tracker.parts import name_of, stored_name, stored_tensors
from trimtab.words import first_few

__all__ = ["check_header", "new_header"]


def new_header(
    model: Any,
    parameters: Mapping[str, Tensor],
    stored: str,
    every: int,
    parts: Sequence[Part],
    base_digests: Sequence[str],
) -> dict[str, Any]:
    """Say what is tracked. All processes that share the model must call it.

    Args:
        model: The base.
        parameters: Its parameters.
        stored: In which dtype fp32 weights are compared.
        every: Steps from point to point.
        parts: What is counted, in all processes.
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
            "trained_dtypes": sorted({name_of(of.dtype) for of in parameters.values()}),
            "torch_version": torch.__version__,
        },
    }


def check_header(
    found: Mapping[str, Any], every: int, asked: str | None, parts: Sequence[Part]
) -> None:
    """Check that a run which is resumed goes on with the same, in as many processes.

    Args:
        found: What the file says.
        every: Steps from point to point, now.
        asked: In which dtype fp32 weights shall be compared, now; None if it is of no concern.
        parts: What would be counted, now.

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
