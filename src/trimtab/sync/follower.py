"""Follow a published run: fetch what leads to its newest version, and say when it is there."""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self, TypeAlias, TypeVar

from trimtab.checkpoints.tensors import HASH
from trimtab.deltas.file import DeltaFile
from trimtab.deltas.manifest import Manifest
from trimtab.deltas.signature import SUFFIX, verify_signature
from trimtab.errors import DeltaError, SettingsError, SyncError, TrimtabError
from trimtab.inputs import AnyPath
from trimtab.results.schema import Amount, Count, to_plain
from trimtab.sync.chain import NAME, Chain, Link, Version, at_place, parsed, read_chain
from trimtab.sync.fetching import NotThereError, fetch, fetch_masks
from trimtab.sync.places import Place
from trimtab.words import one_line

Done = TypeVar("Done")

FORMAT, VERSION = "trimtab.follower", 1

FOLDER = "followers"

MAX_FOLLOWERS = 1000
"""Acknowledgements that are read."""

MAX_BYTES = 1 << 16
"""Longest acknowledgement."""

MOST_SECONDS = 60.0
"""Longest pause after an error."""


@dataclass(frozen=True)
class Acknowledgement:
    """What a follower says when it has a version.

    Attributes:
        name: Of the follower.
        run: The run that it follows.
        version: The version that it has.
        content_hash: Of the version.
        num_bytes: Bytes that it fetched for it.
        seconds: Stage -> seconds that it took: `fetch`, `decode`, `pause`, `apply`, `resume`.
    """

    format: str
    format_version: Count
    name: str
    run: str
    version: Count
    content_hash: str
    num_bytes: Count
    seconds: Mapping[str, Amount]

    def __repr__(self) -> str:
        return one_line(self, f"{self.name}: version {self.version}")

    def problems(self) -> Iterator[str]:
        """What no follower says."""
        if (self.format, self.format_version) != (FORMAT, VERSION):
            yield f"its format is {self.format!r} {self.format_version}, expected {FORMAT} 1"
        if not NAME.fullmatch(self.name):
            yield f"name is {self.name[:80]!r}, expected letters, digits, and . _ -"
        if not (HASH.fullmatch(self.run) and HASH.fullmatch(self.content_hash)):
            yield "run or content_hash is not 32 hexadecimal digits"


@dataclass(frozen=True)
class Update:
    """A step of a follower to another version.

    Attributes:
        before: The version that it had; None if it was none of the run.
        version: The version that it has now.
        step: Step of the trainer that made it, if that is known.
        links: Names of the files by which it went; none if it had the version.
        num_bytes: Their bytes.
        seconds: As in `Acknowledgement`.
    """

    before: int | None
    version: int
    step: int | None
    links: tuple[str, ...]
    num_bytes: int
    seconds: Mapping[str, float]

    def __repr__(self) -> str:
        came = "nothing" if self.before is None else f"version {self.before}"
        return one_line(self, f"version {self.version} from {came}: {self.num_bytes:,} bytes")


Start: TypeAlias = Literal["own", "base", "nothing"]
"""What deltas are applied to: the weights as they are, version 0 on disk, or nothing at all."""


class Holder(Protocol):
    """Weights that follow a run: a model in memory, a folder, an engine."""

    @property
    def has_base(self) -> bool:
        """Whether version 0 is at hand, whatever the weights are now."""

    def content_hash(self) -> str | None:
        """Of the weights as they are, as in `CheckpointRecord`; None if they are not whole."""

    def apply(self, deltas: Sequence[Path], start: Start, seconds: dict[str, float]) -> Manifest:
        """Make the weights what deltas make of them, wholly or not at all.

        Args:
            deltas: Files in the order in which they are applied; none to become version 0.
            start: What they are applied to.
            seconds: Gets the seconds of the stages `decode`, `pause`, `apply` and `resume`.

        Returns:
            What the last delta says of the result, which was checked.

        Raises:
            DeltaError: They cannot be applied; the weights are as they were.
        """


