"""The delta folders of slime, miles, SGLang, ModelExpress and CoreWeave.

A folder such as `weight_v000003` holds safetensors files in which each tensor is a vector of
bytes: a zstd frame of what changed. `__metadata__` has, by the tensor's name, the checksum of the
tuned tensor's bytes. `model.safetensors.index.json` names the two versions, the encoding and the
checksum, and maps tensors to files. It is written last: without it the delta is not complete.
Unchanged tensors are left out. A whole checkpoint (an anchor) names no encoding.

Encodings: `xor` is the tuned bytes XOR those of the base. `overwrite` is a count (u32), that many
ascending positions of bytes (u32) and their new values (u8 each).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.safetensors import file_start
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import FilePool, StoredTensor
from trimtab.deltas.exchange.payloads import (
    CHUNK_POSITIONS,
    Bytes,
    Checksum,
    Decompressed,
    Exported,
    OpenDelta,
    PayloadFile,
    apply_xor,
    change_of,
    check_digest,
    check_payloads,
    chunks_in,
    ensure_same_tensors,
    hasher_of,
    pairs_of,
    pool_of_delta,
    read_file,
    xor_pieces,
)
from trimtab.deltas.source import Source, TunedTensor, Weights
from trimtab.elements.dtypes import Bits
from trimtab.errors import DeltaError
from trimtab.inputs import read_json
from trimtab.outputs import new_folder
from trimtab.words import first_few

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 2 << 30
"""A file is complete when its payloads have this many bytes."""

Encoding = Literal["xor", "overwrite"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)

Version = int | str
"""A number is written with six digits, as slime does; other strings as they are."""


def write_slime(
    base: Checkpoint | Weights,
    tuned: Checkpoint | Weights,
    folder: str | os.PathLike[str],
    *,
    encoding: Encoding = "xor",
    checksum: Checksum = "adler32",
    version: Version = 1,
    base_version: Version = 0,
    progress: Progress | None = None,
) -> Exported:
    """Write a tuned checkpoint as a delta folder of slime.

    The defaults are what most programs read; SGLang and miles read every checksum.

    Args:
        base: The base, opened, or in memory.
        tuned: The tuned checkpoint, likewise: the same names, dtypes and shapes.
        folder: The folder to make.
        encoding: `xor`, or `overwrite`, which may be applied more than once.
        checksum: Of the tuned tensors.
        version: Of the tuned checkpoint.
        base_version: Of the base.
        progress: Called after each tensor.

    Raises:
        TensorMismatchError: The two do not have the same tensors.
        DeltaError: A setting is unknown, or a tensor is too large for `overwrite`.
        OutputExistsError: The folder exists.
    """
    hasher = hasher_of(checksum)
    if encoding not in ENCODINGS:
        raise DeltaError(f"encoding {encoding!r}: expected {', '.join(ENCODINGS)}")
    ensure_same_tensors(base, tuned, "slime's format")
    total = sum(tensor.num_bytes for tensor in base.tensors.values())
    files: list[PayloadFile] = []
    with new_folder(folder) as draft, ExitStack() as stack:
        for name, tensor in base.tensors.items():
            new = tuned.tensors[name]
            digest, num_changed = change_of(tensor, new, hasher)
            if num_changed:
                if not files or files[-1].num_bytes >= SHARD_BYTES:
                    files.append(stack.enter_context(closing(PayloadFile(draft))))
                if encoding == "xor":
                    files[-1].add(name, digest, xor_pieces(tensor, new), tensor.num_bytes)
                else:
                    pieces = _overwrite_pieces(tensor, new, num_changed)
                    files[-1].add(name, digest, pieces, 4 + 5 * num_changed)
            if progress is not None:
                progress(tensor.num_bytes, total)
        weight_map, num_bytes = {}, 0
        for number, file in enumerate(files):
            path = draft / f"model-{number:05d}-of-{len(files):05d}.safetensors"
            weight_map.update(dict.fromkeys(file.digests, path.name))
            num_bytes += file.write(path)
        metadata = {
            "version": _written(version),
            "base_version": _written(base_version),
            "delta_encoding": encoding,
            "compression_format": "zstd",
            "checksum_format": checksum,
        }
        index = json.dumps({"metadata": metadata, "weight_map": weight_map}).encode()
        (draft / INDEX).write_bytes(index)
    return Exported(len(base.tensors), len(weight_map), num_bytes + len(index))


def write_slime_anchor(
    tuned: Source, folder: str | os.PathLike[str], *, checksum: Checksum, version: Version
) -> int:
    """Write a whole checkpoint with which a chain of slime's deltas begins.

    Every file of weights has the checksums of its tensors in its header, and there is an index in
    any case, as CoreWeave's engines want it.

    Args:
        tuned: The checkpoint.
        folder: The folder to make.
        checksum: Of its tensors.
        version: Of the checkpoint.

    Returns:
        Bytes of all files.

    Raises:
        DeltaError: The checksum is unknown.
        OutputExistsError: The folder exists.
    """
    hasher = hasher_of(checksum)
    weight_map: dict[str, str] = {}
    with new_folder(folder) as draft:
        for name, read in tuned.others.items():
            if name != INDEX:
                (draft / name).write_bytes(read())
        for number, shard in enumerate(tuned.weights.values(), 1):
            path = f"model-{number:05d}-of-{len(tuned.weights):05d}.safetensors"
            tensors = [tuned.tensors[name] for name in shard.tensors]
            described = {tensor.name: (tensor.dtype.name, tensor.shape) for tensor in tensors}
            digests = dict.fromkeys(described, hasher().hexdigest())  # of the length of the others
            start = file_start(described, {"format": "pt", **digests})
            with (draft / path).open("xb") as file:
                file.write(start)
                for tensor in tensors:
                    digest = hasher()
                    for bits in chunks_in(tensor):
                        digest.update(bits.view(np.uint8).data)
                        file.write(bits.view(np.uint8).data)
                    digests[tensor.name] = digest.hexdigest()
                file.seek(0)
                file.write(file_start(described, {"format": "pt", **digests}, num_bytes=len(start)))
            weight_map.update(dict.fromkeys(described, path))
        metadata = {
            "total_size": sum(tensor.num_bytes for tensor in tuned.tensors.values()),
            "version": _written(version),
            "checksum_format": checksum,
        }
        index = {"metadata": metadata, "weight_map": weight_map}
        (draft / INDEX).write_text(json.dumps(index, indent=2))
        return sum(path.stat().st_size for path in draft.iterdir())


def check_slime_anchor(folder: str | os.PathLike[str]) -> None:
    """Compare a whole checkpoint with the checksums in its headers, if its index says they are.

    Args:
        folder: The checkpoint.

    Raises:
        DeltaError: It is damaged.
    """
    folder = Path(folder)
    index = read_json(folder / INDEX, DeltaError, strict=True)
    metadata, weight_map = (
        (index.get("metadata"), index.get("weight_map"))
        if isinstance(index, dict)
        else (None, None)
    )
    if not isinstance(metadata, dict) or not isinstance(weight_map, dict):
        raise DeltaError(f"{folder / INDEX}: expected an object with metadata and weight_map")
    if "checksum_format" not in metadata:
        return
    hasher = hasher_of(str(metadata["checksum_format"]).lower())
    shards = sorted({shard for shard in weight_map.values() if _is_shard(shard)})
    with closing(FilePool()) as pool:
        for path in (folder / shard for shard in shards):
            tensors, digests = read_file(path, pool)
            for name, tensor in tensors.items():
                digest = hasher()
                for bits in chunks_in(tensor):
                    digest.update(bits.view(np.uint8).data)
                if digest.hexdigest() != digests.get(name):
                    raise DeltaError(
                        f"{path}: {name} has checksum {digest.hexdigest()}, expected "
                        f"{digests.get(name, 'one')[:40]}: it is damaged; copy it again"
                    )


def _written(version: Version) -> str:
    return f"{version:06d}" if isinstance(version, int) else version


def _overwrite_pieces(base: TunedTensor, tuned: TunedTensor, num_changed: int) -> Iterator[Bytes]:
    """The payload of `overwrite`; the tensors are read twice."""
    if base.num_bytes > 1 << 32:
        raise DeltaError(
            f"{base.name} has {base.num_bytes} bytes, and `overwrite` has positions of 32 bits: "
            "use `xor`"
        )
    yield np.array([num_changed], dtype="<u4").view(np.uint8)
    for is_position in (True, False):
        for start, ours, theirs in pairs_of(base, tuned):
            old, new = ours.view(np.uint8), theirs.view(np.uint8)
            where = np.flatnonzero(old != new)
            if is_position:
                yield (where + start * base.dtype.num_bytes).astype("<u4").view(np.uint8)
            else:
                yield new[where]


def open_slime(
    base: Checkpoint | Weights,
    folder: str | os.PathLike[str],
    *,
    base_version: Version | None = None,
) -> OpenDelta:
    """Open a delta folder of slime: headers are read and checked, and no payload.

    Args:
        base: The base, opened, or in memory; then its tensors are changed.
        folder: The folder.
        base_version: Version of the base, to be that for which the delta was made; by default the
            one in the base's own index, if it has one. Checksums find a wrong base in any case.

    Raises:
        DeltaError: It is not complete, not a delta of this kind, or one of another base.
    """
    folder = Path(folder)
    metadata, weight_map = _read_index(folder)
    settings = {
        key: str(metadata.get(key, default)).lower()
        for key, default in (
            ("delta_encoding", ""),
            ("compression_format", "zstd"),
            ("checksum_format", ""),
        )
    }
    if settings["delta_encoding"] not in ENCODINGS or settings["compression_format"] != "zstd":
        raise DeltaError(
            f"{folder / INDEX}: delta_encoding {settings['delta_encoding'][:40]!r} with "
            f"compression_format {settings['compression_format'][:40]!r}: expected "
            f"{' or '.join(ENCODINGS)}, with zstd"
        )
    _check_versions(base, folder, metadata, base_version)
    hasher = hasher_of(settings["checksum_format"])
    with pool_of_delta() as pool:
        payloads: dict[str, StoredTensor] = {}
        digests: dict[str, str] = {}
        for shard in sorted(set(weight_map.values())):
            tensors, checksums = read_file(folder / shard, pool)
            listed = {name for name, its_shard in weight_map.items() if its_shard == shard}
            if listed != tensors.keys():
                differ = sorted(listed ^ tensors.keys())
                raise DeltaError(
                    f"{folder / shard}: its tensors are not those that {INDEX} lists for it: "
                    f"{first_few(differ)} are in one of them only"
                )
            check_payloads(base, folder / shard, tensors.values(), checksums)
            payloads |= tensors
            digests |= {name: checksums[name] for name in tensors}
        apply = apply_xor if settings["delta_encoding"] == "xor" else _apply_overwrite

        def tuned(name: str) -> Bits:
            bits = apply(payloads[name], base.tensors[name])
            check_digest(bits, digests[name], hasher, payloads[name].file.path, name)
            return bits

        version = str(metadata["version"])
        return OpenDelta(folder, tuple(payloads), tuned, pool, version=version)


def _read_index(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Metadata of an index, and tensor -> file in the folder."""
    path = folder / INDEX
    if not os.path.lexists(path):
        if versions := sorted(child.name for child in folder.glob("weight_v*")):
            raise DeltaError(f"{folder}: holds {first_few(versions)}: give one of these folders")
        raise DeltaError(
            f"{folder}: has no {INDEX}, which is written last: the delta is not complete; wait "
            "until it is published, or copy it again"
        )
    index = read_json(path, DeltaError, strict=True)
    metadata, weight_map = (
        (index.get("metadata"), index.get("weight_map"))
        if isinstance(index, dict)
        else (None, None)
    )
    if not isinstance(metadata, dict) or not isinstance(weight_map, dict):
        raise DeltaError(f"{path}: expected an object with metadata and weight_map")
    if "delta_encoding" not in metadata:
        raise DeltaError(
            f"{path}: has no delta_encoding: a whole checkpoint and not a delta; use it as it is"
        )
    if absent := sorted({"version", "base_version"} - metadata.keys()):
        raise DeltaError(f"{path}: its metadata has no {' and no '.join(absent)}")
    foreign = [shard for shard in weight_map.values() if not _is_shard(shard)]
    if foreign:
        raise DeltaError(
            f"{path}: names {first_few([repr(shard)[:60] for shard in foreign])}: expected names "
            "of .safetensors files in its folder"
        )
    return metadata, weight_map


