"""A mask in a fraction of a bit for each element, for whoever has its base.

Which elements training moves is mostly a question of their exponent in the base. So the mask is
coded as the update of the base that moves every selected element by one step away from zero
(`trimtab.elements.update_coding`): whether an element moves is the mask; which way and how far are
always the same, which costs next to nothing.

The file is described on the docs page "Formats".
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.safetensors import are_sizes, file_start
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import StoredTensor, hash_of
from trimtab.elements.update_coding import Mapped, decode_tensor, encode_tensor, split_frames
from trimtab.errors import CheckpointError, MaskError, MaskMismatchError
from trimtab.masks.header import BaseTensor, MaskHeader, PackedMask, check_format, opened_tensors
from trimtab.masks.matching import check_digests, named_as_in
from trimtab.masks.on_disk import (
    base_tensor_of,
    compact,
    count_of,
    json_object,
    mask_writer,
    opened_masks,
)
from trimtab.masks.packed import MaskDigest, PackedTensor, num_packed_bytes
from trimtab.outputs import ensure_free, new_file
from trimtab.words import first_few

FORMAT, FORMAT_VERSION = "trimtab.coded_mask", 1


def pack_mask(
    mask: str | os.PathLike[str] | PackedMask,
    base: str | os.PathLike[str] | Checkpoint,
    output: str | os.PathLike[str],
    *,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write a mask in a fraction of a bit for each element, given the base.

    Args:
        mask: A mask, or its file.
        base: The checkpoint that it was made against.
        output: The file to write, by convention `….safetensors`.
        threads: Chunks coded at the same time; by default one for each core.
        force: Replace an existing file.
        progress: Called with bytes of the base that were read, and bytes in all.

    Returns:
        Bytes of the file.

    Raises:
        CheckpointError: The base cannot be read.
        MaskError: The mask is damaged.
        MaskMismatchError: The base is another one.
        OutputExistsError: The output exists and `force` is not set.
    """
    ensure_free(output, force=force)
    with ExitStack() as stack:
        (given,) = opened_masks([mask], stack)
        (checkpoint,) = stack.enter_context(opened(base))
        alike = named_as_in(given, checkpoint)
        tensors = {
            name: _tensor_in(checkpoint, its_name, given.shape(name))
            for name, its_name in zip(given, alike, strict=True)
        }
        total = sum(tensor.num_bytes for tensor in tensors.values())
        spool = stack.enter_context(tempfile.TemporaryFile())
        coders = stack.enter_context(ThreadPoolExecutor(threads or os.cpu_count()))
        entries: dict[str, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            bits = tensor.read()
            hash = hash_of(bits)
            check_digests([alike], {tensor.name: hash}, checkpoint)
            num_selected, frames = given.num_selected(name), list[bytes]()
            if num_selected:
                selected = given.tensor(name, given.shape(name)).unpack()
                moved = bits + selected.astype(bits.dtype)  # may wrap, and is never the same
                frames = encode_tensor(  # a predictor takes twice as long, and saves 0.4 %
                    bits, moved, tensor.dtype, max_rank=0, mapped=coders.map
                )
            spool.writelines(frames)
            made_against = given.base.get(name)
            entries[name] = {
                "shape": list(given.shape(name)),
                "num_selected": num_selected,
                "base": None if made_against is None else made_against._asdict(),
                "coded_with": [tensor.name, hash],
                "frames": [len(frame) for frame in frames],
            }
            if progress is not None:
                progress(tensor.num_bytes, total)
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "digest": given.digest,
            "tensors": compact(entries),
            "provenance": compact(dict(given.provenance)),
        }
        sizes = {name: ("U8", (sum(entry["frames"]),)) for name, entry in entries.items()}
        with new_file(output, force=force) as file:
            file.write(file_start(sizes, metadata))
            spool.seek(0)
            shutil.copyfileobj(spool, file)
            return file.tell()


