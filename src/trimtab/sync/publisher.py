"""Publish a training run: each version as what it changes in the one before."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Self, get_args

from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.deltas.exchange.payloads import CHECKSUMS, Checksum
from trimtab.deltas.masked import AnyMask, saved_mask
from trimtab.deltas.source import Source, source_of
from trimtab.errors import SettingsError, SyncError
from trimtab.inputs import AnyPath
from trimtab.masks.on_disk import opened_masks
from trimtab.results.records import made_now
from trimtab.sync.chain import at_place
from trimtab.sync.chain_wire import ChainWire
from trimtab.sync.follower import Acknowledgement
from trimtab.sync.followers import Followers
from trimtab.sync.places import Place
from trimtab.sync.published import Published, SyncLog
from trimtab.sync.slime_wire import SlimeWire
from trimtab.sync.snapshot import frozen
from trimtab.sync.wire import Pending, Wire
from trimtab.words import one_line

Layout = Literal["trimtab", "slime"]
"""How versions are written at a place."""


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
        wire: Layout = "trimtab",
        checksum: Checksum = "adler32",
        threads: int | None = 1,
        signing_key: AnyPath | None = None,
        mask: AnyMask | None = None,
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
            wire: `slime` publishes in the layout of slime, which SGLang, miles, ModelExpress and
                CoreWeave read; see `docs/sync.md` for what it cannot have. Anchors are whole
                checkpoints there, and take the place of the delta of their version. `fold_every`
                and `max_rank` have no meaning in it.
            checksum: Of each tensor, in slime's layout: `adler32`, `xxh3-128` or `blake3`.
            threads: Tensors or chunks encoded at the same time; None for one for each core.
            signing_key: A key of OpenSSH with which every link is signed, as in `sign_delta`.
            mask: A mask, or its file, if only its elements are trained: links are coded over them,
                as by `trimtab.make_delta`, and the mask is stored at the place once. With a base,
                the copy of the last version has only these elements, and the others are read from
                the base. Publishing fails if others changed.

        Raises:
            MaskError: The mask is damaged.
            SettingsError: A number is out of range, a layout or checksum is not known, or the
                layout has no signatures and no masks.
            MissingExtraError: BLAKE3 is not installed.
        """
        if wire not in get_args(Layout) or checksum not in CHECKSUMS:
            raise SettingsError(
                f"wire is {wire!r} and checksum {checksum!r}, expected "
                f"{' or '.join(get_args(Layout))}, and {', '.join(CHECKSUMS)}"
            )
        if wire == "slime" and signing_key is not None:
            raise SettingsError("slime's layout has no signatures: leave out the signing key")
        if wire == "slime" and mask is not None:
            raise SettingsError("slime's layout has no masks: leave out the mask")
        for name, value, least in (
            ("anchor_every", anchor_every, 0),
            ("fold_every", fold_every, 0),
            ("keep", keep, 1),
        ):
            if value < least:
                raise SettingsError(f"{name} is {value}, expected {least} or more")
        self.place = at_place(place)
        self._threads = threads
        self._scratch = tempfile.TemporaryDirectory(prefix="trimtab-publish-")
        self._executor = ThreadPoolExecutor(1, "trimtab-publish")
        self._future: Future[Published] | None = None
        self._followers = Followers(self.place)
        self._settings: dict[str, Any] = {
            "anchor_every": anchor_every,
            "keep": keep,
            "threads": threads,
        }
        scratch = Path(self._scratch.name)
        self._files = ExitStack()
        given = [] if mask is None else [saved_mask(mask, scratch)]
        masks = opened_masks(given, self._files)
        self._wire: Wire
        if wire == "slime":
            self._wire = SlimeWire(self.place, base, scratch, checksum=checksum, **self._settings)
            self._settings |= {"wire": wire, "checksum": checksum}
        else:
            self._settings |= {"fold_every": fold_every, "max_rank": max_rank}
            self._wire = ChainWire(
                self.place,
                base,
                scratch,
                signing_key=signing_key,
                mask=masks[0] if masks else None,
                followers=self._followers,
                **self._settings,
            )
        self._published: list[Published] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        at = "nothing yet" if self.version is None else f"version {self.version}"
        return one_line(self, f"{self.place}: {at}")

    @property
    def version(self) -> int | None:
        """The newest version at the place; None before the first."""
        return self._wire.version

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
        wire = self._wire
        if wire.version is None:
            wire.start(source)
        wire.settle()
        started = time.monotonic()
        wire.snapshot.check(source)
        changes = wire.snapshot.changes_to(source, self._threads)
        seconds = {"wait": waited, "diff": time.monotonic() - started}
        newest = wire.version
        assert newest is not None
        if not any(each.places.size for each in changes.values()):
            return newest
        pending = Pending(newest + 1, step, changes, frozen(source), seconds)
        self._future = self._executor.submit(wire.send, pending)
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
        return self._followers.acknowledged(self._wire.run)

    def log(self) -> SyncLog:
        """What was measured, to be saved and drawn by `trimtab report`.

        Raises:
            SyncError: Nothing was published yet.
        """
        self._ensure_started()
        self.acknowledged()
        return SyncLog(
            base=self._wire.record,
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
            SyncError: They have it not in time; the message says which version who has. Or
                followers of this layout do not say which they have.
        """
        self.wait()
        if not self._wire.has_followers:
            raise SyncError(
                f"{self.place}: readers of slime's layout do not say which version they have: ask "
                "the engines"
            )
        run, newest = self._ensure_started()
        return self._followers.wait_for(run, newest - behind, followers, timeout)

    def close(self) -> None:
        """Wait for the last version, and end.

        Raises:
            SyncError: As of `wait`.
        """
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            self._wire.close()
            self._files.close()
            self._scratch.cleanup()

    def _ensure_started(self) -> tuple[str, int]:
        """The run, and its newest version.

        Raises:
            SyncError: Nothing was published yet.
        """
        run, version = self._wire.run, self._wire.version
        if run is None or version is None:
            raise SyncError(f"{self.place}: nothing was published yet")
        return run, version
