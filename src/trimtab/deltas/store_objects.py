"""The objects of a store: checkpoints as deltas, each named by the hash of its files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import xxhash

from trimtab.checkpoints.checkpoint import Checkpoint, open_checkpoint
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import HASH, hash_of_file
from trimtab.deltas.apply import write_file
from trimtab.deltas.chain import Replay
from trimtab.deltas.file import DeltaFile
from trimtab.deltas.manifest import Manifest
from trimtab.errors import DeltaError
from trimtab.inputs import AnyPath, identity_of

MAX_CHAIN = 32
"""Most deltas from the base to a checkpoint: each of them is decoded at a checkout."""


class Candidate(NamedTuple):
    """A delta that may become an object.

    Attributes:
        path: Where it is, on the file system of the store.
        manifest: What it holds.
        parent: Hash of the object that it is a delta against; None for the base.
    """

    path: Path
    manifest: Manifest
    parent: str | None


class Description(NamedTuple):
    """What is needed of an object most often.

    Attributes:
        parent: Hash of the object that it is a delta against; None for the base.
        num_bytes: Its size.
        num_dense_bytes: Bytes of the files of the checkpoint.
        left_out: Files of its folder that are not stored.
    """

    parent: str | None
    num_bytes: int
    num_dense_bytes: int
    left_out: tuple[str, ...]


class Objects:
    """The objects in a folder.

    Args:
        folder: The folder of the store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._described: dict[tuple[str | int, ...], Description] = {}  # by hash and file

    def hashes(self) -> list[str]:
        """Hashes of all objects, in order."""
        paths = (self.folder / "objects").glob("*.delta")
        return sorted(
            path.stem
            for path in paths
            if HASH.fullmatch(path.stem) and (path.is_symlink() or not path.is_dir())
        )

    def path(self, hash: str) -> Path:
        """Where an object is."""
        return self.folder / id_of(hash)

    def open(self, hash: str) -> DeltaFile:
        """Open an object.

        Raises:
            DeltaError: It is missing or damaged, or holds another checkpoint.
        """
        delta = DeltaFile(self.path(hash))
        if (found := _hash_of(delta.manifest)) != hash:
            delta.close()
            raise DeltaError(
                f"{delta.path}: it holds the checkpoint {found}: the store is damaged; remove the "
                "file and add its checkpoint again"
            )
        return delta

    def describe(self, hash: str) -> Description:
        """Read what an object is, unless it was read before and is the same file.

        Raises:
            DeltaError: It is missing or damaged.
        """
        try:
            key: tuple[str | int, ...] = (hash, *identity_of(self.path(hash).stat()))
        except OSError:
            key = (hash,)
        if key in self._described:
            return self._described[key]
        with self.open(hash) as delta:
            manifest = delta.manifest
            description = Description(
                parent_of(manifest), delta.num_bytes, manifest.num_bytes, manifest.left_out
            )
        if len(key) > 1:
            self._described[key] = description
        return description

    def chain(self, hash: str) -> list[str]:
        """Hashes of the objects that make one of the base, in the order in which they are applied.

        Raises:
            DeltaError: One is missing or damaged.
        """
        chain: list[str] = []
        parent: str | None = hash
        while parent is not None:
            if len(chain) == MAX_CHAIN:
                raise DeltaError(f"{self.path(hash)}: more than {MAX_CHAIN} deltas from the base")
            chain.append(parent)
            parent = self.describe(parent).parent
        return chain[::-1]

    @contextmanager
    def opened_chain(self, hash: str) -> Iterator[tuple[DeltaFile, ...]]:
        """Open the objects of `chain`.

        Raises:
            DeltaError: One is missing or damaged.
        """
        with ExitStack() as stack:
            yield tuple(stack.enter_context(self.open(each)) for each in self.chain(hash))

    def decode(
        self,
        hash: str,
        base: Checkpoint,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Decode an object and check every hash.

        Raises:
            DeltaError: Something is missing or damaged, or the base is another one.
        """
        with self.opened_chain(hash) as chain:
            replay = Replay(base, chain)
            for file in replay.manifest.files:
                write_file(replay, file, None, threads=threads, progress=progress)

    @contextmanager
    def opened_parent(
        self,
        parent: str | None,
        base: Checkpoint,
        scratch: Path,
        decoded: AnyPath | None = None,
        threads: int | None = None,
    ) -> Iterator[tuple[Checkpoint, Path | None]]:
        """The checkpoint that a delta is made against, and the object that it comes of.

        Args:
            parent: Hash of the object; None for the base.
            base: The base.
            scratch: A folder to write the checkpoint to.
            decoded: A folder whose files are used instead, where they have the right hash.
            threads: Tensors or chunks decoded at the same time; by default one for each core.
        """
        if parent is None:
            yield base, None
            return
        with self.opened_chain(parent) as chain:
            replay, folder = Replay(base, chain), scratch / parent
            for file in replay.manifest.files:
                path = folder / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                if decoded is not None and _is_linked(Path(decoded, file.path), path, file.hash):
                    continue
                with path.open("xb") as target:
                    write_file(replay, file, target, threads=threads)
        with open_checkpoint(folder) as checkpoint:
            checkpoint.id = id_of(parent)
            yield checkpoint, self.path(parent)

    def num_deltas(self, hash: str) -> int:
        """Deltas from the base to an object; 0 if one of them is missing or damaged."""
        try:
            return len(self.chain(hash))
        except DeltaError:
            return 0

    def place(self, made: Sequence[Candidate]) -> str:
        """Make the smallest of some deltas, all of one checkpoint, an object, unless there is one.

        Returns:
            Hash of the object.

        Raises:
            DeltaError: What they are deltas against is no longer there, or they are of different
                checkpoints.
        """
        hash, *others = {_hash_of(each.manifest) for each in made}
        if others:
            raise DeltaError(
                f"{made[0].manifest.result.id} changed while it was read: add it again when "
                "nothing writes to it"
            )
        if self.num_deltas(hash):
            return hash
        usable = [
            each
            for each in made
            if each.parent is None or 0 < self.num_deltas(each.parent) < MAX_CHAIN
        ]
        if not usable:
            raise DeltaError(f"{self.folder}: {made[0].parent} was removed meanwhile: add again")
        target = self.path(hash)
        if target.exists():  # damaged: no chain that it is part of becomes longer
            usable = [each for each in usable if each.parent is None] or usable
        best = min(usable, key=lambda each: each.path.stat().st_size)
        target.parent.mkdir(exist_ok=True)
        best.path.replace(target)
        return hash


def _is_linked(source: Path, target: Path, hash: str) -> bool:
    """Link to a file, if it has a hash and links can be made."""
    if not source.is_file() or hash_of_file(source) != hash:
        return False
    try:
        target.symlink_to(source.absolute())
    except OSError:
        return False
    return True


def id_of(hash: str) -> str:
    """How the manifest of an object names the object that it is a delta against."""
    return f"objects/{hash}.delta"


def parent_of(manifest: Manifest) -> str | None:
    """Hash of the object that a delta is made against; None for the base of the store."""
    hash = manifest.base.id.removeprefix("objects/").removesuffix(".delta")
    return hash if HASH.fullmatch(hash) and manifest.base.id == id_of(hash) else None


def _hash_of(manifest: Manifest) -> str:
    """Hash of all files: that of the tensors alone would not tell two configs apart."""
    hasher = xxhash.xxh3_128()
    for path, digest in sorted((file.path, file.hash) for file in manifest.files):
        hasher.update(f"{path}\0{digest}\n".encode())
    return hasher.hexdigest()
