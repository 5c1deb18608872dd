"""All of a mask except its bits: names, shapes, base tensors and provenance.

`PackedMask` is the common interface of `Mask` (bits in memory) and `StoredMask` (on disk). The
provenance lists the steps that made the mask, first to last, each with the digests of its inputs.
If
it was made from several masks, `made_from` has the provenance of each, and of theirs, by digest:
flat,
so that long derivations do not nest and no provenance is repeated.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from reprlib import repr as short
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.safetensors import read_with_metadata
from trimtab.checkpoints.tensors import HASH, DataFile, FilePool, StoredTensor
from trimtab.errors import CheckpointError, MaskError, MaskMismatchError
from trimtab.masks.packed import PackedTensor, num_packed_bytes
from trimtab.results.records import MaskRecord, made_now
from trimtab.words import first_few, one_line


class BaseTensor(NamedTuple):
    """The tensor that a mask was made against.

    Attributes:
        dtype: Its safetensors name, such as `BF16`.
        digest: xxh3-128 of the stored bytes of the whole tensor, hexadecimal.
    """

    dtype: str
    digest: str

    @property
    def has_digest(self) -> bool:
        """Whether the digest is 32 hexadecimal digits."""
        return HASH.fullmatch(self.digest) is not None


@dataclass(frozen=True, eq=False)
class MaskHeader:
    """What is known of a mask before its bits. Validated and copied on construction.

    Attributes:
        shapes: Name -> shape, in the mask's order.
        base: Name -> the tensor that the mask was made against; may be incomplete.
        provenance: Plain data.

    Raises:
        MaskError: A name, the base or the provenance cannot be stored in a file.
    """

    shapes: Mapping[str, tuple[int, ...]]
    base: Mapping[str, BaseTensor]
    provenance: Mapping[str, Any]

    __repr__ = one_line

    def __post_init__(self) -> None:
        # Such names would make the file unreadable.
        if bad := [n for n in self.shapes if n == "__metadata__" or not n.isprintable()]:
            raise MaskError(f"{first_few([repr(name) for name in bad])}: not names of tensors")
        if strangers := sorted(self.base.keys() - self.shapes.keys()):
            raise MaskError(f"base has {first_few(strangers)}, which the mask does not have")
        if bad := [name for name, tensor in self.base.items() if not tensor.has_digest]:
            raise MaskError(f"base of {first_few(bad)}: a digest is not 32 hexadecimal digits")
        object.__setattr__(self, "shapes", dict(self.shapes))
        object.__setattr__(self, "base", dict(self.base))
        object.__setattr__(self, "provenance", plain_provenance(self.provenance))

    def renamed(self, names: Mapping[str, str]) -> MaskHeader:
        """The same header with other names for some of the tensors.

        Raises:
            MaskError: Two tensors would have one name.
        """
        shapes = {names.get(name, name): shape for name, shape in self.shapes.items()}
        if len(shapes) < len(self.shapes):
            raise MaskError(
                f"two tensors cannot have one name: {first_few(sorted(names.values()))}"
            )
        base = {names.get(name, name): tensor for name, tensor in self.base.items()}
        return MaskHeader(shapes, base, self.provenance)

    def num_elements(self, name: str | None = None) -> int:
        """Elements of a tensor, or of all."""
        if name is not None:
            return prod(self.shapes[name])
        return sum(prod(shape) for shape in self.shapes.values())


class PackedMask(ABC):
    """A mask that is read tensor by tensor, from memory or from disk."""

    def __init__(self, header: MaskHeader) -> None:
        self._header = header

    @property
    def path(self) -> str | None:
        """The file of the bits, as the user gave it; None for a mask in memory."""
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in order."""
        return tuple(self._header.shapes)

    @property
    def provenance(self) -> Mapping[str, Any]:
        """How the mask was made; `steps` lists the steps, first to last."""
        return MappingProxyType(self._header.provenance)

    @property
    def base(self) -> Mapping[str, BaseTensor]:
        """The tensors that the mask was made against; empty if unknown."""
        return MappingProxyType(self._header.base)

    @property
    @abstractmethod
    def digest(self) -> str:
        """xxh3-128 of names, shapes and bits, hexadecimal: the identity of the mask.

        The order of the tensors and the provenance are not part of it.
        """

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._header.shapes[name]

    @abstractmethod
    def packed(self, name: str) -> NDArray[np.uint8]:
        """The bits of a tensor: element `i` in C order is bit `i % 8` of byte `i // 8`. Read-only.

        Returns:
            uint8 `[ceil(num_elements / 8)]`; bits after the last element are 0.
        """

    def tensor(self, name: str, shape: tuple[int, ...]) -> PackedTensor:
        """What the mask selects of a tensor of this shape: nothing if it lacks the tensor."""
        if name not in self:
            return PackedTensor(shape, np.zeros(num_packed_bytes(prod(shape)), np.uint8), 0)
        return PackedTensor(shape, self.packed(name), self.num_selected(name))

    def packed_in_order(self) -> Iterator[NDArray[np.uint8]]:
        """The bits of all tensors, as `packed` returns them, sorted by name."""
        for name in sorted(self):
            yield self.packed(name)

    @abstractmethod
    def num_selected(self, name: str | None = None) -> int:
        """Selected elements of a tensor, or of all."""

    def num_elements(self, name: str | None = None) -> int:
        """Elements of a tensor, or of all tensors of the mask."""
        return self._header.num_elements(name)

    @property
    def density(self) -> float:
        """Selected / all elements of the mask's tensors; 0 for a mask without elements."""
        return self.num_selected() / self.num_elements() if self.num_elements() else 0.0

    @abstractmethod
    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same mask with other names for some of its tensors, and the same digest.

        Args:
            names: Name of a tensor of this mask -> its new name.
        """

    def check(
        self, shapes: Mapping[str, tuple[int, ...]], digests: Mapping[str, str] | None = None
    ) -> None:
        """Check that the mask fits the tensors of a model.

        Tensors that the model lacks are ignored if nothing of them is selected: checkpoints can
        hold buffers that no model trains.

        Args:
            shapes: Name -> shape of the model's tensors.
            digests: Name -> xxh3-128 of the bytes of those tensors, as stored; compared with `base`
                for the names in both.

        Raises:
            MaskMismatchError: It does not fit; the message names the tensors, up to a handful.
        """
        problems = []
        for name, shape in self._header.shapes.items():
            if name not in shapes:
                if self.num_selected(name):
                    problems.append(f"{name} is not in the model")
            elif tuple(shapes[name]) != shape:
                problems.append(f"{name} has shape {tuple(shapes[name])}, in the mask {shape}")
            elif name in self._header.base and name in (digests or {}):
                expected, actual = self._header.base[name].digest, (digests or {})[name]
                if actual != expected:
                    problems.append(
                        f"{name} has the digest {actual}, and {expected} when the mask was made"
                    )
        if problems:
            raise MaskMismatchError(
                f"the mask does not fit the model, in {len(problems)} of its {len(self)} tensors: "
                f"{first_few(problems, '; ')}. Use the base that the mask was made from, or make a "
                "mask from this one"
            )

    def __contains__(self, name: object) -> bool:
        return name in self._header.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._header.shapes)

    def __len__(self) -> int:
        return len(self._header.shapes)


def mask_record(mask: PackedMask, id: str | None, digests: Collection[str]) -> MaskRecord:
    """The record of a mask, for results.

    Args:
        mask: The mask.
        id: The path of its file as the user gave it, or None.
        digests: Names of the tensors whose bytes were verified to be those of its base.
    """
    return MaskRecord(
        id=id,
        digest=mask.digest,
        num_tensors=len(mask),
        num_elements=mask.num_elements(),
        num_selected=mask.num_selected(),
        num_checked=sum(name in digests for name in mask.base),
        provenance=dict(mask.provenance),
    )


def provenance_of(steps: list[Any]) -> dict[str, Any]:
    """The provenance of a mask made just now."""
    return made_now(steps=steps)


def provenance_with(before: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a mask made just now by one step from another mask.

    Args:
        before: Provenance of the other mask.
        step: Description of the step.
    """
    return {**before, **provenance_of([*before.get("steps", ()), dict(step)])}