def unpack_mask(
    path: str | os.PathLike[str],
    base: str | os.PathLike[str] | Checkpoint,
    output: str | os.PathLike[str],
    *,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write the mask file that `pack_mask` was given, with its provenance.

    Args:
        path: The file that `pack_mask` wrote.
        base: The checkpoint that it was given.
        output: The mask file to write.
        threads: Chunks decoded at the same time; by default one for each core.
        force: Replace an existing file.
        progress: Called with bytes of the base that were read, and bytes in all.

    Returns:
        The digest of the mask, which was checked.

    Raises:
        CheckpointError: The base cannot be read.
        MaskError: The file is no packed mask, or is damaged.
        MaskMismatchError: The base is another one.
        OutputExistsError: The output exists and `force` is not set.
    """
    ensure_free(output, force=force)
    with ExitStack() as stack:
        with opened_tensors(path) as (pool, stored, metadata):
            check_format(metadata, FORMAT, FORMAT_VERSION, "a packed mask", "`trimtab mask pack`")
            parts = _parts(metadata, stored)
            provenance = json_object(metadata, "provenance")
        stack.callback(pool.close)
        (checkpoint,) = stack.enter_context(opened(base))
        tensors = {
            name: _tensor_in(checkpoint, part.with_name, part.shape) for name, part in parts.items()
        }
        header = MaskHeader(
            {name: part.shape for name, part in parts.items()},
            {name: part.base for name, part in parts.items() if part.base is not None},
            provenance,
        )
        digest = MaskDigest()
        coders = stack.enter_context(ThreadPoolExecutor(threads or os.cpu_count()))
        total = sum(tensor.num_bytes for tensor in tensors.values())
        writer = stack.enter_context(mask_writer(output, header, force=force))
        for name in writer.names:
            tensor = _decoded(parts[name], tensors[name], f"{path}: {name}", coders.map)
            digest.update(name, tensor)
            writer.add(tensor)
            if progress is not None:
                progress(tensors[name].num_bytes, total)
        if (found := digest.hexdigest()) != metadata.get("digest"):
            raise MaskError(
                f"{path}: damaged: its mask has the digest {found}, and the file says "
                f"{metadata.get('digest', '')[:32]!r}"
            )
    return found


@dataclass(frozen=True)
class _Part:
    """A tensor of a packed mask, as the file describes it."""

    shape: tuple[int, ...]
    num_selected: int
    base: BaseTensor | None
    with_name: str
    with_hash: str
    frames: list[int]
    stored: StoredTensor


def _parts(metadata: Mapping[str, str], stored: Sequence[StoredTensor]) -> dict[str, _Part]:
    entries = json_object(metadata, "tensors")
    vectors = {tensor.name: tensor for tensor in stored}
    if differs := sorted(entries.keys() ^ vectors.keys()):
        raise MaskError(f"damaged: {first_few(differs)}: described or stored, but not both")
    parts = {}
    for name, entry in entries.items():
        keys = {"shape", "num_selected", "base", "coded_with", "frames"}
        if not isinstance(entry, dict) or not keys <= entry.keys():
            raise MaskError(f"damaged: {name!r} lacks one of {', '.join(sorted(keys))}")
        shape, frames, coded_with = entry["shape"], entry["frames"], entry["coded_with"]
        if not are_sizes(shape) or not are_sizes(frames):
            raise MaskError(f"damaged: {name!r} has a shape or frames that are not lists of sizes")
        if (
            not isinstance(coded_with, list)
            or len(coded_with) != 2
            or not all(isinstance(value, str) for value in coded_with)
        ):
            raise MaskError(f"damaged: {name!r} was not coded with a name and a hash")
        vector = vectors[name]
        if vector.dtype.name != "U8" or vector.shape != (sum(frames),):
            raise MaskError(f"damaged: {name!r} has frames of {sum(frames)} bytes, and not in it")
        try:
            num_selected, base = count_of(entry, prod(shape)), base_tensor_of(entry)
        except MaskError as error:
            raise MaskError(f"damaged: {name!r} {error}") from None
        with_name, with_hash = coded_with
        parts[name] = _Part(tuple(shape), num_selected, base, with_name, with_hash, frames, vector)
    return parts


def _decoded(part: _Part, tensor: StoredTensor, where: str, mapped: Mapped) -> PackedTensor:
    """The selected elements of a tensor; what is allocated has the size of the base's."""
    if not part.num_selected:
        num_bytes = num_packed_bytes(tensor.num_elements)
        return PackedTensor(part.shape, np.zeros(num_bytes, np.uint8), 0)
    bits = tensor.read()
    if (hash := hash_of(bits)) != part.with_hash:
        raise MaskMismatchError(
            f"{where}: {tensor.name} of the base has the digest {hash}, and {part.with_hash} when "
            "the mask was packed: give the base that it was packed with"
        )
    try:
        frames, _ = split_frames(part.stored.read().tobytes(), part.frames)
        moved = decode_tensor(bits, frames, tensor.dtype, mapped=mapped)
    except CheckpointError as error:
        raise MaskError(f"{where}: {error}") from None
    selected = PackedTensor.pack(moved != bits)
    if selected.num_selected != part.num_selected:
        raise MaskError(
            f"{where}: damaged: selects {selected.num_selected} elements, and the file says "
            f"{part.num_selected}"
        )
    return selected


def _tensor_in(base: Checkpoint, name: str, shape: tuple[int, ...]) -> StoredTensor:
    tensor = base.tensors.get(name)
    if tensor is None or tensor.shape != shape:
        found = "no such tensor" if tensor is None else f"one of shape {list(tensor.shape)}"
        raise MaskMismatchError(
            f"base {base.id} has {found}: {name}, of shape {list(shape)} in the mask: give the "
            "base that the mask was made against"
        )
    return tensor