class Follower:
    """Brings weights to the newest version of a run, again and again.

    Of all ways from what the weights are to the newest version it takes the one of fewest bytes:
    every step between, a folded link, an anchor, or a whole checkpoint. Each file is compared with
    its hash in the list of versions, the weights with what the deltas were made against, and the
    result with what they should make. Files that are missing, cut off, replaced or repeated delay
    it; they never lead to other weights than those of a version.

    Use it as a context manager, or call `close`.

    Attributes:
        place: Where the run is published.
        name: Of this follower.
    """

    def __init__(
        self,
        place: AnyPath | Place,
        holder: Holder,
        *,
        name: str | None = None,
        signers: AnyPath | None = None,
        scratch: AnyPath | None = None,
    ) -> None:
        """Set up; nothing is read yet.

        Args:
            place: A folder, a URL of an object store, or an open place.
            holder: The weights.
            name: Of this follower, unlike that of any other; by default one is made of the names of
                host and process, and the acknowledgement is removed when it is closed.
            signers: Refuse links that are not signed by a key in this file: see
                `trimtab.verify_signature`. Without it, whoever can write at the place decides what
                the weights become.
            scratch: Folder for files that were fetched, until they are applied; by default that of
                the system.

        Raises:
            SettingsError: The name cannot be one of a file.
        """
        if name is not None and not NAME.fullmatch(name):
            raise SettingsError(
                f"name is {name!r}, expected letters, digits, and . _ - (at most 100)"
            )
        self.place = at_place(place)
        self.name = name or _own_name()
        self._is_named = name is not None
        self._holder = holder
        self._signers = signers
        self._scratch = scratch
        self._masks: tempfile.TemporaryDirectory[str] | None = None
        self._hash: str | None = None
        self._is_hashed = False
        self._run: str | None = None
        self._highest = -1
        self._acknowledged: tuple[str, int] | None = None
        self._version: Version | None = None
        self._coming: Version | None = None  # that the holder is to take

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        at = "no version yet" if self._version is None else f"version {self._version.number}"
        return one_line(self, f"{self.name} of {self.place}: {at}")

    @property
    def version(self) -> int | None:
        """The version that the weights have; None before the first is there."""
        return None if self._version is None else self._version.number

    @property
    def content_hash(self) -> str | None:
        """Of the weights, as in `CheckpointRecord`; None before it is known."""
        return self._hash

    def update(self, version: int | None = None) -> Update | None:
        """Bring the weights to a version, if they have another one.

        Args:
            version: By default the newest.

        Returns:
            What was done; None if there was nothing to do, or nothing is published yet.

        Raises:
            DeltaError: The deltas cannot be applied to these weights; these are as they were.
            SyncError: The place cannot be read, what lies there is damaged, or it lacks the
                version.
        """
        damaged: list[Link] = []
        problem: SyncError | None = None
        while True:
            chain = read_chain(self.place)
            if chain is None or self._is_old(chain):
                return None
            for link in damaged:
                chain = chain.without(link)
            try:
                return self._go(chain, version)
            except NotThereError as error:  # it may have left the list since that was read
                damaged.append(error.link)
                problem = error
            except _NoRouteError as error:
                raise problem or error from None

    def wait(
        self, version: int | None = None, *, poll: float = 0.2, timeout: float | None = None
    ) -> int:
        """Update until the weights have a version.

        Args:
            version: The version, or a higher one; by default any.
            poll: Seconds between two looks at the place.
            timeout: Seconds; by default any number.

        Returns:
            The version that they have.

        Raises:
            SyncError: Not in time; or as of `update`, likewise DeltaError.
        """
        ends = None if timeout is None else time.monotonic() + timeout
        while True:
            self.update()
            if self.version is not None and self.version >= (version or 0):
                return self.version
            if ends is not None and time.monotonic() > ends:
                raise SyncError(
                    f"{self.place}: after {timeout:g} s there is no version "
                    f"{'at all' if version is None else version}: start the publisher, or look why "
                    "it stopped"
                )
            time.sleep(poll)

    def updates(
        self,
        *,
        poll: float = 1.0,
        warn: Callable[[TrimtabError | OSError], None] | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[Update]:
        """Follow the run: yield every update when it is done.

        Args:
            poll: Seconds between two looks at the place. After an error they become more, at most
                a minute.
            warn: Called with an error, the first time that it happens, instead of raising it: the
                place may be out of reach for a while. The weights are then as they were.
            stop: Ends it when it is set.
        """
        return repeatedly(self.update, poll=poll, warn=warn, stop=stop)

    def close(self) -> None:
        """Remove the acknowledgement, unless the follower has a name that was given to it."""
        if not self._is_named and self._acknowledged is not None:
            self.place.remove(f"{FOLDER}/{self.name}.json")
            self._acknowledged = None
        if self._masks is not None:
            self._masks.cleanup()
            self._masks = None

    def _is_old(self, chain: Chain) -> bool:
        """Whether a list of versions is older than one that was read before."""
        if chain.run != self._run:
            self._run, self._highest = chain.run, -1
        is_old = chain.newest.number < self._highest
        self._highest = max(self._highest, chain.newest.number)
        return is_old

    def _go(self, chain: Chain, number: int | None) -> Update | None:
        if not self._is_hashed:
            self._hash, self._is_hashed = self._holder.content_hash(), True
        target = chain.newest if number is None else chain.at(number)
        if target is None:
            raise SyncError(
                f"{self.place}: version {number} is not listed: the newest is "
                f"{chain.newest.number}, and of older ones some are no longer there"
            )
        own = chain.known(self._hash)
        if own is not None and own.content_hash == target.content_hash:
            self._arrive(chain, target, 0, {})
            return None
        starts: dict[int | None, Start] = {None: "nothing"}
        if self._holder.has_base:
            starts[0] = "base"
        if own is not None:
            starts[own.number] = "own"
        path = chain.route(starts, target.number)
        if path == () and self._hash is None:  # the base itself, of which there is no copy
            return None
        seconds: dict[str, float] = {}
        try:
            if own is None and not self._holder.has_base and self._hash is not None:
                # Perhaps version 0 under other names: that shows when deltas are applied to it.
                path = self._tried(chain, target, seconds) or path
            if path is None:
                raise _NoRouteError(
                    f"{self.place}: no links lead from the weights of {self.name} to version "
                    f"{target.number}: start it from {chain.base.id}, with which the run began"
                )
            if not seconds:
                start = starts[path[0].base] if path else "base"
                self._take(chain, path, target, start, seconds)
        except DeltaError:
            self._is_hashed = False  # they may have been changed by somebody else
            raise
        self._hash = target.content_hash
        num_bytes = sum(link.num_bytes for link in path)
        self._arrive(chain, target, num_bytes, seconds)
        return Update(
            before=None if own is None else own.number,
            version=target.number,
            step=target.step,
            links=tuple(link.name for link in path),
            num_bytes=num_bytes,
            seconds=seconds,
        )

    def _tried(
        self, chain: Chain, target: Version, seconds: dict[str, float]
    ) -> tuple[Link, ...] | None:
        """The links from version 0, if the weights are that, and took them; else None."""
        path = chain.route({0}, target.number)
        if path:
            with suppress(DeltaError):
                self._take(chain, path, target, "own", seconds)
                return path
            seconds.clear()
        return None

    def _take(
        self,
        chain: Chain,
        path: Sequence[Link],
        target: Version,
        start: Start,
        seconds: dict[str, float],
    ) -> None:
        """Fetch the files of links, and apply them."""
        started, self._coming = time.monotonic(), target
        with tempfile.TemporaryDirectory(prefix="trimtab-fetch-", dir=self._scratch) as folder:
            files = [fetch(self.place, link, Path(folder)) for link in path]
            if self._signers is not None:
                for file in files:
                    self._check_signature(file, self._signers)
            fetch_masks(self.place, chain, path, files, self._mask_folder)
            if files:
                self._check(files[-1], path[-1], target)
            seconds["fetch"] = time.monotonic() - started
            found = self._holder.apply(files, start, seconds).result
        if found.content_hash != target.content_hash:
            raise SyncError(
                f"{self.place}: the base of {self.name} is not the one that the run began with: "
                f"give it {found.id}, unchanged"
            )

    def _check_signature(self, file: Path, signers: AnyPath) -> None:
        content = self.place.read(file.name + SUFFIX, MAX_BYTES)
        if content is None:
            raise SyncError(
                f"{self.place}: {file.name} is not signed: publish with a signing key, or follow "
                "without signers"
            )
        signature = file.with_name(file.name + SUFFIX)
        signature.write_bytes(content)
        verify_signature(file, signers, signature)

    def _mask_folder(self) -> Path:
        """Where masks are kept that were fetched."""
        if self._masks is None:
            self._masks = tempfile.TemporaryDirectory(prefix="trimtab-masks-", dir=self._scratch)
        return Path(self._masks.name)

    def _check(self, file: Path, link: Link, target: Version) -> None:
        """Refuse a file that leads elsewhere than the list of versions says."""
        with DeltaFile(file) as delta:
            found = delta.manifest.result.content_hash
        if found != target.content_hash:
            raise SyncError(
                f"{self.place}: {link.name} makes contents {found}, and version {target.number} "
                f"has {target.content_hash}: the place is damaged; publish the run to another one"
            )

    def _arrive(
        self, chain: Chain, version: Version, num_bytes: int, seconds: Mapping[str, float]
    ) -> None:
        """Acknowledge a version."""
        self._version = version
        if self._acknowledged == (chain.run, version.number):
            return
        said = Acknowledgement(
            format=FORMAT,
            format_version=VERSION,
            name=self.name,
            run=chain.run,
            version=version.number,
            content_hash=version.content_hash,
            num_bytes=num_bytes,
            seconds=dict(seconds),
        )
        content = json.dumps(to_plain(said), indent=1, allow_nan=False) + "\n"
        self.place.put(f"{FOLDER}/{self.name}.json", content.encode())
        self._acknowledged = (chain.run, version.number)


def repeatedly(
    update: Callable[[], Done | None],
    *,
    poll: float,
    warn: Callable[[TrimtabError | OSError], None] | None,
    stop: threading.Event | None = None,
) -> Iterator[Done]:
    """Update again and again, and yield what was done; as `Follower.updates`."""
    stop = stop or threading.Event()
    pause, said = poll, ""
    while not stop.is_set():
        try:
            done = update()
        except (TrimtabError, OSError) as error:
            if warn is None:
                raise
            if str(error) != said:
                warn(error)
            pause, said = min(2 * pause, max(poll, MOST_SECONDS)), str(error)
        else:
            pause, said = poll, ""
            if done is not None:
                yield done
                continue  # there may be more already
        stop.wait(pause)


class _NoRouteError(SyncError):
    """No links lead to a version."""


def acknowledgements(place: Place) -> tuple[Acknowledgement, ...]:
    """What the followers at a place say; files that are damaged are left out."""
    found = []
    names = itertools.islice(place.names(FOLDER), MAX_FOLLOWERS)
    for name in sorted(names):
        with suppress(SyncError):  # of nobody that follows
            content = place.read(f"{FOLDER}/{name}", MAX_BYTES)
            if content is not None:
                found.append(parsed(Acknowledgement, content, name))
    return tuple(each for each in found if isinstance(each, Acknowledgement))


def _own_name() -> str:
    host = re.sub("[^A-Za-z0-9.-]", "-", socket.gethostname())[:60].strip(".-") or "host"
    return f"{host}-{os.getpid()}-{secrets.token_hex(2)}"
