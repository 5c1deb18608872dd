"""Records of the checkpoints and masks that a result was computed from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import prod
from typing import Any, ClassVar, NotRequired, TypeAlias, TypedDict

import xxhash

from trimtab._version import __version__
from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.results.schema import Count, fields_to_plain
from trimtab.words import one_line, out_of, plural


@dataclass(frozen=True)
class CheckpointRecord:
    """Identifies a checkpoint, so that a result can be traced to it.

    Attributes:
        id: The path or hub id as the user gave it.
        revision: Commit of the hub repository; None for local files.
        architecture: `architectures[0]` of its config, if it has one.
        num_tensors: Tensors stored.
        num_elements: Elements stored.
        dtypes: safetensors dtype name -> elements stored in it.
        content_hash: xxh3-128 over every tensor's name, dtype, shape and hash, sorted by name.
        notes: Remarks on which of its tensors were read as weights.
    """

    PLAIN: ClassVar = (
        *("id", "revision", "architecture", "num_tensors", "num_elements", "dtypes"),
        *("content_hash", "notes?"),
    )

    id: str
    revision: str | None
    architecture: str | None
    num_tensors: int
    num_elements: int
    dtypes: Mapping[str, int]
    content_hash: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Convert the list of a JSON file to a tuple."""
        object.__setattr__(self, "notes", tuple(self.notes))

    def __repr__(self) -> str:
        ref = f"{self.id}@{self.revision}" if self.revision else self.id
        tensors = plural(self.num_tensors, "tensor")
        return one_line(self, f"{ref}: {self.num_elements:,} elements in {tensors}")

    def problems(self) -> Iterator[str]:
        """Values that are impossible."""
        if self.num_tensors < 0 or min(self.dtypes.values(), default=0) < 0:
            yield "counts are negative"
        if sum(self.dtypes.values()) != self.num_elements:
            yield f"num_elements is {self.num_elements}, and dtypes has {sum(self.dtypes.values())}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; without notes where there are none."""
        return fields_to_plain(self)


@dataclass(frozen=True)
class MaskRecord:
    """Identifies a mask, so that a result can be traced to it.

    Attributes:
        id: The path as the user gave it; None for a mask that was not read from a file.
        digest: The mask's identity: xxh3-128 over names, shapes and bits.
        num_tensors: Tensors in the mask.
        num_elements: Elements in those tensors.
        num_selected: Elements selected.
        num_checked: Tensors whose bytes in the base match the digests in the mask. The mask has no
            digest of the others.
        provenance: How the mask was made, as stored in it.
    """

    id: str | None
    digest: str
    num_tensors: int
    num_elements: int
    num_selected: int
    num_checked: int
    provenance: Mapping[str, Any]

    def __repr__(self) -> str:
        selected = out_of(self.num_selected, self.num_elements, "element")
        return one_line(self, f"{self.id or self.digest}: {selected} selected")

    def problems(self) -> Iterator[str]:
        """Values that are impossible."""
        if not 0 <= self.num_selected <= self.num_elements:
            yield f"num_selected is {self.num_selected} of {self.num_elements}"
        if not 0 <= self.num_checked <= self.num_tensors:
            yield f"num_checked is {self.num_checked} of {self.num_tensors}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return fields_to_plain(self)


class Tied(TypedDict):
    """A tensor that repeats another one."""

    name: str
    tied_to: str
    num_elements: Count
    stored_in: NotRequired[tuple[str, ...]]


Row: TypeAlias = tuple[str, str, tuple[int, ...], str]
"""Name, safetensors dtype, shape, and xxh3-128 of the stored bytes of a tensor."""


def content_hash(rows: Iterable[Row]) -> str:
    """One hash over all tensors of a checkpoint, sorted by name."""
    hasher = xxhash.xxh3_128()
    for name, dtype, shape, digest in rows:
        hasher.update(f"{name}\0{dtype}\0{shape}\0{digest}\n".encode())
    return hasher.hexdigest()


def record_of(checkpoint: Checkpoint, hashes: Mapping[str, str]) -> CheckpointRecord:
    """The record of a checkpoint, with one hash over all its tensors."""
    return record_of_tensors(
        (
            (name, tensor.dtype.name, tensor.shape, hashes[name])
            for name, tensor in checkpoint.tensors.items()
        ),
        id=checkpoint.id,
        revision=checkpoint.revision,
        architecture=checkpoint.architecture,
        notes=checkpoint.notes,
    )


def record_of_tensors(
    tensors: Iterable[Row],
    *,
    id: str,
    revision: str | None,
    architecture: str | None,
    notes: tuple[str, ...] = (),
) -> CheckpointRecord:
    """The record of tensors in any order, from files or in memory."""
    rows = sorted(tensors)
    dtypes: dict[str, int] = {}
    for _, dtype, shape, _ in rows:
        dtypes[dtype] = dtypes.get(dtype, 0) + prod(shape)
    return CheckpointRecord(
        id=id,
        revision=revision,
        architecture=architecture,
        num_tensors=len(rows),
        num_elements=sum(dtypes.values()),
        dtypes=dtypes,
        content_hash=content_hash(rows),
        notes=notes,
    )


def made_now(**more: Any) -> dict[str, Any]:
    """Provenance with the current version and date, no command, and further entries."""
    return {
        "trimtab_version": __version__,
        "command": None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }
