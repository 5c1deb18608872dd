"""The file of a mask: a safetensors file of packed bits, described by its metadata.

Each tensor of the mask is a U8 tensor of its name, `[ceil(num_elements / 8)]`; shapes, counts and
provenance are JSON in the metadata. Files are untrusted: sizes and shapes are checked before
anything
is allocated; counts, unused bits and the digest are checked before the bits are used.

The file is written tensor by tensor, sorted by name as for the digest, so a sequential reader can
check it. Counts and the digest are known last: the header is written with room for them and then
overwritten. A `StoredMask` leaves the bits on disk and needs memory for its largest tensor.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from reprlib import repr as short
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints import safetensors
from trimtab.checkpoints.tensors import FilePool, Pooled, StoredTensor
from trimtab.errors import CheckpointError, MaskError
from trimtab.inputs import parse_json
from trimtab.masks.header import (
    BaseTensor,
    MaskHeader,
    PackedMask,
    check_format,
    opened_tensors,
)
from trimtab.masks.packed import MaskDigest, PackedTensor, num_packed_bytes
from trimtab.outputs import new_file
from trimtab.words import first_few, one_line

FORMAT = "trimtab.mask"
FORMAT_VERSION = 1
"""History: 1, the first."""


class StoredMask(PackedMask, Pooled):
    """A mask whose bits are on disk, read a tensor at a time.

    Use it as a context manager, or call `close`. Make one with `open_mask`.
    """

    def __init__(
        self,
        path: str,
        header: MaskHeader,
        digest: str,
        num_selected: Mapping[str, int],
        stored: Mapping[str, StoredTensor],
        pool: FilePool,
        *,
        is_checked: bool = False,
    ) -> None:
        """Store the header; the bits are unverified until they are read.

        Args:
            path: The file, as the user gave it.
            header: Header of the mask.
            digest: Digest in the metadata.
            num_selected: Name -> number of bits that are 1, from the metadata.
            stored: Name -> the stored bits.
            pool: Keeps the file open.
            is_checked: Whether all bits were read and match the header.
        """
        super().__init__(header)
        self._path = path
        self._digest = digest
        self._num_selected = num_selected
        self._stored = stored
        self._pool = pool
        self._is_checked = is_checked

    @property
    def path(self) -> str:
        """The file, as the user gave it."""
        return self._path

    @property
    def digest(self) -> str:
        """xxh3-128 of names, shapes and bits, hexadecimal: the identity of the mask."""
        return self._digest

    def packed(self, name: str) -> NDArray[np.uint8]:
        """Read the bits of a tensor, as `Mask.packed` returns them. Thread-safe.

        Returns:
            A new array, uint8 `[ceil(num_elements / 8)]`; bits after the last element are 0.

        Raises:
            MaskError: The file was changed since it was opened, or cannot be read.
        """
        tensor = self._tensor(name)
        if problems := list(self._problems(name, tensor)):
            raise self._damaged(problems)
        tensor.bits.flags.writeable = False
        return tensor.bits

    def packed_in_order(self) -> Iterator[NDArray[np.uint8]]:
        """The bits of all tensors, sorted by name; checked on the way unless they were before.

        Raises:
            MaskError: The file is damaged; known at the end.
        """
        if self._is_checked:
            yield from super().packed_in_order()
        else:
            for _, tensor in self.checked():
                yield tensor.bits

    def num_selected(self, name: str | None = None) -> int:
        """Selected elements of a tensor, or of all."""
        return sum(self._num_selected.values()) if name is None else self._num_selected[name]

    def renamed(self, names: Mapping[str, str]) -> StoredMask:
        """The same file with other names for some of its tensors, and the same digest.

        It shares the open file and is closed with this mask. Unchecked bits are checked first,
        since the digest is of the names in the file.

        Args:
            names: Name of a tensor of this mask -> its new name.

        Raises:
            MaskError: The file is damaged.
        """
        if not self._is_checked:
            deque(self.checked(), maxlen=0)
        return StoredMask(
            self.path,
            self._header.renamed(names),
            self.digest,
            {names.get(name, name): count for name, count in self._num_selected.items()},
            {names.get(name, name): tensor for name, tensor in self._stored.items()},
            self._pool,
            is_checked=True,
        )

    def checked(self) -> Iterator[tuple[str, PackedTensor]]:
        """Read the bits of all tensors, sorted by name, and check them.

        Use no tensor before the end: only then is the mask known to be intact.

        Raises:
            MaskError: Bits do not match the header, listed for all tensors up to a handful; or
                their digest is not that of the file.
        """
        problems: list[str] = []
        digest = MaskDigest()
        for name in sorted(self):
            tensor = self._tensor(name)
            problems += self._problems(name, tensor)
            digest.update(name, tensor)
            yield name, tensor
        if problems:
            raise self._damaged(problems)
        if (actual := digest.hexdigest()) != self.digest:
            raise MaskError(
                f"{self.path}: damaged: its bits have the digest {actual}, and the file says "
                f"{self.digest[:32]!r}"
            )
        self._is_checked = True

    def _tensor(self, name: str) -> PackedTensor:
        try:
            return PackedTensor.of(self.shape(name), self._stored[name].read())
        except CheckpointError as error:
            raise MaskError(str(error)) from None

    def _problems(self, name: str, tensor: PackedTensor) -> Iterator[str]:
        if tensor.num_selected != (claimed := self._num_selected[name]):
            yield (
                f"{short(name)} says it selects {claimed} elements, "
                f"and selects {tensor.num_selected}"
            )
        if not tensor.has_clean_padding:
            yield f"{short(name)} has bits set after its last element"

    def _damaged(self, problems: Iterable[str]) -> MaskError:
        return MaskError(f"{self.path}: damaged: {first_few(list(problems), '; ')}")

    def __repr__(self) -> str:
        return one_line(self, f"{self.path}, digest {self.digest}")


def open_mask(path: str | os.PathLike[str]) -> StoredMask:
    """Open a mask file, check all of it, and leave its bits on disk.

    Raises:
        MaskError: It is not a mask file, or a damaged one.
    """
    mask = open_unchecked(path)
    try:
        deque(mask.checked(), maxlen=0)
    except BaseException:
        mask.close()
        raise
    return mask


def open_unchecked(path: str | os.PathLike[str]) -> StoredMask:
    """Open a mask file and check only its header: trust its bits only after `checked`.

    Raises:
        MaskError: It is not a mask file, or a damaged one; the message lists the problems.
    """
    with opened_tensors(path) as (pool, stored, metadata):
        return _parse(os.fspath(path), {tensor.name: tensor for tensor in stored}, metadata, pool)


def opened_masks(
    masks: Iterable[str | os.PathLike[str] | PackedMask], stack: ExitStack, *, check: bool = True
) -> list[PackedMask]:
    """Open the masks that are given as files, for as long as the stack lasts.

    Args:
        masks: Masks, or their files.
        stack: Closes the files.
        check: Read and check all bits of the files; otherwise `packed_in_order` does so.

    Raises:
        MaskError: A file is not a mask, or a damaged one.
    """
    open_one = open_mask if check else open_unchecked
    return [
        stack.enter_context(open_one(mask)) if isinstance(mask, str | os.PathLike) else mask
        for mask in masks
    ]


def _parse(
    path: str, stored: Mapping[str, StoredTensor], metadata: Mapping[str, str], pool: FilePool
) -> StoredMask:
    check_format(metadata, FORMAT, FORMAT_VERSION, "a mask", "`trimtab mask`")
    entries, provenance = (json_object(metadata, key) for key in ("tensors", "provenance"))
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
            num_selected[name] = count_of(entry, prod(shapes[name]))
            if (of_base := base_tensor_of(entry)) is not None:
                base[name] = of_base
        except MaskError as error:
            problems.append(f"{short(name)} {error}")
    _refuse(problems)
    header = MaskHeader(shapes, base, provenance)
    return StoredMask(path, header, metadata.get("digest", ""), num_selected, stored, pool)


def _shape(entry: Any, stored: StoredTensor) -> tuple[int, ...]:
    """The shape of a tensor, after checking the number of its bits."""
    if not isinstance(entry, dict) or not {"shape", "num_selected", "base"} <= entry.keys():
        raise MaskError("lacks one of shape, num_selected, base")
    shape = entry["shape"]
    if (
        not safetensors.are_sizes(shape)
        or len(shape) > safetensors.MAX_DIMENSIONS
        or prod(max(size, 1) for size in shape) >= 2**63
    ):
        raise MaskError(f"has shape {short(shape)}; expected a list of sizes that fit a tensor")
    expected = (num_packed_bytes(prod(shape)),)
    if stored.dtype.name != "U8" or stored.shape != expected:
        raise MaskError(
            f"has bits of dtype {stored.dtype.name} and shape {short(list(stored.shape))}; "
            f"expected U8 and {short(list(expected))} for a tensor of shape {short(shape)}"
        )
    return tuple(shape)


def count_of(entry: Mapping[str, Any], num_elements: int) -> int:
    """The selected elements that the metadata claim for a tensor.

    Raises:
        MaskError: The number is not one from 0 to the tensor's elements.
    """
    claimed = entry["num_selected"]
    if type(claimed) is not int or not 0 <= claimed <= num_elements:
        raise MaskError(
            f"says it selects {short(claimed)} elements; expected a number from 0 to {num_elements}"
        )
    return claimed


def base_tensor_of(entry: Mapping[str, Any]) -> BaseTensor | None:
    """What the metadata say of the base of a tensor.

    Raises:
        MaskError: It is not as `compact` writes it.
    """
    base = entry["base"]
    if base is None:
        return None
    are_fields = isinstance(base, dict) and base.keys() == set(BaseTensor._fields)
    if not are_fields or not all(isinstance(value, str) for value in base.values()):
        raise MaskError(f"has base {short(base)}; expected dtype and digest, two strings")
    return BaseTensor(**base)


def json_object(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """A JSON object in the metadata.

    Raises:
        MaskError: There is none.
    """
    try:
        value = parse_json(metadata[key], strict=True)
    except KeyError:
        raise MaskError(f"its metadata lacks {key!r}") from None
    except ValueError as error:
        raise MaskError(f"its metadata {key!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise MaskError(f"its metadata {key!r} is no object")
    return value


def _refuse(problems: Iterable[str]) -> None:
    if listed := list(problems):
        raise MaskError(f"damaged: {first_few(listed, '; ')}")


class MaskWriter:
    """Writes a mask file.

    Attributes:
        header: Header of the mask.
        names: Names of its tensors, in the order in which they must be added.
        num_selected: Name -> selected elements of the tensors added so far.
    """

    def __init__(self, file: BinaryIO, header: MaskHeader) -> None:
        self.header = header
        self.names = sorted(header.shapes)
        self.num_selected: dict[str, int] = {}
        self._file = file
        self._digest = MaskDigest()
        largest = {name: header.num_elements(name) for name in self.names}
        # With room for the largest counts, which are known only at the end.
        self._num_start_bytes = file.write(self._start(largest, "0" * 32))

    def add(self, tensor: PackedTensor) -> None:
        """Write the next tensor of `names`."""
        name = self.names[len(self.num_selected)]
        if tensor.shape != self.header.shapes[name]:
            raise ValueError(f"{name}: {tensor.shape} is not {self.header.shapes[name]}")
        self._file.write(tensor.bits.data)
        self._digest.update(name, tensor)
        self.num_selected[name] = tensor.num_selected

    def finish(self) -> None:
        """Write the final header; all tensors must have been added."""
        self._file.seek(0)
        digest = self._digest.hexdigest()
        self._file.write(self._start(self.num_selected, digest, self._num_start_bytes))

    def _start(
        self, num_selected: Mapping[str, int], digest: str, num_bytes: int | None = None
    ) -> bytes:
        shapes, base = self.header.shapes, self.header.base
        tensors = {
            name: {
                "shape": list(shape),
                "num_selected": num_selected[name],
                "base": base[name]._asdict() if name in base else None,
            }
            for name, shape in shapes.items()
        }
        return safetensors.file_start(
            {
                name: ("U8", (num_packed_bytes(self.header.num_elements(name)),))
                for name in self.names
            },
            {
                "format": FORMAT,
                "format_version": str(FORMAT_VERSION),
                "digest": digest,
                "tensors": compact(tensors),
                "provenance": compact(dict(self.header.provenance)),
            },
            num_bytes=num_bytes,
        )


@contextmanager
def mask_writer(
    path: str | os.PathLike[str], header: MaskHeader, *, force: bool
) -> Iterator[MaskWriter]:
    """Yield a writer to which every tensor is added; the file appears at the end, whole.

    Raises:
        OutputExistsError: The file exists and `force` is not set, or the path is a folder.
    """
    with new_file(path, force=force) as file:
        writer = MaskWriter(file, header)
        yield writer
        writer.finish()


def write_mask_file(
    path: str | os.PathLike[str],
    header: MaskHeader,
    tensor: Callable[[str], PackedTensor],
    *,
    force: bool,
) -> int:
    """Write a mask, whole or not at all, one tensor at a time; missing parent folders are created.

    Args:
        path: The file.
        header: Header of the mask.
        tensor: Returns the bits of a tensor by name; called once for each, sorted by name.
        force: Replace an existing file.

    Returns:
        Number of selected elements.

    Raises:
        OutputExistsError: The file exists and `force` is not set, or the path is a folder.
    """
    with mask_writer(path, header, force=force) as writer:
        for name in writer.names:
            writer.add(tensor(name))
    return sum(writer.num_selected.values())


def compact(value: Any) -> str:
    """JSON for the metadata."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
