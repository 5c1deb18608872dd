"""`delta import`: a delta of another format and its base become a checkpoint."""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import FilePool, StoredTensor
from trimtab.checkpoints.weights import ensure_rewritable, rewrite
from trimtab.deltas.exchange.arc import ARC_V3, ensure_zstd, open_arc_v2
from trimtab.deltas.exchange.index_value import INDICES, VALUES, open_index_value
from trimtab.deltas.exchange.payloads import OpenDelta, read_file
from trimtab.deltas.exchange.slime import INDEX, Version, open_slime
from trimtab.deltas.file import FORMAT as TRIMTAB
from trimtab.elements.dtypes import Bits
from trimtab.errors import DeltaError
from trimtab.inputs import read_json
from trimtab.outputs import ensure_no_folder, new_folder

Format = Literal["slime", "arc_v2", "index_value"]
FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True)
class Imported:
    """What `import_delta` read.

    Attributes:
        format: Format of the delta.
        version: Its version, if the format has one.
        num_tensors: Tensors of the checkpoint.
        num_in_delta: Those that the delta has.
        unchecked: Those for which the delta has no checksum: they are right if the base is.
    """

    format: Format
    version: str | None
    num_tensors: int
    num_in_delta: int
    unchecked: tuple[str, ...]


def import_delta(
    base: str | os.PathLike[str] | Checkpoint,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    format: Format | None = None,
    base_version: Version | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Apply a delta of another format and write the checkpoint that results.

    Every file of weights has the name, header and order of the base's; files beside the weights
    are copied. In memory is one tensor at a time.

    Args:
        base: The base: a folder of safetensors files, a hub id, or an open checkpoint.
        source: The delta.
        output: The folder to make.
        format: `slime`, `arc_v2` or `index_value`; by default it is detected.
        base_version: Version of the base, which slime's format checks.
        progress: Called after each tensor.

    Raises:
        DeltaError: It is not such a delta, or not one of this base; nothing is written.
        CheckpointError: The base cannot be read.
        OutputExistsError: The folder exists.
    """
    ensure_no_folder(output)
    format = format or detect_format(source)
    with opened(base) as (base,):
        ensure_rewritable(base, base.id)
        with open_delta(base, source, format, base_version=base_version) as delta:
            with new_folder(output) as draft:
                _write(base, delta, draft, progress)
            return Imported(
                format, delta.version, len(base.tensors), len(delta.names), delta.unchecked
            )


def open_delta(
    base: Checkpoint,
    source: str | os.PathLike[str],
    format: str,
    *,
    base_version: Version | None = None,
) -> OpenDelta:
    """Open a delta of a format: headers are read and checked, and no payload.

    Args:
        base: The base, opened.
        source: The delta.
        format: One of `FORMATS`.
        base_version: As in `import_delta`.

    Raises:
        DeltaError: It is not a delta of this format and base, or the format is not read.
    """
    match format:
        case "slime":
            return open_slime(base, source, base_version=base_version)
        case "arc_v2":
            return open_arc_v2(base, source)
        case "index_value":
            return open_index_value(base, source)
        case "arc_v3":
            raise DeltaError(ARC_V3)
    raise DeltaError(f"format {format!r}: expected {', '.join(FORMATS)}")


def detect_format(source: str | os.PathLike[str]) -> Format:
    """The format of a delta, by its index or the names and dtypes of its tensors.

    Raises:
        DeltaError: It is of no known format, or of one that is not read.
    """
    source = Path(source)
    if not source.exists():
        raise DeltaError(f"{source}: no such file or folder")
    if source.is_dir() and _is_slime(source):
        return "slime"
    path = min(source.rglob("*.safetensors"), default=None) if source.is_dir() else source
    if path is None:
        raise DeltaError(f"{source}: holds no .safetensors files: expected a delta")
    with closing(FilePool()) as pool:
        tensors, metadata = read_file(path, pool)
        if metadata.get("format") == TRIMTAB:
            raise DeltaError(f"{path}: a delta of trimtab: `trimtab delta apply` applies it")
        if all(name.endswith((INDICES, VALUES)) for name in tensors) and path == source:
            return "index_value"
        if all(tensor.dtype.name == "U8" for tensor in tensors.values()) and (
            tensors.keys() <= metadata.keys()
        ):
            for tensor in tensors.values():
                ensure_zstd(tensor)
            if all(metadata[name].isdecimal() for name in tensors):
                return "arc_v2"
            if source.is_dir():
                return "slime"  # not published yet, as opening it says
    raise DeltaError(
        f"{source}: not a delta of a known format ({', '.join(FORMATS)}): {path.name} holds other "
        "tensors"
    )


def _is_slime(folder: Path) -> bool:
    """Whether a folder has the index of slime's deltas, or folders of them."""
    path = folder / INDEX
    if not os.path.lexists(path):
        return any(folder.glob("weight_v*"))
    index = read_json(path, DeltaError)
    metadata = index.get("metadata") if isinstance(index, dict) else None
    return isinstance(metadata, dict) and "delta_encoding" in metadata


def _write(base: Checkpoint, delta: OpenDelta, draft: Path, progress: Progress | None) -> None:
    names = set(delta.names)
    tuned: list[Bits] = []

    def change(tensor: StoredTensor, start: int, bits: Bits) -> None:
        if tensor.name not in names:
            return
        if start == 0:
            tuned.clear()  # before the next one is made
            tuned.append(delta.tuned(tensor.name).reshape(-1))
        bits[:] = tuned[0][start : start + len(bits)]

    rewrite(base, draft, change, progress=progress)
    for name in delta.names:
        if not base.tensors[name].num_elements:  # not read on the way, and has a checksum too
            delta.tuned(name)
    _renew_index(draft / INDEX, delta.version)


def _renew_index(path: Path, version: str | None) -> None:
    """Give an index that names the version of the base that of the tuned checkpoint, if it has one.

    Checksums of the base stay in the headers: without `checksum_format` nobody reads them.
    """
    index = read_json(path, DeltaError) if path.exists() else {}
    metadata = index.get("metadata")
    if not isinstance(metadata, dict) or not {"version", "checksum_format"} & metadata.keys():
        return
    metadata.pop("checksum_format", None)
    if metadata.pop("version", None) is not None and version is not None:
        metadata["version"] = version
    path.write_text(json.dumps(index, indent=2), encoding="utf-8")
