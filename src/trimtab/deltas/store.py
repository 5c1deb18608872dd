"""A store of many checkpoints tuned from one base: each a delta, and equal ones stored once.

    store.json                what it is, and which base it is for
    objects/HASH.delta        a checkpoint, as a delta against the base or against another object;
                              HASH is xxh3-128 over the paths and hashes of all of its files
    names/NAME.json           the object that a name stands for

An object is written before the name that needs it, and both take their place by a rename, so a
reader needs no lock. Writers of names and `gc` hold `.lock`, for moments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from trimtab import outputs
from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.folder import fetch_the_rest
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import HASH
from trimtab.deltas.apply import verify_delta, write_folder
from trimtab.deltas.chain import Replay
from trimtab.deltas.make import write_delta
from trimtab.deltas.manifest import Manifest
from trimtab.deltas.source import hashes_of, source_of
from trimtab.deltas.store_objects import MAX_CHAIN, Candidate, Objects
from trimtab.elements.update_predictor import MAX_RANK
from trimtab.errors import CheckpointError, DeltaError, ResultFormatError
from trimtab.inputs import AnyPath, read_json
from trimtab.results.records import CheckpointRecord, record_of
from trimtab.results.schema import Count, from_plain, to_plain
from trimtab.words import first_few, one_line, plural

FORMAT, VERSION = "trimtab.store", 1

T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Of a checkpoint in a store; `base` and `auto` mean something else."""

MAX_JSON_BYTES = 1 << 20
"""Longest `store.json` and longest file of a name; both have some hundred bytes."""


@dataclass(frozen=True)
class StoreEntry:
    """A checkpoint in a store.

    Attributes:
        name: Its name.
        hash: xxh3-128 over the paths and hashes of its files: the name of its object.
        num_bytes: Bytes of the object.
        num_dense_bytes: Bytes of the files of the checkpoint.
        against: What the object is a delta against: `base`, the name of a checkpoint of the store,
            or the hash of one whose name was removed.
        num_deltas: Deltas from the base to it.
        date: When it was added.
        left_out: Files of its folder that are not stored.
    """

    name: str
    hash: str
    num_bytes: int
    num_dense_bytes: int
    against: str
    num_deltas: int
    date: str
    left_out: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return one_line(
            self,
            f"{self.name}: {self.num_bytes:,} bytes of {self.num_dense_bytes:,}, against "
            f"{self.against}",
        )


@dataclass(frozen=True)
class _Named:
    """What the file of a name says."""

    hash: str
    date: str

    def problems(self) -> Iterator[str]:
        """What no name can stand for."""
        if not HASH.fullmatch(self.hash):
            yield f"hash is {self.hash!r}, expected 32 hexadecimal digits"


@dataclass(frozen=True)
class _StoreFile:
    """What `store.json` says."""

    format: str
    format_version: Count
    base: CheckpointRecord

    def problems(self) -> Iterator[str]:
        """What no store says."""
        if (self.format, self.format_version) != (FORMAT, VERSION):
            yield f"its format is {self.format!r}, expected {FORMAT!r}"


class Store:
    """A folder of checkpoints that were tuned from one base, each stored as a delta.

    Several processes may add, read and clean up at the same time.

    Attributes:
        folder: Where it is.
        base: The base, which is not copied.
    """

    def __init__(self, folder: AnyPath) -> None:
        """Open a store.

        Raises:
            DeltaError: The folder is no store.
        """
        self.folder = Path(folder)
        path = self.folder / "store.json"
        if not path.is_file():
            raise DeltaError(
                f"{self.folder}: not a store: it has no store.json; `trimtab store init` makes one"
            )
        for name in ("names", "objects"):
            place = self.folder / name
            if place.is_symlink() or (place.exists() and not place.is_dir()):
                # Nothing outside the store is written or removed.
                raise DeltaError(f"{place}: expected a folder, found a link or a file")
        data = _read_json(path)
        found = data.get("format_version") if isinstance(data, Mapping) else None
        if found is not None and found != VERSION:
            raise DeltaError(
                f"{path}: a store of format version {found!r}: this trimtab reads version "
                f"{VERSION}; install a newer one"
            )
        self.base = _parsed(_StoreFile, data, path).base
        self._objects = Objects(self.folder)

    def __repr__(self) -> str:
        return one_line(self, f"{self.folder}: {plural(len(self.names()), 'checkpoint')}")

    @classmethod
    def create(cls, folder: AnyPath, base: AnyPath, *, progress: Progress | None = None) -> Store:
        """Make an empty store.

        Args:
            folder: The folder to make.
            base: The base: a folder, a file, or a hub id. Its place and hashes are recorded.
            progress: Called with bytes done and bytes in all, while the base is hashed.

        Raises:
            CheckpointError: The base cannot be read.
            OutputExistsError: The folder exists.
        """
        outputs.ensure_no_folder(folder)
        with opened(base) as (checkpoint,):
            record = record_of(checkpoint, hashes_of(checkpoint, progress))
        if record.revision is None:
            record = replace(record, id=str(Path(record.id).absolute()))
        with outputs.new_folder(folder) as made:
            for name in ("objects", "names"):
                (made / name).mkdir()
            _write_json(made / "store.json", _StoreFile(FORMAT, VERSION, record))
        return cls(folder)

    def names(self) -> tuple[str, ...]:
        """Names of the checkpoints, in order of the alphabet."""
        paths = (self.folder / "names").glob("*.json")
        return tuple(sorted(path.stem for path in paths if NAME.fullmatch(path.stem)))

    def entries(self) -> tuple[StoreEntry, ...]:
        """The checkpoints, in the order in which they were added.

        Raises:
            DeltaError: An object is missing or damaged.
        """
        named = self._all_named()
        return tuple(self._entry(name, named) for name in named)

    def add(
        self,
        tuned: AnyPath | Checkpoint,
        name: str,
        *,
        against: str = "auto",
        base: AnyPath | None = None,
        carry: Sequence[str] = (),
        max_rank: int = MAX_RANK,
        decoded: AnyPath | None = None,
        verify: bool = False,
        threads: int | None = None,
        force: bool = False,
        command: str | None = None,
        progress: Progress | None = None,
    ) -> StoreEntry:
        """Store a tuned checkpoint under a name.

        A checkpoint of which all files equal those of another in the store shares its object.

        Args:
            tuned: The checkpoint, of safetensors files.
            name: Letters, digits, `.`, `_` and `-`.
            against: `base`; the name of a checkpoint of the store; or `auto` to make a delta
                against the base and one against the newest checkpoint and keep the smaller file.
            base: Where the base is now; by default where it was.
            carry: Patterns of file names to carry that would be left out (`*.pt`, ...).
            max_rank: As in `make_delta`.
            decoded: A folder that may hold the checkpoint `against`: files of it that have the
                right hash need not be decoded.
            verify: Decode what is stored and check every hash before the name is given.
            threads: Tensors or chunks coded at the same time; by default one for each core.
            force: Give the name to this checkpoint although another has it.
            command: The command to record in the provenance.
            progress: Called with bytes done and bytes in all, for each delta that is made.

        Raises:
            CheckpointError: The base or the tuned checkpoint cannot be read.
            DeltaError: The base is not that of the store, or the name cannot be used.
            OutputExistsError: The name is taken and `force` is not set.
        """
        if name in ("base", "auto"):
            raise DeltaError(f"a checkpoint cannot be named {name!r}, which --against understands")
        path = self._name_path(name)
        outputs.ensure_free(path, force=force)
        with (
            opened(tuned) as (new,),
            self._opened_base(base) as old,
            outputs.scratch_folder(self.folder / "add") as scratch,
        ):
            if new.revision is not None:
                fetch_the_rest(new.id, new.revision)
            source = source_of(new, carry)
            made: list[Candidate] = []
            parents = self._parents(against)
            for parent in parents:
                output = scratch / f"{len(made)}.delta"
                try:
                    with self._objects.opened_parent(parent, old, scratch, decoded, threads) as (
                        before,
                        after,
                    ):
                        manifest = write_delta(
                            before,
                            source,
                            output,
                            after=after,
                            max_rank=max_rank,
                            threads=threads,
                            command=command,
                            progress=progress,
                        )
                        if verify:
                            verify_delta(before, output, threads=threads)
                except DeltaError:
                    if parent is None or self._objects.path(parent).exists():
                        raise
                    continue  # it was removed meanwhile
                if parent is None and manifest.base.content_hash != self.base.content_hash:
                    raise DeltaError(
                        f"{old.id}: its content hash is {manifest.base.content_hash}, and that of "
                        f"the store's base is {self.base.content_hash}: give the base "
                        f"{self.base.id} as it was"
                    )
                made.append(Candidate(output, manifest, parent))
            with self._locked():
                if not made:
                    raise DeltaError(f"{self.folder}: {against} was removed meanwhile: add again")
                hash = self._objects.place(made)
                if verify and all(each.path.exists() for each in made):
                    self._objects.decode(hash, old, threads)  # it was there already
                date = datetime.now(UTC).isoformat(timespec="microseconds")
                _write_json(path, _Named(hash, date), force=force)
                return self._entry(name, self._all_named())

    def checkout(
        self,
        name: str,
        output: AnyPath,
        *,
        base: AnyPath | Checkpoint | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Manifest:
        """Write a checkpoint of the store to a new folder, byte for byte.

        Args:
            name: Its name.
            output: Folder to make.
            base: Where the base is now; by default where it was.
            threads: Tensors or chunks decoded at the same time; by default one for each core.
            progress: Called with bytes done and bytes in all.

        Raises:
            CheckpointError: The base cannot be read.
            DeltaError: There is no such name, the base is another one, or an object is damaged.
            OutputExistsError: The folder exists.
        """
        outputs.ensure_no_folder(output)
        with self._opened_base(base) as checkpoint:

            def write(hash: str) -> Manifest:
                with self._objects.opened_chain(hash) as chain:
                    replay = Replay(checkpoint, chain)
                    write_folder(replay, output, threads=threads, progress=progress)
                    return replay.manifest

            return self._with_object(name, write)

    def manifest(self, name: str) -> Manifest:
        """What a checkpoint of the store is: its files, its tensors and their hashes.

        Raises:
            DeltaError: There is no such name, or its object is missing or damaged.
        """

        def read(hash: str) -> Manifest:
            with self._objects.open(hash) as delta:
                return delta.manifest

        return self._with_object(name, read)

    def verify(
        self,
        *,
        base: AnyPath | Checkpoint | None = None,
        decodes: bool = True,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Check every object.

        Args:
            base: Where the base is now; by default where it was.
            decodes: Decode every checkpoint that a name needs, and check every hash. Otherwise the
                base is not needed, and the parts of the objects are checked for their sizes only.
            threads: Tensors or chunks decoded at the same time; by default one for each core.
            progress: Called with bytes done and bytes in all, for each object.

        Returns:
            Objects checked.

        Raises:
            CheckpointError: The base cannot be read.
            DeltaError: Something is missing or damaged; it says what, and which names need it.
        """
        problems: dict[str, list[str]] = {}
        needed: dict[str, None] = {}
        for name in self.names():
            try:
                needed |= dict.fromkeys(self._hashes_for(name))
            except DeltaError as error:
                problems.setdefault(str(error), []).append(name)
        with ExitStack() as stack:
            old = stack.enter_context(self._opened_base(base)) if decodes and needed else None
            for hash in dict.fromkeys((*needed, *self._objects.hashes())):
                try:
                    if old is None or hash not in needed:
                        self._objects.open(hash).close()
                        continue
                    self._objects.decode(hash, old, threads, progress)
                except DeltaError as error:
                    problems.setdefault(str(error), [])
        if problems:
            texts = [
                f"{text} (needed by {first_few(names)})" if names else text
                for text, names in problems.items()
            ]
            raise DeltaError(first_few(texts, "; "))
        return len({*needed, *self._objects.hashes()})

    def remove(self, name: str) -> None:
        """Remove a name; `gc` removes its object, if nothing else needs it.

        Raises:
            DeltaError: There is no such name.
        """
        with self._locked():
            self._named(name)
            self._name_path(name).unlink()

    def gc(self) -> tuple[int, int]:
        """Remove objects that no name needs, and what killed processes left.

        An object that another needs, which a name needs, is kept, and so is one that is being
        added.

        Returns:
            Objects removed, and their bytes.

        Raises:
            DeltaError: An object that a name needs is missing or damaged; nothing was removed.
        """
        num_objects = num_bytes = 0
        with self._locked():
            needed: set[str] = set()
            for name in self.names():
                needed.update(self._hashes_for(name))
            for hash in self._objects.hashes():
                if hash not in needed:
                    path = self._objects.path(hash)
                    num_bytes += path.lstat().st_size
                    num_objects += 1
                    path.unlink()
            for folder in (self.folder, self.folder / "names"):
                outputs.remove_drafts(folder)
        return num_objects, num_bytes

    def _parents(self, against: str) -> list[str | None]:
        """What to make a delta against: hashes of objects; None for the base."""
        if against == "base":
            return [None]
        if against != "auto":
            hashes = self._hashes_for(against)
            if len(hashes) >= MAX_CHAIN:
                raise DeltaError(
                    f"{self.folder}: {against} is {len(hashes)} deltas from the base, the most "
                    "that there may be: add against the base"
                )
            return hashes[-1:]  # type: ignore[return-value]
        parents: list[str | None] = [None]
        for name in list(self._all_named())[-1:]:
            try:
                if len(hashes := self._hashes_for(name)) < MAX_CHAIN:
                    parents.append(hashes[-1])
            except DeltaError:
                if self._name_path(name).exists():  # else it was removed meanwhile
                    raise
        return parents

    @contextmanager
    def _opened_base(self, base: AnyPath | Checkpoint | None) -> Iterator[Checkpoint]:
        ref: AnyPath | Checkpoint = self.base.id if base is None else base
        if base is None and self.base.revision is not None:
            ref = f"{self.base.id.partition('@')[0]}@{self.base.revision}"
        with ExitStack() as stack:
            try:
                (checkpoint,) = stack.enter_context(opened(ref))
            except CheckpointError as error:
                if base is None:
                    raise CheckpointError(f"{error}; give the store's base with --base") from None
                raise
            if checkpoint.revision is not None:
                fetch_the_rest(checkpoint.id, checkpoint.revision)
            yield checkpoint

    def _with_object(self, name: str, work: Callable[[str], T]) -> T:
        """What a function returns for the hash of the object that a name stands for."""
        while True:
            named = self._named(name)
            try:
                return work(named.hash)
            except DeltaError:
                if self._named(name) == named:  # else it was replaced, and the old one removed
                    raise

    def _hashes_for(self, name: str) -> list[str]:
        """The objects that a name needs, from the base on."""
        return self._with_object(name, self._objects.chain)

    def _entry(self, name: str, named: Mapping[str, _Named]) -> StoreEntry:
        hashes, object = self._with_object(
            name, lambda hash: (self._objects.chain(hash), self._objects.describe(hash))
        )
        names = [other for other, record in named.items() if record.hash == object.parent]
        return StoreEntry(
            name=name,
            hash=hashes[-1],
            num_bytes=object.num_bytes,
            num_dense_bytes=object.num_dense_bytes,
            against="base" if object.parent is None else [*names, object.parent][0],
            num_deltas=len(hashes),
            date=self._named(name).date,
            left_out=object.left_out,
        )

    def _all_named(self) -> dict[str, _Named]:
        """Name -> what its file says, in the order in which they were added."""
        found = {}
        for name in self.names():
            try:
                found[name] = self._named(name)
            except DeltaError:
                if self._name_path(name).exists():  # else it was removed meanwhile
                    raise
        return dict(sorted(found.items(), key=lambda item: item[1].date))

    def _named(self, name: str) -> _Named:
        path = self._name_path(name)
        if not path.exists():
            known = first_few(self.names()) or "nothing"
            raise DeltaError(f"{self.folder}: no checkpoint {name!r}: it has {known}")
        return _parsed(_Named, _read_json(path), path)

    def _name_path(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise DeltaError(
                f"{name!r} cannot be a name in a store: use letters, digits, '.', '_' and '-', at "
                "most 100, and start with a letter or digit"
            )
        path = self.folder / "names" / f"{name}.json"
        if path.is_symlink():
            raise DeltaError(f"{path}: expected a file, found a link: remove it")
        return path

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with outputs.lock(self.folder / ".lock", wait=lambda: True):
                yield
        except OSError as error:
            raise DeltaError(f"{error.filename}: cannot be changed ({error.strerror})") from None


def _read_json(path: Path) -> Any:
    return read_json(path, DeltaError, limit=MAX_JSON_BYTES, strict=True)


def _parsed(kind: Any, data: Any, path: Path) -> Any:
    try:
        return from_plain(kind, data, what="store")
    except ResultFormatError as error:
        raise DeltaError(f"{path}: {error}") from None


def _write_json(path: Path, value: Any, *, force: bool = False) -> None:
    text = json.dumps(to_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    outputs.write_text(path, text, force=force)