def provenance_from(masks: Sequence[PackedMask], step: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a mask made just now by one step from several others.

    Args:
        masks: The others; the step records their digests in `of`, in this order.
        step: Description of the step.
    """
    of_all = {**step, "of": [mask.digest for mask in masks]}
    return {**provenance_of([of_all]), "made_from": provenances_by_digest(masks)}


def provenances_by_digest(masks: Sequence[PackedMask]) -> dict[str, Any]:
    """The provenance of some masks and of those that they were made from, by digest."""
    made_from: dict[str, Any] = {}
    for mask in masks:
        provenance = dict(mask.provenance)
        before = provenance.pop("made_from", {})
        # Existing entries stay, so that no mask is recorded as made from itself.
        for digest, other in before.items() if isinstance(before, dict) else ():
            made_from.setdefault(digest, other)
        made_from.setdefault(mask.digest, provenance)
    return made_from


def plain_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of a provenance as plain JSON data.

    Raises:
        MaskError: It cannot be stored.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(provenance), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise MaskError(f"the provenance cannot be stored as JSON: {error}") from None
    steps = plain.get("steps", [])
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise MaskError("the provenance has steps that are not a list of objects")
    return plain


def check_format(
    metadata: Mapping[str, str], format: str, version: int, kind: str, source: str
) -> None:
    """Check that the metadata of a safetensors file are those of a trimtab format.

    Args:
        metadata: Metadata of the file.
        format: Expected format.
        version: Supported version.
        kind: The file in words: `a mask`.
        source: What writes such files.

    Raises:
        MaskError: They are not; the message lacks the name of the file.
    """
    if metadata.get("format") != format:
        actual = short(metadata["format"]) if "format" in metadata else "none"
        raise MaskError(
            f"not {kind}: expected a file from {source}, whose metadata has the format {format!r}; "
            f"found {actual}"
        )
    if metadata.get("format_version") != str(version):
        raise MaskError(
            f"{kind} of format version {short(metadata.get('format_version'))}; this trimtab reads "
            f"version {version}"
        )


@contextmanager
def opened_tensors(
    path: str | os.PathLike[str],
) -> Iterator[tuple[FilePool, list[StoredTensor], dict[str, str]]]:
    """Open a safetensors file of trimtab; an error of the block closes it, and names the file.

    Yields:
        What keeps the file open, its tensors by offset, and its metadata.

    Raises:
        MaskError: It is not a safetensors file, or the block raised one without the file's name.
    """
    pool = FilePool()
    try:
        yield pool, *read_with_metadata(DataFile(Path(path), pool))
    except BaseException as error:
        pool.close()
        if isinstance(error, CheckpointError):
            raise MaskError(str(error)) from None
        if isinstance(error, MaskError):
            raise MaskError(f"{os.fspath(path)}: {error}") from None
        raise
