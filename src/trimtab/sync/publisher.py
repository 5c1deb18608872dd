"""Publish a training run: each version as what it changes in the one before."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Self

from trimtab.checkpoints.align import match_names
from trimtab.checkpoints.checkpoint import Checkpoint, open_checkpoint
from trimtab.checkpoints.tensors import hash_of_file
from trimtab.deltas.chain import Replay, opened_chain
from trimtab.deltas.make import write_delta
from trimtab.deltas.manifest import Manifest
from trimtab.deltas.source import (
    NOTHING,
    Source,
    Weights,
    chunks_of,
    hash_of_chunks,
    source_of,
)
from trimtab.deltas.workers import Workers
from trimtab.elements.dtypes import DTYPES, Bits, DType
from trimtab.errors import SettingsError, SyncError
from trimtab.inputs import AnyPath
from trimtab.results.records import CheckpointRecord, made_now, record_of
from trimtab.sync.chain import (
    CHAIN,
    FORMAT,
    VERSION,
    Chain,
    Link,
    Version,
    at_place,
    read_chain,
)
from trimtab.sync.follower import Acknowledgement, fetch
from trimtab.sync.followers import Followers
from trimtab.sync.places import Place
from trimtab.sync.published import Published, SyncLog
from trimtab.sync.snapshot import AllChanges, DecodedTensor, Snapshot, frozen
from trimtab.words import one_line

MOST_KEPT = 1000
"""A follower that is so many versions behind is given up: its links may be removed."""


class _Pending(NamedTuple):
    """A version that is being published."""

    number: int
    step: int | None
    changes: AllChanges
    source: Source
    seconds: dict[str, float]


class Publisher:
    """Publishes the versions of one run at a place, for any number of followers.

    It keeps a copy of the version that it published last. `publish` finds what changed against it,
    and returns; a thread encodes and stores that meanwhile. The copy moves to the new version only
    when that is published, so a failure loses nothing: the next version contains its changes.

    A new publisher at the same place adds versions to those that are there. One that is still alive
    then stops with an error before it would publish.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        place: AnyPath | Place,
        base: AnyPath | None = None,
        *,
        anchor_every: int = 16,
        fold_every: int = 4,
        keep: int = 8,
        max_rank: int = 0,
        threads: int | None = 1,
    ) -> None:
        """Set up; nothing is read or written before the first version is given.

        Args:
            place: A folder, a URL of an object store, or an open place.
            base: The checkpoint that training begins with, a folder, a file or a hub id, if
                followers have it: they begin with it too. Without it the first version is published
                whole.
            anchor_every: Each so many versions one is published as a link from version 0, too, for
                followers that join or restart. 0 for never.
            fold_every: Each so many versions one is published as a link from the version so many
                before, too, for followers that fell behind. Memory for the changes of so many
                versions is used. 0 for never.
            keep: Links to the newest so many versions are kept although no follower needs them.
            max_rank: As in `trimtab.make_delta`.
            threads: Tensors or chunks encoded at the same time; None for one for each core.

        Raises:
            SettingsError: A number is out of range.
        """
        for name, value, least in (
            ("anchor_every", anchor_every, 0),
            ("fold_every", fold_every, 0),
            ("keep", keep, 1),
        ):
            if value < least:
                raise SettingsError(f"{name} is {value}, expected {least} or more")
        self.place = at_place(place)
        self._base_path = base
        self._anchor_every, self._fold_every, self._keep = anchor_every, fold_every, keep
        self._coding: dict[str, Any] = {"max_rank": max_rank, "threads": threads}
        self._threads = threads
        self._writer = secrets.token_hex(16)
        self._scratch = tempfile.TemporaryDirectory(prefix="trimtab-publish-")
        self._executor = ThreadPoolExecutor(1, "trimtab-publish")
        self._future: Future[Published] | None = None
        self._chain: Chain | None = None
        self._is_certain = True  # whether the place has `_chain`, and not the one after it
        self._unsettled: tuple[_Pending, Chain, Manifest] | None = None
        self._held: Snapshot | None = None
        self._retired: list[str] = []
        self._base: Checkpoint | None = None
        self._published: list[Published] = []
        self._followers = Followers(self.place)
        self._settings = {
            "anchor_every": anchor_every,
            "fold_every": fold_every,
            "keep": keep,
            **self._coding,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        at = "nothing yet" if self._chain is None else f"version {self._chain.newest.number}"
        return one_line(self, f"{self.place}: {at}")

    @property
    def version(self) -> int | None:
        """The newest version at the place; None before the first."""
        return None if self._chain is None else self._chain.newest.number

    @property
    def published(self) -> tuple[Published, ...]:
        """The versions that this publisher published."""
        return tuple(self._published)

    def publish(self, tuned: AnyPath | Source, *, step: int | None = None) -> int:
        """Publish the weights as they are now, in the background.

        The first call also publishes version 0, or continues the run that is at the place.

        Args:
            tuned: A checkpoint, or tensors that can be read. They have the same names, dtypes and
                shapes each time, and are read before this returns.
            step: Step of the trainer.

        Returns:
            The number of the version; that of the last one if nothing changed.

        Raises:
            SyncError: The tensors are others than before; or the version before could not be
                published: its changes are part of the next one.
        """
        if isinstance(tuned, str | os.PathLike):
            with open_checkpoint(tuned) as checkpoint:
                return self.publish(source_of(checkpoint), step=step)
        source, waited = tuned, self.wait()
        if self._chain is None:
            self._start(source)
        self._settle()
        started = time.monotonic()
        assert self._chain is not None
        self._snapshot.check(source)
        changes = self._snapshot.changes_to(source, self._threads)
        seconds = {"wait": waited, "diff": time.monotonic() - started}
        newest = self._chain.newest
        if not any(each.places.size for each in changes.values()):
            return newest.number
        pending = _Pending(newest.number + 1, step, changes, frozen(source), seconds)
        self._future = self._executor.submit(self._send, pending)
        return pending.number

    def wait(self) -> float:
        """Wait until the last version is published.

        Returns:
            Seconds that it took.

        Raises:
            SyncError: It could not be published. Its changes are part of the next one.
            OSError: Likewise.
        """
        started = time.monotonic()
        future, self._future = self._future, None
        if future is not None:
            self._published.append(future.result())
        return time.monotonic() - started

    def acknowledged(self) -> tuple[Acknowledgement, ...]:
        """The versions that followers of this run have."""
        return self._followers.acknowledged(None if self._chain is None else self._chain.run)

    def log(self) -> SyncLog:
        """What was measured, to be saved and drawn by `trimtab report`.

        Raises:
            SyncError: Nothing was published yet.
        """
        if self._chain is None:
            raise SyncError(f"{self.place}: nothing was published yet")
        self.acknowledged()
        return SyncLog(
            base=self._chain.base,
            place=str(self.place),
            versions=self.published,
            followed=self._followers.followed,
            provenance=made_now(settings=self._settings),
        )

    def wait_for(
        self, followers: int | Collection[str], *, behind: int = 0, timeout: float = 600.0
    ) -> float:
        """Wait until followers have the newest version.

        Args:
            followers: How many, or the names of those that must.
            behind: Versions that they may be behind.
            timeout: Seconds.

        Returns:
            Seconds that it took.

        Raises:
            SyncError: They have it not in time; the message says which version who has.
        """
        self.wait()
        if self._chain is None:
            raise SyncError(f"{self.place}: nothing was published yet")
        least = self._chain.newest.number - behind
        return self._followers.wait_for(self._chain.run, least, followers, timeout)

    def close(self) -> None:
        """Wait for the last version, and end.

        Raises:
            SyncError: As of `wait`.
        """
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            if self._base is not None:
                self._base.close()
            self._scratch.cleanup()

    # Version 0, or the newest one that is there.

    def _start(self, source: Source) -> None:
        if self._base_path is not None and self._base is None:
            self._base = open_checkpoint(self._base_path)
        chain = read_chain(self.place)
        if chain is None:
            self._begin(source)
        else:
            self._continue(chain, source)

    def _begin(self, source: Source) -> None:
        """Publish version 0."""
        links: tuple[Link, ...] = ()
        if self._base is None:
            self._hold({n: (tensor.dtype, tensor.read()) for n, tensor in source.tensors.items()})
            self._keep_files(source)
            whole = replace(frozen(source), tensors=self._snapshot.before())
            manifest, link = self._write(NOTHING, whole, None, 0)
            self.place.put(link.name, self._file(link.name))
            record, links = manifest.result, (link,)
        else:
            self._hold(self._base_tensors(source))
            record = self._record_of_base()
        first = Version(0, record.content_hash, None, 0)
        run = secrets.token_hex(16)
        chain = Chain(FORMAT, VERSION, run, self._writer, record, (first,), links)
        if not self.place.claim(CHAIN, chain.to_json()):
            raise SyncError(
                f"{self.place}: another publisher began a run there at the same time: publish one "
                "run at a place"
            )
        self._chain = chain

    def _continue(self, chain: Chain, source: Source) -> None:
        """Take over a run, and hold its newest version."""
        if (
            self._base is not None
            and self._record_of_base().content_hash != chain.base.content_hash
        ):
            raise SyncError(
                f"{self.place}: a run of {chain.base.id} is there, with other weights than "
                f"{self._base.id}: publish to another place"
            )
        newest = chain.newest
        starts = {None} if self._base is None else {None, 0}
        path = chain.route(starts, newest.number)
        if path is None:
            raise SyncError(
                f"{self.place}: no links lead to version {newest.number}, the newest: give the "
                f"base {chain.base.id}, or publish to another place"
            )
        if not path:
            self._hold(self._base_tensors(source))
        else:
            files = [fetch(self.place, link, Path(self._scratch.name)) for link in path]
            base = NOTHING if self._base is None or path[0].base is None else self._base
            with opened_chain(files) as deltas, Workers(self._threads) as workers:
                replay = Replay(base, deltas)
                entries = replay.manifest.tensors
                decoded = workers.in_order(entries, replay.tensor, lambda entry: entry.num_bytes)
                pairs = zip(entries, decoded, strict=True)
                self._hold({e.name: (DTYPES[e.dtype], bits) for e, bits in pairs})
            found = replay.manifest.result.content_hash
            if found != newest.content_hash:
                raise SyncError(
                    f"{self.place}: its links lead to contents {found}, and version "
                    f"{newest.number} has {newest.content_hash}: publish to another place"
                )
            for file in files:
                file.unlink()
        if self._base is None:
            self._keep_files(source)
        self._put(replace(chain, writer=self._writer))

    def _base_tensors(self, source: Source) -> dict[str, tuple[DType, Bits]]:
        """The tensors of the base by the names that a source has for them."""
        assert self._base is not None
        stored = {
            its_name: self._base.tensors[self._base.tied.get(name, name)]
            for name, its_name in match_names(self._base, source).items()
        }
        for name, tensor in source.tensors.items():
            base = stored.get(name)
            if base is None or (base.dtype, base.shape) != (tensor.dtype, tensor.shape):
                found = "none" if base is None else f"{base.dtype.name} {list(base.shape)}"
                raise SyncError(
                    f"{name} is {tensor.dtype.name} {list(tensor.shape)} in the model, and in its "
                    f"base {self._base.id}: {found}; load the model in the dtypes of its files "
                    "(dtype='auto'), or publish without a base"
                )
        return {name: (t.dtype, stored[name].read()) for name, t in source.tensors.items()}

    def _record_of_base(self) -> CheckpointRecord:
        assert self._base is not None
        tensors = self._base.tensors
        hashes = (hash_of_chunks(chunks_of(t, prod(t.shape))) for t in tensors.values())
        return record_of(self._base, dict(zip(tensors, hashes, strict=True)))

    def _hold(self, tensors: Mapping[str, tuple[DType, Bits]]) -> None:
        """Make these the copy of the last version."""
        self._held = Snapshot(tensors, self._fold_every)

    @property
    def _snapshot(self) -> Snapshot:
        assert self._held is not None  # from the first version on
        return self._held

    @property
    def _folder(self) -> Path:
        """Where the files beside the weights of version 0 are."""
        if self._base is not None:
            return self._base.folder
        folder = Path(self._scratch.name, "files")
        folder.mkdir(exist_ok=True)
        return folder

    def _keep_files(self, source: Source) -> None:
        for name, read in source.others.items():
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(read())

    # One version after the other.

    def _send(self, pending: _Pending) -> Published:
        """Encode a version, store it, and add it to the list."""
        chain, number = self._chain, pending.number
        assert chain is not None
        started = time.monotonic()
        source = replace(pending.source, tensors=self._snapshot.after(pending.changes))
        if number == 1 and self._base is not None:  # which may have other names
            manifest, link = self._write(self._base, source, 0, 1)
        else:
            manifest, link = self._write(self._before(source), source, number - 1, number)
        pending.seconds["encode"] = time.monotonic() - started
        version = Version(number, manifest.result.content_hash, pending.step, manifest.num_changed)
        started = time.monotonic()
        self.place.put(link.name, self._file(link.name))
        self._ensure_mine()
        following = replace(chain, versions=(*chain.versions, version), links=(*chain.links, link))
        self._unsettled = pending, following, manifest
        self._put(following)
        self._unsettled = None
        self._snapshot.advance(pending.changes)
        self._file(link.name).unlink()
        pending.seconds["publish"] = time.monotonic() - started
        started = time.monotonic()
        self._add_shortcuts(source, number)
        pending.seconds["extra"] = time.monotonic() - started
        return Published(
            version=number,
            step=pending.step,
            num_changed=manifest.num_changed,
            num_elements=manifest.num_elements,
            num_bytes=link.num_bytes,
            num_dense_bytes=self._snapshot.num_bytes,
            seconds=pending.seconds,
        )

    def _settle(self) -> None:
        """Find out whether a version whose list could not be stored is there all the same."""
        if self._unsettled is None:
            return
        pending, following, _ = self._unsettled
        there = read_chain(self.place)
        if there is not None and there.newest == following.newest:
            self._chain = there
            self._snapshot.advance(pending.changes)
        self._unsettled = None
        self._ensure_mine()

    def _add_shortcuts(self, source: Source, number: int) -> None:
        """Publish the newest version by other ways too, and remove what nobody needs."""
        assert self._chain is not None
        links: list[Link] = []
        source = replace(source, tensors=self._snapshot.before())
        every = self._fold_every
        if every > 1 and number % every == 0 and self._snapshot.depth == every < number:
            before = self._before(source, every)
            links.append(self._write(before, source, number - every, number)[1])
        if self._anchor_every and number % self._anchor_every == 0:
            with self._first() as first:
                links.append(self._write(first, source, 0, number)[1])
        for link in links:
            self.place.put(link.name, self._file(link.name))
            self._file(link.name).unlink()
        needed = self._needed((*self._chain.links, *links))
        chain = replace(
            self._chain,
            links=needed,
            versions=tuple(
                version
                for version in self._chain.versions
                if version.number in _ends(needed) or version.number >= number - self._keep
            ),
        )
        if chain == self._chain:
            return
        gone = {link.name for link in self._chain.links} - {link.name for link in needed}
        self._ensure_mine()
        self._put(chain)
        # A follower may be reading what is no longer listed: it has until the next time.
        retired, self._retired = self._retired, sorted(gone)
        for name in retired:
            self.place.remove(name)

    def _needed(self, links: tuple[Link, ...]) -> tuple[Link, ...]:
        """Links that a follower may take to the newest version."""
        assert self._chain is not None
        chain = replace(self._chain, links=links)
        newest = chain.newest.number
        needed: set[Link] = {link for link in links if link.version > newest - self._keep}
        known = [each.version for each in self.acknowledged()]
        starts = {number for number in known if newest - MOST_KEPT <= number < newest}
        for start in (*starts, 0, None):
            needed.update(chain.route({start}, newest) or ())
        return tuple(link for link in links if link in needed)

    def _before(self, source: Source, num: int = 0) -> Weights:
        """The copy as the base of a delta, or the version so many before it."""
        assert self._chain is not None
        base = self._chain.base
        tensors = self._snapshot.before(num)
        return Weights(base.id, tensors, source.tied, self._folder, base.architecture)

    @contextmanager
    def _first(self) -> Iterator[Checkpoint | Weights]:
        """Version 0."""
        assert self._chain is not None
        if self._base is not None:
            yield self._base
            return
        link = next(link for link in self._chain.links if link.base is None and link.version == 0)
        if not (file := self._file(link.name)).exists():  # a run that was taken over
            fetch(self.place, link, file.parent)
        with opened_chain([file]) as deltas:
            replay = Replay(NOTHING, deltas)
            tensors = {
                entry.name: DecodedTensor(replay, entry) for entry in replay.manifest.tensors
            }
            base = self._chain.base
            yield Weights(base.id, tensors, {}, self._folder, base.architecture)

    def _write(
        self, base: Checkpoint | Weights, source: Source, start: int | None, number: int
    ) -> tuple[Manifest, Link]:
        """Write the file of a link to the scratch folder."""
        unique = self._writer[:8]
        at = "" if start is None or start == number - 1 else f"{start:06}-"
        name = f"v{at}{number:06}-{unique}.delta"
        path = self._file(name)
        path.unlink(missing_ok=True)
        manifest = write_delta(base, source, path, **self._coding)
        digest = hash_of_file(path)
        return manifest, Link(start, number, name, path.stat().st_size, digest)

    def _file(self, name: str) -> Path:
        return Path(self._scratch.name, name)

    def _put(self, chain: Chain) -> None:
        self.place.put(CHAIN, chain.to_json())
        self._chain = chain

    def _ensure_mine(self) -> None:
        """Stop if another publisher took over."""
        there = read_chain(self.place)
        if there is None or there.writer != self._writer:
            raise SyncError(
                f"{self.place}: "
                + (
                    "its list of versions is gone"
                    if there is None
                    else "another publisher took over"
                )
                + ": publish one run at a place, by one trainer"
            )


def _ends(links: tuple[Link, ...]) -> set[int]:
    return {number for link in links for number in (link.base, link.version) if number is not None}
