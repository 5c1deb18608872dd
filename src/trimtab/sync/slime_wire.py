"""slime's layout: a folder for each version, which many engines read.

    weight_v000007/   what version 7 changes in version 6: safetensors of XOR and zstd, and an index
    weight_v000016/   an anchor: the whole checkpoint
    trimtab.json      for the publisher alone: what it takes over a run from

The index of a version is put last: without it the version is not there. See
`trimtab.deltas.exchange.slime` for the files. Readers of this layout do not say which version they
have, there are no links over several versions, and a version is known by its number, its tensors by
their checksums.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from trimtab.checkpoints.checkpoint import opened
from trimtab.checkpoints.tensors import HASH, hash_of
from trimtab.deltas.exchange.payloads import Checksum, hasher_of
from trimtab.deltas.exchange.slime import INDEX, open_slime, write_slime, write_slime_anchor
from trimtab.deltas.source import Source, Weights, WeightsFile
from trimtab.elements.dtypes import Bits, DType
from trimtab.errors import CheckpointError, DeltaError, SyncError
from trimtab.inputs import AnyPath
from trimtab.results.records import CheckpointRecord, content_hash
from trimtab.results.schema import Count, to_plain
from trimtab.sync.chain import CHAIN, MAX_FILE_BYTES, MAX_JSON_BYTES, parsed
from trimtab.sync.places import FolderPlace, Place
from trimtab.sync.published import Published
from trimtab.sync.snapshot import HeldTensor
from trimtab.sync.untrusted import NAME
from trimtab.sync.wire import Pending, Wire
from trimtab.words import first_few, one_line

FORMAT, VERSION = "trimtab.slime", 1

STATE = "trimtab.json"


@dataclass(frozen=True)
class SlimeVersion:
    """A version in slime's layout.

    Attributes:
        number: From 0.
        content_hash: As in `CheckpointRecord`.
        is_whole: Whether it is an anchor.
        files: Name in its folder -> bytes.
    """

    number: Count
    content_hash: str
    is_whole: bool
    files: Mapping[str, Count]

    def problems(self) -> Iterator[str]:
        """What no version has."""
        if not HASH.fullmatch(self.content_hash):
            yield "content_hash is not 32 hexadecimal digits"
        if any(not NAME.fullmatch(name) or "/" in name for name in self.files):
            yield "its files have names that no file there has"
        if any(num_bytes > MAX_FILE_BYTES for num_bytes in self.files.values()):
            yield "a file has more bytes than any file"


@dataclass(frozen=True)
class SlimeRun:
    """What `trimtab.json` says.

    Attributes:
        run: Identifies the run; 32 hexadecimal digits.
        writer: Identifies the publisher that may add versions; 32 hexadecimal digits.
        base: Version 0.
        versions: In ascending order, without gaps. The newest is there once its index is.
    """

    format: str
    format_version: Count
    run: str
    writer: str
    base: CheckpointRecord
    versions: tuple[SlimeVersion, ...]

    def __post_init__(self) -> None:
        """Take the list of a file as what it was."""
        object.__setattr__(self, "versions", tuple(self.versions))

    def __repr__(self) -> str:
        return one_line(self, f"version {self.newest} of {self.base.id}")

    @property
    def newest(self) -> int:
        """The newest version."""
        return self.versions[-1].number if self.versions else 0

    @property
    def newest_hash(self) -> str:
        """Its content hash."""
        return self.versions[-1].content_hash if self.versions else self.base.content_hash

    def chain(self) -> tuple[SlimeVersion, ...]:
        """The versions that lead to the newest one: from the newest anchor on, or from the base."""
        at = max((i for i, each in enumerate(self.versions) if each.is_whole), default=0)
        return self.versions[at:]

    def problems(self) -> Iterator[str]:
        """What no such file says."""
        if (self.format, self.format_version) != (FORMAT, VERSION):
            yield f"its format is {self.format!r} {self.format_version}, expected {FORMAT} 1"
        if not (HASH.fullmatch(self.run) and HASH.fullmatch(self.writer)):
            yield "run or writer is not 32 hexadecimal digits"
        numbers = [version.number for version in self.versions]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers)) if numbers else ()):
            yield "versions are not in ascending order, or some are missing"
        elif numbers and not self.chain()[0].is_whole and numbers[0] != 1:
            yield "no version is whole, and they do not begin with the first"


class SlimeWire(Wire):
    """Publishes versions in slime's layout; settings are those of `Publisher`."""

    has_followers = False

    def __init__(
        self,
        place: Place,
        base: AnyPath | None,
        scratch: Path,
        *,
        anchor_every: int,
        keep: int,
        threads: int | None,
        checksum: Checksum,
    ) -> None:
        super().__init__(place, base, scratch, threads)
        hasher_of(checksum)  # BLAKE3 may not be installed
        self._anchor_every, self._keep, self._checksum = anchor_every, keep, checksum
        self._run: SlimeRun | None = None
        self._unsettled: tuple[Pending, SlimeRun] | None = None
        self._hashes: dict[str, str] = {}
        self._names: dict[str, str] = {}  # of a tensor in the source -> in the files
        self._retired: tuple[SlimeVersion, ...] = ()

    @property
    def run(self) -> str | None:
        """Identifies the run; None before `start`."""
        return None if self._run is None else self._run.run

    @property
    def version(self) -> int | None:
        """The newest version at the place; None before `start`."""
        return None if self._run is None else self._run.newest

    @property
    def record(self) -> CheckpointRecord:
        """Describes version 0."""
        assert self._run is not None
        return self._run.base

    def _start(self, source: Source) -> None:
        if self.place.read(CHAIN, MAX_JSON_BYTES) is not None:
            raise SyncError(
                f"{self.place}: a run in trimtab's own layout is there: publish to another place"
            )
        self._names = {name: name for name in source.tensors}
        if self._base is not None:
            self._names = self._names_in_base(source)
        run = self._read()
        if run is not None:
            self._continue(run, source)
            return
        for number in (0, 1):
            if self._has_index(number):
                raise SyncError(
                    f"{self.place}: {_folder(number)} of another publisher is there: publish to "
                    "another place"
                )
        self._begin(source)

    def _names_in_base(self, source: Source) -> dict[str, str]:
        """The names that the tensors of a source have in the files of the base."""
        assert self._base is not None
        stored = self._stored_names(source)
        if odd := sorted(self._base.tensors.keys() - stored.values()):
            raise SyncError(
                f"{first_few(odd)}: only in the base {self._base.id}: slime's layout holds the "
                "tensors of the base: publish a model that has them, or publish without a base"
            )
        return stored

    def _begin(self, source: Source) -> None:
        """Publish version 0, unless followers have it."""
        record = None
        if self._base is None:
            self._hold(source, ((n, t.dtype, t.read()) for n, t in source.tensors.items()))
        else:
            self._hold_base(source)
            record = self._record_of_base()
        held = self.snapshot.before()
        self._hash_all()
        versions: tuple[SlimeVersion, ...] = ()
        if record is None:
            record = source.record(self._hashes)
            versions = (self._write_anchor(source, held, 0, record.content_hash),)
        run = SlimeRun(FORMAT, VERSION, secrets.token_hex(16), self._writer, record, versions)
        self._claim(STATE, _to_json(run))
        for version in versions:
            self._put_files(version)
            self._put_index(version)
        self._run = run

    def _continue(self, run: SlimeRun, source: Source) -> None:
        """Take over a run, and hold its newest version."""
        self._check_base(run.base)
        if run.versions and not self._has_index(run.newest):  # whoever wrote it was killed
            run = replace(run, versions=run.versions[:-1])
        names = {stored: name for name, stored in self._names.items()}
        tensors: dict[str, tuple[DType, Bits]] = {}
        chain = run.chain()
        if not chain or not chain[0].is_whole:
            if self._base is None:
                raise SyncError(
                    f"{self.place}: its versions lead from {run.base.id}, with which the run "
                    "began: give that base"
                )
            base = self._base_tensors(source)
            tensors = {self._names[n]: (t.dtype, t.read()) for n, t in base.items()}
        for version in chain:
            self._replay(version, tensors, run.base.id)
        if names.keys() != tensors.keys():
            odd = first_few(sorted(names.keys() ^ tensors.keys()))
            raise SyncError(
                f"{self.place}: {odd} are in the run there or in the model only: publish another "
                "model to another place"
            )
        self._hold(source, ((names[name], *each) for name, each in tensors.items()))
        held = self.snapshot.before()
        self._hash_all()
        found = content_hash(
            sorted((t.name, t.dtype.name, t.shape, self._hashes[t.name]) for t in held.values())
        )
        if run.versions and found != run.newest_hash:
            raise SyncError(
                f"{self.place}: its versions lead to contents {found}, and version {run.newest} "
                f"has {run.newest_hash}: publish to another place"
            )
        self._put_run(replace(run, writer=self._writer))

    def _replay(
        self, version: SlimeVersion, tensors: dict[str, tuple[DType, Bits]], base: str
    ) -> None:
        """Turn the tensors of the version before into those of a version."""
        folder = self._scratch / _folder(version.number)
        folder.mkdir()
        try:
            for name, num_bytes in version.files.items():
                if not self.place.fetch(f"{folder.name}/{name}", folder / name, num_bytes):
                    raise SyncError(
                        f"{self.place}: {folder.name}/{name} is not there: publish to another place"
                    )
            if version.is_whole:
                tensors.clear()
                with opened(folder) as (checkpoint,):
                    for name, stored in checkpoint.tensors.items():
                        tensors[name] = stored.dtype, stored.read()
                return
            held = {name: HeldTensor(name, *each) for name, each in tensors.items()}
            before = Weights(base, held, {}, folder)
            with open_slime(before, folder, base_version=version.number - 1) as delta:
                for name, bits in delta:
                    tensors[name] = tensors[name][0], bits
        except (CheckpointError, DeltaError) as error:
            raise SyncError(
                f"{self.place}: it is damaged: publish to another place: {error}"
            ) from None
        finally:
            shutil.rmtree(folder)

    def send(self, pending: Pending) -> Published:
        """Encode a version and publish it; only then the copy moves to it."""
        run, number, changes = self._run, pending.number, pending.changes
        assert run is not None
        started = time.monotonic()
        after = self.snapshot.after(changes)
        moved = [name for name, each in changes.items() if each.places.size]
        hashes = self._hashes | {name: hash_of(after[name].read()) for name in moved}
        content = pending.source.record(hashes).content_hash
        if self._anchor_every and number % self._anchor_every == 0:
            version = self._write_anchor(pending.source, after, number, content)
        else:
            version = self._write_delta(after, moved, number, content)
        pending.seconds["encode"] = time.monotonic() - started
        started = time.monotonic()
        self._put_files(version)
        self._ensure_mine()
        following = replace(run, versions=(*run.versions, version))
        self._unsettled = pending, following
        self._put_run(following)
        self._put_index(version)
        self._unsettled = None
        self.snapshot.advance(changes)
        self._hashes = hashes
        shutil.rmtree(self._scratch / _folder(number))
        pending.seconds["publish"] = time.monotonic() - started
        started = time.monotonic()
        self._prune()
        pending.seconds["extra"] = time.monotonic() - started
        return Published(
            version=number,
            step=pending.step,
            num_changed=sum(each.places.size for each in changes.values()),
            num_elements=sum(tensor.bits.size for tensor in after.values()),
            num_bytes=sum(version.files.values()),
            num_dense_bytes=self.snapshot.num_bytes,
            seconds=pending.seconds,
        )

    def settle(self) -> None:
        """Find out whether a version that could not be published is there all the same."""
        if self._unsettled is None:
            return
        pending, following = self._unsettled
        self._ensure_mine()
        if self._read() == following and self._has_index(pending.number):
            self._run = following
            self.snapshot.advance(pending.changes)
            self._hash_all()
        else:
            self._run = replace(following, versions=following.versions[:-1])
        self._unsettled = None

    def _hash_all(self) -> None:
        held = self.snapshot.before()
        self._hashes = {name: hash_of(tensor.read()) for name, tensor in held.items()}

    def _write_delta(
        self, after: Mapping[str, HeldTensor], moved: list[str], number: int, content: str
    ) -> SlimeVersion:
        """Write what changed to the scratch folder."""
        before = self.snapshot.before()
        ours, theirs = (
            Weights(
                _folder(number - 1 + i),
                {self._names[n]: tensors[n]._replace(name=self._names[n]) for n in moved},
                {},
                self._scratch,
            )
            for i, tensors in enumerate((before, after))
        )
        folder = self._fresh(number)
        write_slime(
            ours,
            theirs,
            folder,
            checksum=self._checksum,
            version=number,
            base_version=number - 1,
        )
        return SlimeVersion(number, content, False, _sizes(folder))

    def _write_anchor(
        self, source: Source, held: Mapping[str, HeldTensor], number: int, content: str
    ) -> SlimeVersion:
        """Write a whole checkpoint to the scratch folder."""
        names = self._names
        tensors = {names[n]: tensor._replace(name=names[n]) for n, tensor in held.items()}
        weights = {
            path: WeightsFile(b"", tuple(names[name] for name in file.tensors))
            for path, file in source.weights.items()
        }
        others = {name: read for name, read in source.others.items() if NAME.fullmatch(name)}
        folder = self._fresh(number)
        whole = replace(source, tensors=tensors, weights=weights, others=others)
        write_slime_anchor(whole, folder, checksum=self._checksum, version=number)
        return SlimeVersion(number, content, True, _sizes(folder))

    def _fresh(self, number: int) -> Path:
        """The scratch folder of a version, of which nothing is there."""
        folder = self._scratch / _folder(number)
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _put_files(self, version: SlimeVersion) -> None:
        """Store the files of a version, without its index: nobody reads them yet."""
        folder = _folder(version.number)
        for name in version.files:
            if name != INDEX:
                self.place.put(f"{folder}/{name}", self._scratch / folder / name)

    def _put_index(self, version: SlimeVersion) -> None:
        name = f"{_folder(version.number)}/{INDEX}"
        self.place.put(name, self._scratch / name)

    def _has_index(self, number: int) -> bool:
        return self.place.read(f"{_folder(number)}/{INDEX}", MAX_JSON_BYTES) is not None

    def _prune(self) -> None:
        """Remove versions that are old, and from which nothing leads to the newest one."""
        run = self._run
        assert run is not None
        least = min(run.newest - self._keep + 1, run.chain()[0].number)
        old = tuple(each for each in run.versions if each.number < least)
        if not old:
            return
        # A reader may be at it: it has until the next time.
        self._put_run(replace(run, versions=run.versions[len(old) :]))
        retired, self._retired = self._retired, old
        for version in retired:
            folder = _folder(version.number)
            for name in sorted(version.files, key=lambda name: name != INDEX):
                self.place.remove(f"{folder}/{name}")
            if isinstance(self.place, FolderPlace):
                with suppress(OSError):
                    (self.place.folder / folder).rmdir()

    def _read(self) -> SlimeRun | None:
        """What the publisher before wrote; None without one."""
        content = self.place.read(STATE, MAX_JSON_BYTES)
        if content is None:
            return None
        found: SlimeRun = parsed(SlimeRun, content, f"{self.place}: {STATE}")
        return found

    def _put_run(self, run: SlimeRun) -> None:
        self.place.put(STATE, _to_json(run))
        self._run = run

    def _ensure_mine(self) -> None:
        """Stop if another publisher took over."""
        there = self._read()
        self._check_writer(None if there is None else there.writer, "its trimtab.json")


def _folder(number: int) -> str:
    return f"weight_v{number:06}"


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _to_json(run: SlimeRun) -> bytes:
    return (json.dumps(to_plain(run), indent=1, allow_nan=False) + "\n").encode()
