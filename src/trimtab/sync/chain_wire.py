"""trimtab's own layout: a list of versions, and the delta files that lead from one to another."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.tensors import hash_of_file
from trimtab.deltas.apply import files_of
from trimtab.deltas.chain import DecodedTensor, Replay, opened_chain
from trimtab.deltas.make import write_delta
from trimtab.deltas.manifest import Manifest
from trimtab.deltas.masked import mask_file_name
from trimtab.deltas.signature import SUFFIX, sign_delta
from trimtab.deltas.source import NOTHING, Source, Weights
from trimtab.deltas.workers import Workers
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import SyncError
from trimtab.inputs import AnyPath
from trimtab.masks.header import PackedMask
from trimtab.results.records import CheckpointRecord
from trimtab.sync.chain import (
    CHAIN,
    FORMAT,
    MAX_JSON_BYTES,
    VERSION,
    Chain,
    Link,
    MaskFile,
    Version,
    read_chain,
)
from trimtab.sync.fetching import NotThereError, fetch, fetch_route
from trimtab.sync.followers import Followers
from trimtab.sync.places import Place
from trimtab.sync.published import Published
from trimtab.sync.slime_wire import STATE
from trimtab.sync.snapshot import frozen
from trimtab.sync.wire import Pending, Wire

MOST_KEPT = 1000
"""A follower that is so many versions behind is given up: its links may be removed."""

STORED = re.compile(r"v(\d{6,}-)?\d{6,}-[0-9a-f]{8}\.delta")
"""Name of the file of a link."""


class ChainWire(Wire):
    """Publishes links between versions, for a `Follower`; settings are those of `Publisher`."""

    def __init__(
        self,
        place: Place,
        base: AnyPath | None,
        scratch: Path,
        *,
        anchor_every: int,
        fold_every: int,
        keep: int,
        max_rank: int,
        threads: int | None,
        signing_key: AnyPath | None,
        mask: PackedMask | None,
        followers: Followers,
    ) -> None:
        super().__init__(place, base, scratch, threads, depth=fold_every, mask=mask)
        self._anchor_every, self._fold_every, self._keep = anchor_every, fold_every, keep
        self._coding: dict[str, Any] = {"max_rank": max_rank, "threads": threads}
        self._key = signing_key
        self._followers = followers
        self._chain: Chain | None = None
        self._unsettled: tuple[Pending, Chain] | None = None
        self._retired: list[str] = []
        self._copied: int | None = None  # the version of the copy, if not the newest

    @property
    def run(self) -> str | None:
        """Identifies the run; None before `start`."""
        return None if self._chain is None else self._chain.run

    @property
    def version(self) -> int | None:
        """The newest version at the place; None before `start`."""
        return None if self._chain is None else self._chain.newest.number

    @property
    def record(self) -> CheckpointRecord:
        """Describes version 0."""
        assert self._chain is not None
        return self._chain.base

    def _start(self, source: Source) -> None:
        chain = read_chain(self.place)
        if chain is None:
            if self.place.read(STATE, MAX_JSON_BYTES) is not None:
                raise SyncError(
                    f"{self.place}: a run in slime's layout is there: publish to another place"
                )
            self._begin(source)
        else:
            self._continue(chain, source)

    def _begin(self, source: Source) -> None:
        """Publish version 0."""
        links: tuple[Link, ...] = ()
        if self._base is None:
            self._hold(source, ((n, t.dtype, t.read()) for n, t in source.tensors.items()))
            self._keep_files(0, source.others)
            whole = replace(frozen(source), tensors=self.snapshot.before())
            manifest, link = self._write(NOTHING, whole, None, 0)
            self._store(link, keeps=True)
            record, links = manifest.result, (link,)
        else:
            self._hold_base(source)
            record = self._record_of_base()
        first = Version(0, record.content_hash, None, 0)
        run = secrets.token_hex(16)
        masks = self._masks(())
        chain = Chain(FORMAT, VERSION, run, self._writer, record, (first,), links, masks)
        self._claim(CHAIN, chain.to_json())
        self._chain = chain

    def _continue(self, chain: Chain, source: Source) -> None:
        """Take over a run, and hold its newest version."""
        self._check_base(chain.base)
        newest = chain.newest
        starts = {None} if self._base is None else {None, 0}
        self._copied = None
        try:
            route = fetch_route(self.place, chain, starts, newest.number, self._scratch)
        except NotThereError:  # files are lost: the next version is made of version 0
            self._copied = 0
            route = fetch_route(self.place, chain, starts, 0, self._scratch)
            newest = chain.at(0) or newest
        if route is None:
            raise SyncError(
                f"{self.place}: no links lead to version {newest.number}, the newest: give the "
                f"base {chain.base.id}, or publish to another place"
            )
        path, files = route
        if not path:
            self._hold_base(source)
        else:
            base = NOTHING if self._base is None or path[0].base is None else self._base
            with opened_chain(files) as deltas, Workers(self._threads) as workers:
                replay = Replay(base, deltas)
                entries = replay.manifest.tensors
                decoded = workers.in_order(entries, replay.tensor, lambda entry: entry.num_bytes)
                pairs = zip(entries, decoded, strict=True)
                self._hold(source, ((e.name, DTYPES[e.dtype], bits) for e, bits in pairs))
                self._keep_files(newest.number, files_of(replay))
            found = replay.manifest.result.content_hash
            if found != newest.content_hash:
                raise SyncError(
                    f"{self.place}: its links lead to contents {found}, and version "
                    f"{newest.number} has {newest.content_hash}: publish to another place"
                )
            for file in files:
                file.unlink()
        # What a killed publisher stored and did not list.
        self._retired = [name for name in self.place.names() if STORED.fullmatch(name)]
        self._put(replace(chain, writer=self._writer, masks=self._masks(chain.masks)))

    def _masks(self, known: tuple[MaskFile, ...]) -> tuple[MaskFile, ...]:
        """The masks at the place, with that of this publisher, which is stored once."""
        mask = self._mask
        if mask is None or mask.digest in [each.digest for each in known]:
            return known
        assert mask.path is not None  # or it would have been saved
        path = Path(mask.path)
        self.place.put(mask_file_name(mask.digest), path)
        return (*known, MaskFile(mask.digest, path.stat().st_size))

    def send(self, pending: Pending) -> Published:
        """Encode a version, store it, and add it to the list."""
        chain, number = self._chain, pending.number
        assert chain is not None
        started = time.monotonic()
        source = replace(pending.source, tensors=self.snapshot.after(pending.changes))
        held = number - 1 if self._copied is None else self._copied
        if held == 0 and self._base is not None:  # which may have other names
            manifest, link = self._write(self._base, source, 0, number)
        else:
            manifest, link = self._write(self._before(source, held), source, held, number)
        pending.seconds["encode"] = time.monotonic() - started
        version = Version(number, manifest.result.content_hash, pending.step, manifest.num_changed)
        started = time.monotonic()
        self._store(link)
        self._own_chain()
        following = replace(chain, versions=(*chain.versions, version), links=(*chain.links, link))
        self._unsettled = pending, following
        self._put(following)
        self._unsettled = None
        self._advance(pending)
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
            num_dense_bytes=self.snapshot.num_bytes,
            seconds=pending.seconds,
        )

    def settle(self) -> None:
        """Find out whether a version whose list could not be stored is there all the same."""
        if self._unsettled is None:
            return
        pending, following = self._unsettled
        there = self._own_chain()
        if there.newest == following.newest:
            self._chain = there
            self._advance(pending)
        self._unsettled = None

    def _advance(self, pending: Pending) -> None:
        """The copy is now the version that was published."""
        self.snapshot.advance(pending.changes)
        if self._copied is not None:
            self.snapshot.forget()
            self._copied = None
        self._keep_files(pending.number, pending.source.others)

    def _add_shortcuts(self, source: Source, number: int) -> None:
        """Publish the newest version by other ways too, and remove what nobody needs."""
        assert self._chain is not None
        links: list[Link] = []
        source = replace(source, tensors=self.snapshot.before())
        every = self._fold_every
        if every > 1 and number % every == 0 and self.snapshot.depth == every < number:
            before = self._before(source, number - every, every)
            links.append(self._write(before, source, number - every, number)[1])
        if self._anchor_every and number % self._anchor_every == 0:
            with self._first() as first:
                links.append(self._write(first, source, 0, number)[1])
        for link in links:
            self._store(link)
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
        gone = {link.name for link in self._chain.links} - {link.name for link in needed}
        if chain != self._chain:
            self._own_chain()
            self._put(chain)
        # A follower may be reading what is no longer listed: it has until the next time.
        retired = {*self._retired} - gone - {link.name for link in needed}
        self._retired = sorted(gone)
        for name in sorted(retired):
            self.place.remove(name)
            self.place.remove(name + SUFFIX)

    def _needed(self, links: tuple[Link, ...]) -> tuple[Link, ...]:
        """Links that a follower may take to the newest version."""
        assert self._chain is not None
        chain = replace(self._chain, links=links)
        newest = chain.newest.number
        needed: set[Link] = {link for link in links if link.version > newest - self._keep}
        known = [each.version for each in self._followers.acknowledged(self.run)]
        starts = {number for number in known if newest - MOST_KEPT <= number < newest}
        for start in (*starts, 0, None):
            needed.update(chain.route({start}, newest) or ())
        return tuple(link for link in links if link in needed)

    def _before(self, source: Source, number: int, num: int = 0) -> Weights:
        """The version of a number as the base of a delta: the copy, or so many before it."""
        assert self._chain is not None
        base = self._chain.base
        tensors = self.snapshot.before(num)
        return Weights(base.id, tensors, source.tied, self._folder_of(number), base.architecture)

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
            self._keep_files(0, files_of(replay))
            yield Weights(base.id, tensors, {}, self._folder_of(0), base.architecture)

    def _write(
        self, base: Checkpoint | Weights, source: Source, start: int | None, number: int
    ) -> tuple[Manifest, Link]:
        """Write the file of a link to the scratch folder."""
        path = self._file("link")
        path.unlink(missing_ok=True)
        mask = None if base is NOTHING else self._mask
        manifest = write_delta(base, source, path, mask=mask, **self._coding)
        digest = hash_of_file(path)
        # A name never gets another content: what is stored late or twice does no harm.
        at = "" if start is None or start == number - 1 else f"{start:06}-"
        name = f"v{at}{number:06}-{digest[:8]}.delta"
        path.replace(self._file(name))
        return manifest, Link(start, number, name, self._file(name).stat().st_size, digest)

    def _store(self, link: Link, *, keeps: bool = False) -> None:
        """Store the file of a link, after its signature; it is removed again unless it is listed.

        Args:
            link: The link.
            keeps: Keep the file in the scratch folder.
        """
        path = self._file(link.name)
        self._retired.append(link.name)
        try:
            if self._key is not None:
                signature = sign_delta(path, self._key)
                self.place.put(signature.name, signature)
                signature.unlink()
            self.place.put(link.name, path)
        finally:
            if not keeps:
                path.unlink()

    def _file(self, name: str) -> Path:
        return self._scratch / name

    def _put(self, chain: Chain) -> None:
        self.place.put(CHAIN, chain.to_json())
        self._chain = chain

    def _own_chain(self) -> Chain:
        """The list at the place, unless another publisher took over."""
        there = read_chain(self.place)
        self._check_writer(None if there is None else there.writer, "its list of versions")
        assert there is not None
        return there


def _ends(links: tuple[Link, ...]) -> set[int]:
    return {number for link in links for number in (link.base, link.version) if number is not None}
