"""The file of a mask: a safetensors file of packed bits, with what they mean in its metadata.

Each tensor of the mask is a U8 tensor of its name, `[ceil(num_elements / 8)]`; shapes, counts and
provenance are JSON in the metadata. A file is a claim by a stranger: the header is checked against
the file's size, and every shape against the bytes that are there, before anything is allocated;
then counts, unused bits and the digest against the bits, before anyone uses them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from reprlib import repr as short
from typing import Any

from trimtab.checkpoints.safetensors import read_with_metadata
from trimtab.checkpoints.tensors import DataFile, FilePool, StoredTensor
from trimtab.errors import CheckpointError, MaskError
from trimtab.inputs import parse_json
from trimtab.masks.outline import MaskOutline
from trimtab.masks.packed import BaseTensor, MaskDigest, PackedTensor, num_packed_bytes
from trimtab.words import first_few

__all__ = ["FORMAT", "FORMAT_VERSION", "MaskFile", "read_mask_file"]

FORMAT = "trimtab.mask"
FORMAT_VERSION = 1
"""History: 1, the first."""

MAX_DIMENSIONS = 64
"""Most dimensions of an array, in NumPy and in PyTorch."""


class _Damage(Exception):
    """What is wrong with a file, without its name."""


@dataclass(frozen=True, eq=False)
class MaskFile:
    """A mask file whose header was checked; its bits are still on disk, and were not.

    Attributes:
        path: Where it is.
        outline: Of the mask.
        num_selected: Name -> how many bits are 1, as the header says.
        digest: Of the mask, as the metadata says.
        stored: Name -> where the bits are.
    """

    path: str
    outline: MaskOutline
    num_selected: Mapping[str, int]
    digest: str
    stored: Mapping[str, StoredTensor]

    def renamed(self, names: Mapping[str, str]) -> MaskFile:
        """The same file with other names for some of its tensors. `checked` must have passed."""
        return MaskFile(
            self.path,
            self.outline.renamed(names),
            {names.get(name, name): count for name, count in self.num_selected.items()},
            self.digest,
            {names.get(name, name): tensor for name, tensor in self.stored.items()},
        )

    def read(self, name: str) -> PackedTensor:
        """Read the bits of a tensor and check them against the header. Any thread may call this.

        Raises:
            MaskError: They are not what the header says, or cannot be read.
        """
        tensor = self._tensor(name)
        if problems := list(self._problems(name, tensor)):
            raise self._damaged(problems)
        return tensor

    def checked(self) -> Iterator[tuple[str, PackedTensor]]:
        """Read the bits of all tensors, sorted by name, and check everything about them.

        Only at the end it is known that the mask is whole: use no tensor before.

        Raises:
            MaskError: Bits are not what the header says, listed for all tensors up to a handful;
                or their digest is not the one that the file says.
        """
        problems: list[str] = []
        digest = MaskDigest()
        for name in sorted(self.outline.shapes):
            tensor = self._tensor(name)
            problems += self._problems(name, tensor)
            digest.update(name, tensor)
            yield name, tensor
        if problems:
            raise self._damaged(problems)
        if (found := digest.hexdigest()) != self.digest:
            raise MaskError(
                f"{self.path}: damaged: its bits have the digest {found}, and the file says "
                f"{self.digest[:32]!r}"
            )

    def _tensor(self, name: str) -> PackedTensor:
        try:
            return PackedTensor.of(self.outline.shapes[name], self.stored[name].read())
        except CheckpointError as error:
            raise MaskError(str(error)) from None

    def _problems(self, name: str, tensor: PackedTensor) -> Iterator[str]:
        if tensor.num_selected != (claimed := self.num_selected[name]):
            yield (
                f"{short(name)} says it selects {claimed} elements, "
                f"and selects {tensor.num_selected}"
            )
        if not tensor.has_clean_padding:
            yield f"{short(name)} has bits set after its last element"

    def _damaged(self, problems: Iterable[str]) -> MaskError:
        return MaskError(f"{self.path}: damaged: {first_few(list(problems), '; ')}")


def read_mask_file(path: str | os.PathLike[str], pool: FilePool) -> MaskFile:
    """Read the header of a mask file, and check all that can be known without the bits.

    Args:
        path: The file.
        pool: Keeps it open; the caller closes it.

    Raises:
        MaskError: It is no mask file, or a damaged one; the message lists what is wrong.
    """
    try:
        stored, metadata = read_with_metadata(DataFile(Path(path), pool))
        return _parse(os.fspath(path), {tensor.name: tensor for tensor in stored}, metadata)
    except CheckpointError as error:
        raise MaskError(str(error)) from None
    except _Damage as error:
        raise MaskError(f"{os.fspath(path)}: {error}") from None


def _parse(path: str, stored: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> MaskFile:
    if metadata.get("format") != FORMAT:
        found = short(metadata["format"]) if "format" in metadata else "none"
        raise _Damage(
            f"not a mask: expected a file from `trimtab mask`, whose metadata has the format "
            f"{FORMAT!r}; found {found}"
        )
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise _Damage(
            f"a mask of format version {short(metadata.get('format_version'))}; "
            f"this trimtab reads version {FORMAT_VERSION}"
        )
    entries, provenance = (_json_object(metadata, key) for key in ("tensors", "provenance"))
    _refuse(
        [
            *(f"{short(name)} has no bits" for name in entries if name not in stored),
            *(f"{short(name)} has no shape" for name in stored if name not in entries),
        ]
    )
    shapes, num_selected, base, problems = {}, {}, {}, []
    for name, entry in entries.items():
        try:
            shapes[name] = _shape(entry, stored[name])
            num_selected[name] = _count(entry, prod(shapes[name]))
            if (of_base := _base(entry)) is not None:
                base[name] = of_base
        except _Damage as error:
            problems.append(f"{short(name)} {error}")
    _refuse(problems)
    try:
        outline = MaskOutline(shapes, base, provenance)
    except MaskError as error:
        raise _Damage(str(error)) from None
    return MaskFile(path, outline, num_selected, metadata.get("digest", ""), stored)


def _shape(entry: Any, stored: StoredTensor) -> tuple[int, ...]:
    """The shape of a tensor, once its bits are known to have the right number."""
    if not isinstance(entry, dict) or not {"shape", "num_selected", "base"} <= entry.keys():
        raise _Damage("lacks one of shape, num_selected, base")
    shape = entry["shape"]
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(size) is int and 0 <= size < 2**63 for size in shape)
        or prod(max(size, 1) for size in shape) >= 2**63
    ):
        raise _Damage(f"has shape {short(shape)}; expected a list of sizes that fit a tensor")
    expected = (num_packed_bytes(prod(shape)),)
    if stored.dtype.name != "U8" or stored.shape != expected:
        raise _Damage(
            f"has bits of dtype {stored.dtype.name} and shape {short(list(stored.shape))}; "
            f"expected U8 and {short(list(expected))} for a tensor of shape {short(shape)}"
        )
    return tuple(shape)


def _count(entry: Mapping[str, Any], num_elements: int) -> int:
    claimed = entry["num_selected"]
    if type(claimed) is not int or not 0 <= claimed <= num_elements:
        raise _Damage(
            f"says it selects {short(claimed)} elements; expected a number from 0 to {num_elements}"
        )
    return claimed


def _base(entry: Mapping[str, Any]) -> BaseTensor | None:
    base = entry["base"]
    if base is None:
        return None
    are_fields = isinstance(base, dict) and base.keys() == set(BaseTensor._fields)
    if not are_fields or not all(isinstance(value, str) for value in base.values()):
        raise _Damage(f"has base {short(base)}; expected dtype and digest, two strings")
    return BaseTensor(**base)


def _json_object(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        value = parse_json(metadata[key], strict=True)
    except KeyError:
        raise _Damage(f"its metadata lacks {key!r}") from None
    except ValueError as error:
        raise _Damage(f"its metadata {key!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise _Damage(f"its metadata {key!r} is no object")
    return value


def _refuse(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise _Damage(f"damaged: {first_few(found, '; ')}")
