"""How the versions of a run are written at a place: what every layout of files has to do."""

from __future__ import annotations

import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import xxhash

from trimtab.checkpoints.align import match_names
from trimtab.checkpoints.checkpoint import Checkpoint, open_checkpoint
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.deltas.masked import MaskOfBase
from trimtab.deltas.source import Source, hashes_of
from trimtab.elements.dtypes import Bits, DType
from trimtab.errors import SyncError
from trimtab.inputs import AnyPath
from trimtab.masks.header import PackedMask
from trimtab.results.records import CheckpointRecord, record_of
from trimtab.sync.places import Place
from trimtab.sync.published import Published
from trimtab.sync.snapshot import AllChanges, Part, Snapshot


class Pending(NamedTuple):
    """A version that is being published."""

    number: int
    step: int | None
    changes: AllChanges
    source: Source
    seconds: dict[str, float]


class Wire(ABC):
    """Writes versions at a place, and holds a copy of the newest one.

    Args:
        place: The place.
        base: The checkpoint that the run begins with, if it is not to be published.
        scratch: A folder to write to.
        threads: Tensors or chunks encoded at the same time; None for one for each core.
        depth: Versions of which the copy remembers what changed.
        mask: A mask that was checked, if only its elements are trained; with a base, no others are
            held.
    """

    has_followers = True
    """Whether followers say in this layout which version they have."""

    def __init__(
        self,
        place: Place,
        base: AnyPath | None,
        scratch: Path,
        threads: int | None,
        depth: int = 0,
        mask: PackedMask | None = None,
    ) -> None:
        self.place = place
        self._base_path = base
        self._scratch = scratch
        self._threads = threads
        self._depth = depth
        self._mask = mask
        self._writer = secrets.token_hex(16)
        self._held: Snapshot | None = None
        self._base: Checkpoint | None = None
        self._folders: dict[int, Path] = {}

    @property
    @abstractmethod
    def run(self) -> str | None:
        """Identifies the run; None before `start`."""

    @property
    @abstractmethod
    def version(self) -> int | None:
        """The newest version at the place; None before `start`."""

    @property
    @abstractmethod
    def record(self) -> CheckpointRecord:
        """Describes version 0."""

    def start(self, source: Source) -> None:
        """Begin a run, or take over the one that is at the place.

        Args:
            source: The weights; version 0 without a base.

        Raises:
            SyncError: Another run is there, or the base has other tensors.
        """
        if self._base_path is not None and self._base is None:
            self._base = open_checkpoint(self._base_path)
        self._start(source)

    @abstractmethod
    def _start(self, source: Source) -> None:
        """`start`, with the base open."""

    @abstractmethod
    def send(self, pending: Pending) -> Published:
        """Encode a version and publish it; only then the copy moves to it."""

    @abstractmethod
    def settle(self) -> None:
        """Find out whether a version that could not be published is there all the same.

        Raises:
            SyncError: Another publisher took over.
        """

    def close(self) -> None:
        """Close the base."""
        if self._base is not None:
            self._base.close()

    @property
    def snapshot(self) -> Snapshot:
        """The copy of the newest version, from `start` on."""
        assert self._held is not None
        return self._held

    def _stored_names(self, source: Source) -> dict[str, str]:
        """Name of a tensor in a source -> its name in the files of the base."""
        assert self._base is not None
        matched = match_names(self._base, source)
        return {its_name: self._base.tied.get(name, name) for name, its_name in matched.items()}

    def _base_tensors(self, source: Source) -> dict[str, StoredTensor]:
        """The tensors of the base by the names that a source has for them."""
        assert self._base is not None
        tensors = self._base.tensors
        stored = {its: tensors[name] for its, name in self._stored_names(source).items()}
        for name, tensor in source.tensors.items():
            base = stored.get(name)
            if base is None or (base.dtype, base.shape) != (tensor.dtype, tensor.shape):
                found = "none" if base is None else f"{base.dtype.name} {list(base.shape)}"
                raise SyncError(
                    f"{name} is {tensor.dtype.name} {list(tensor.shape)} in the model, and in its "
                    f"base {self._base.id}: {found}; load the model in the dtypes of its files "
                    "(dtype='auto'), or publish without a base"
                )
        return {name: stored[name] for name in source.tensors}

    def _record_of_base(self) -> CheckpointRecord:
        assert self._base is not None
        return record_of(self._base, hashes_of(self._base))

    def _check_base(self, record: CheckpointRecord) -> None:
        """Refuse to add to a run that began with another checkpoint."""
        if self._base is None or self._record_of_base().content_hash == record.content_hash:
            return
        raise SyncError(
            f"{self.place}: a run of {record.id} is there, with other weights than "
            f"{self._base.id}: publish to another place"
        )

    def _claim(self, name: str, content: bytes) -> None:
        """Store what says that the run is of this publisher, unless another one did."""
        if not self.place.claim(name, content):
            raise SyncError(
                f"{self.place}: another publisher began a run there at the same time: publish one "
                "run at a place"
            )

    def _check_writer(self, writer: str | None, what: str) -> None:
        """Stop if another publisher took over, or what says who publishes is gone."""
        if writer != self._writer:
            found = "another publisher took over" if writer is not None else f"{what} is gone"
            raise SyncError(f"{self.place}: {found}: publish one run at a place, by one trainer")

    def _hold(self, source: Source, tensors: Iterable[tuple[str, DType, Bits]]) -> None:
        """Make these, which are named as in the source, the copy of the last version."""
        parts: dict[str, Part] = {}
        if self._mask is not None and self._base is not None:
            mask = MaskOfBase(self._mask, self._base)
            parts = {
                name: Part(stored, mask.selection(stored.name, stored.shape))
                for name, stored in self._base_tensors(source).items()
            }
        self._held = Snapshot(tensors, self._depth, parts)

    def _hold_base(self, source: Source) -> None:
        """Make the base the copy of the last version."""
        tensors = self._base_tensors(source)
        self._hold(source, ((name, t.dtype, t.read()) for name, t in tensors.items()))

    def _folder_of(self, version: int) -> Path:
        """Where the files beside the weights of a version are; nowhere if they are not known."""
        if version == 0 and self._base is not None:
            return self._base.folder
        return self._folders.get(version, Path(os.devnull))

    def _keep_files(self, version: int, files: Mapping[str, Callable[[], bytes]]) -> None:
        """Keep the files beside the weights of a version; equal ones are kept once."""
        contents = {name: read() for name, read in files.items()}
        digest = xxhash.xxh3_128()
        for name, content in sorted(contents.items()):
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
        folder = self._scratch / f"files-{digest.hexdigest()}"
        for name, content in () if folder.exists() else contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        oldest = version - self._depth
        self._folders = {n: at for n, at in self._folders.items() if n == 0 or n >= oldest}
        self._folders[version] = folder
