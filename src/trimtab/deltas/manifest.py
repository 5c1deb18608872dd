"""What a delta file says of itself: its files, its tensors, and the hashes that prove them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import PurePosixPath
from reprlib import repr as short
from typing import ClassVar, Literal

import xxhash

from trimtab.checkpoints.folder import is_foreign
from trimtab.checkpoints.names import parts_of
from trimtab.checkpoints.safetensors import MAX_DIMENSIONS
from trimtab.checkpoints.tensors import HASH
from trimtab.elements.counts import ULP_LABEL
from trimtab.elements.dtypes import DTYPES
from trimtab.results.records import CheckpointRecord
from trimtab.results.result import Result
from trimtab.results.schema import Count, Provenance
from trimtab.words import one_line, plural

MAX_FILE_BYTES = 256 << 20
"""Longest file, apart from weights, that a delta carries."""

MAX_NAME_BYTES = 255
"""Longest name of a file or a folder, on usual file systems."""

SHA256 = re.compile("[0-9a-f]{64}")


class FileHash:
    """The hashes of a file of which one part after the other is read or written."""

    def __init__(self, *, sha256: bool) -> None:
        self._xxh3 = xxhash.xxh3_128()
        self._sha256 = hashlib.sha256() if sha256 else None

    def update(self, content: bytes | memoryview) -> None:
        """Add a part."""
        self._xxh3.update(content)
        if self._sha256 is not None:
            self._sha256.update(content)

    def hexdigest(self) -> str:
        """xxh3-128."""
        return self._xxh3.hexdigest()

    def sha256(self) -> str | None:
        """SHA-256, if it was wanted."""
        return None if self._sha256 is None else self._sha256.hexdigest()


@dataclass(frozen=True)
class TensorEntry:
    """How a delta stores one tensor of the tuned checkpoint.

    Attributes:
        name: Its name in the tuned checkpoint.
        dtype: safetensors name of its dtype.
        shape: Its shape.
        hash: xxh3-128 of its bytes.
        base: The tensor of the base that it is coded against; None if it is stored whole.
        base_hash: xxh3-128 of the bytes of `base`; empty if there is none.
        num_common: Its first elements, in C order, that are coded against the first elements of
            `base`. The rest is stored whole. All of them, unless rows were added or removed.
        num_changed: Elements that differ from the base, with those that have no counterpart.
        frames: Bytes of each frame of the coded elements; none if they equal those of the base.
        copy_of: The tensor of the tuned checkpoint that it equals bit for bit, if it is tied to one
            and stored all the same; then nothing is stored for it.
        mask: The tensor of the mask whose elements the frames code, and no others; None if they
            code all.
        ulp_histogram: As in `ChangeCounts`, if `delta_info` was given the base; never in a file.
    """

    PLAIN: ClassVar = (
        *("name", "layer", "kind", "dtype", "shape", "hash", "base", "base_hash", "num_common"),
        *("num_changed", "num_stored", "frames", "copy_of?", "mask?", "ulp_histogram?"),
    )

    name: str
    dtype: str
    shape: tuple[Count, ...]
    hash: str
    base: str | None
    base_hash: str
    num_common: Count
    num_changed: Count
    frames: tuple[Count, ...]
    copy_of: str | None = None
    mask: str | None = None
    ulp_histogram: Mapping[str, Count] | None = None

    def __post_init__(self) -> None:
        """Take the lists of a file as what they were."""
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "frames", tuple(self.frames))

    def __repr__(self) -> str:
        return one_line(self, f"{self.name}: {self.num_changed:,} of {self.num_elements:,} changed")

    @property
    def layer(self) -> int | None:
        """Index of the transformer layer, or None outside the layers."""
        return parts_of(self.name, self.shape, {})[0].layer

    @property
    def kind(self) -> str:
        """What it is: `q_proj`, `down_proj`, `norm`, `embed`, ..."""
        return parts_of(self.name, self.shape, {})[0].kind

    @property
    def num_elements(self) -> int:
        """Elements of the tuned tensor."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tuned tensor."""
        return self.num_elements * DTYPES[self.dtype].num_bytes

    @property
    def common_shape(self) -> tuple[int, ...]:
        """Shape of the coded elements: that of the tensor, or of its first rows."""
        if self.num_common == self.num_elements:
            return self.shape
        return (self.num_common // prod(self.shape[1:]), *self.shape[1:])

    @property
    def num_coded(self) -> int:
        """Bytes of the frames."""
        return sum(self.frames)

    @property
    def num_stored(self) -> int:
        """Bytes in the delta: of the frames, and of the elements that are stored whole."""
        if self.copy_of is not None:
            return 0
        rest = self.num_elements - self.num_common
        return self.num_coded + rest * DTYPES[self.dtype].num_bytes

    def problems(self) -> Iterator[str]:
        """What no tensor of a delta can be."""
        if not self.name.isprintable():
            yield f"{short(self.name)} is a name with unprintable characters"
        if self.dtype not in DTYPES:
            yield f"dtype is {self.dtype!r}, which safetensors does not have"
        elif len(self.shape) > MAX_DIMENSIONS or prod(max(1, n) for n in self.shape) >= 2**60:
            yield f"{short(self.shape)} is no shape of a tensor"
        elif max(self.num_common, self.num_changed) > self.num_elements:
            yield f"it has {self.num_elements} elements, fewer than num_common or num_changed"
        elif self.num_common != prod(self.common_shape):
            yield f"num_common is {self.num_common}, not a number of whole rows"
        elif self.base is None and (self.num_common or self.frames):
            yield "it has elements in common with a base, and no base"
        elif self.mask is not None and self.copy_of is not None:
            yield "it is a copy, and coded over a mask"
        elif self.mask is not None and (self.num_common < self.num_elements or not self.frames):
            yield "it is coded over a mask, and not all of its elements are coded"
        elif self.mask is not None and self.frames[0]:
            yield "it is coded over a mask, and has a predictor"
        histogram = self.ulp_histogram or {}
        if odd := [label for label in histogram if not ULP_LABEL.fullmatch(label)]:
            yield f"ulp_histogram has the key {short(odd[0])}, which is no distance"
        elif sum(histogram.values()) > self.num_changed:
            yield f"ulp_histogram counts more than {self.num_changed} elements"


@dataclass(frozen=True)
class FileEntry:
    """A file of the tuned checkpoint.

    Attributes:
        path: Its path in the folder, with `/`.
        kind: `weights` for a safetensors file, of which the delta stores the header and, tensor by
            tensor, the data; `other` for a file that is stored as it is.
        num_bytes: Its size.
        hash: xxh3-128 of its bytes.
        base: The file of the base that helps to decompress this one, or equals it. None for
            weights.
        base_hash: xxh3-128 of that file; empty if there is none.
        num_content: Bytes of the content: the file, or its header with the 8 bytes of its length.
        num_stored: Bytes in the delta; 0 if it equals the base's file.
        sha256: SHA-256 of its bytes, if the delta was made with `sha256=True`.
    """

    PLAIN: ClassVar = (
        *("path", "kind", "num_bytes", "hash", "base", "base_hash", "num_content", "num_stored"),
        "sha256?",
    )

    path: str
    kind: Literal["weights", "other"]
    num_bytes: Count
    hash: str
    base: str | None
    base_hash: str
    num_content: Count
    num_stored: Count
    sha256: str | None = None

    def __repr__(self) -> str:
        return one_line(self, f"{self.path}: {self.num_bytes:,} bytes")

    def problems(self) -> Iterator[str]:
        """What no file of a delta can be."""
        for what, path in (("path", self.path), ("base", self.base)):
            if path is not None and is_foreign(path):
                yield f"{what} is {short(path)}, which leads out of the folder"
            elif path is not None and _is_odd(path, self.kind):
                yield f"{what} is {short(path)}, which is hidden or too long"
        if self.num_content > min(self.num_bytes, MAX_FILE_BYTES):
            yield f"num_content is {self.num_content}, too many for a file of {self.num_bytes}"
        if self.base is None and not self.num_stored:
            yield "nothing is stored of it, and it has no base"
        if self.sha256 is not None and SHA256.fullmatch(self.sha256) is None:
            yield f"sha256 is {short(self.sha256)}, expected 64 hexadecimal digits"


def _is_odd(path: str, kind: str) -> bool:
    """Whether a path is one that `make` never stores: tools act on what is hidden."""
    *folders, name = path.split("/")
    hidden = [*folders, name] if kind == "other" else folders
    return any(part.startswith(".") for part in hidden) or any(
        len(part.encode()) > MAX_NAME_BYTES for part in (*folders, name)
    )


@dataclass(frozen=True)
class Manifest(Result):
    """What a delta holds: the JSON in a delta file, and what `trimtab delta info` shows.

    Attributes:
        base: The checkpoint that the delta is applied to.
        result: The checkpoint that comes of it.
        root: Content hash of the checkpoint that its chain starts from.
        position: Number of the delta in its chain, from 1.
        files: Every file of the result.
        tensors: Every tensor of the result, by name.
        left_out: Files of the tuned folder that the delta does not carry.
        provenance: How it was made.
        mask: Digest of the mask that `TensorEntry.mask` names tensors of; None without one.
    """

    FORMAT: ClassVar[str] = "trimtab.delta"
    NAME: ClassVar[str] = "delta"
    COMMAND: ClassVar[str] = "trimtab delta make"
    PLAIN: ClassVar = (
        *("provenance", "base", "result", "root", "position", "mask?", "files", "left_out"),
        "tensors",
    )

    base: CheckpointRecord
    result: CheckpointRecord
    root: str
    position: Count
    files: tuple[FileEntry, ...]
    tensors: tuple[TensorEntry, ...]
    left_out: tuple[str, ...]
    provenance: Provenance
    mask: str | None = None

    def __post_init__(self) -> None:
        """Take the lists of a file as what they were."""
        for name in ("files", "tensors", "left_out"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def __repr__(self) -> str:
        return one_line(
            self,
            f"{plural(len(self.tensors), 'tensor')}, {self.num_changed:,} of "
            f"{self.num_elements:,} elements changed, {self.num_stored:,} bytes",
        )

    @property
    def num_elements(self) -> int:
        """Elements of the result."""
        return sum(entry.num_elements for entry in self.tensors)

    @property
    def num_changed(self) -> int:
        """Elements that differ from the base."""
        return sum(entry.num_changed for entry in self.tensors)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files of the result."""
        return sum(file.num_bytes for file in self.files)

    @property
    def num_stored(self) -> int:
        """Bytes that the delta stores of tensors and files, without its own header and manifest."""
        tensors = sum(entry.num_stored for entry in self.tensors)
        return tensors + sum(file.num_stored for file in self.files)

    def contents(self) -> dict[str, int]:
        """Name in the delta file -> bytes, of everything that it must hold beside the manifest."""
        files = {f"file:{file.path}": file.num_stored for file in self.files}
        tensors = {"tensors": sum(entry.num_stored for entry in self.tensors)}
        return {name: size for name, size in (files | tensors).items() if size}

    def problems(self) -> Iterator[str]:
        """What no delta can be."""
        paths = [file.path.casefold() for file in self.files]
        for what, names in (
            ("file", paths),
            ("tensor", [entry.name for entry in self.tensors]),
        ):
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                yield f"it has two {what}s of the name {twice[0]!r}"
        folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents}
        if inside := sorted(folders.intersection(paths)):
            yield f"it has a file of the name {short(inside[0])}, and files in a folder of it"
        # Or a small delta could give any number of large files.
        weights = sum(
            file.num_bytes - file.num_content for file in self.files if file.kind == "weights"
        )
        if weights != (tensors := sum(entry.num_bytes for entry in self.tensors)):
            yield (
                f"its files of weights have {weights} bytes of tensors, and the tensors have "
                f"{tensors}"
            )
        originals = {e.name: e for e in self.tensors if e.copy_of is None}
        for entry in self.tensors:
            if entry.copy_of is not None and entry.copy_of not in originals:
                yield f"{entry.name!r} is a copy of {entry.copy_of!r}, which is not there"
        if self.mask is not None and HASH.fullmatch(self.mask) is None:
            yield f"mask is {short(self.mask)}, expected 32 hexadecimal digits"
        if self.mask is None and (coded := [e for e in self.tensors if e.mask is not None]):
            yield f"{coded[0].name!r} is coded over a mask, and no mask is named"
        if not self.position:
            yield "position is 0, expected 1 or more"

    def by_name(self) -> Mapping[str, TensorEntry]:
        """The tensors by their names."""
        return {entry.name: entry for entry in self.tensors}