def _is_shard(name: Any) -> bool:
    return isinstance(name, str) and bool(re.fullmatch(r"[\w][\w.+-]*\.safetensors", name))


def version_in(folder: Path) -> str | None:
    """Version of a whole checkpoint by its index, as slime and CoreWeave write it.

    Raises:
        DeltaError: It is a delta and not a whole checkpoint.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    index = read_json(path, DeltaError)
    metadata = index.get("metadata") if isinstance(index, dict) else None
    if not isinstance(metadata, dict):
        return None
    if "delta_encoding" in metadata:
        raise DeltaError(f"{folder}: a delta, not a base: give the whole checkpoint below it")
    return str(metadata["version"]) if "version" in metadata else None


def _check_versions(
    base: Checkpoint | Weights, folder: Path, metadata: Mapping[str, Any], given: Version | None
) -> None:
    has = version_in(base.folder) if given is None else _written(given)
    wanted = str(metadata["base_version"])
    if has is not None and not _is_same_version(has, wanted):
        raise DeltaError(
            f"{folder}: is a delta of version {wanted[:60]!r}, and the base is version "
            f"{has[:60]!r}: apply the deltas between them first, or give that base"
        )


def _is_same_version(one: str, other: str) -> bool:
    """Equal as text, or as numbers: `0` and `000000`."""
    if one.isdecimal() and other.isdecimal():
        return one.lstrip("0") == other.lstrip("0")
    return one == other


def _apply_overwrite(payload: StoredTensor, base: TunedTensor) -> Bits:
    """The tuned tensor, of positions and values."""
    bits = base.read()
    raw = bits.reshape(-1).view(np.uint8)
    most = 4 + 5 * len(raw)
    positions, values = Decompressed(payload, most), Decompressed(payload, most)
    num = np.empty(1, dtype="<u4")
    positions.fill(num.view(np.uint8))
    count = int(num[0])
    if count > len(raw):
        raise positions.error(f"has {count} changed bytes, and the tensor has {len(raw)}")
    values.skip(4 + 4 * count)
    previous = -1
    for start in range(0, count, CHUNK_POSITIONS):
        stored = np.empty(min(CHUNK_POSITIONS, count - start), dtype="<u4")
        positions.fill(stored.view(np.uint8))
        where = stored.astype(np.int64)
        if where[0] <= previous or np.any(np.diff(where) <= 0) or where[-1] >= len(raw):
            raise positions.error(f"positions that do not ascend, or not below {len(raw)}")
        new = np.empty(len(where), dtype=np.uint8)
        values.fill(new)
        raw[where] = new
        previous = int(where[-1])
    values.finish()
    return bits
