"""A model in memory that follows a published training run, between its generations."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from trimtab.checkpoints.tensors import hash_of
from trimtab.deltas.manifest import Manifest
from trimtab.errors import SettingsError, TrimtabError
from trimtab.inputs import AnyPath
from trimtab.results.records import content_hash
from trimtab.sync.follower import Follower, Start, Update
from trimtab.sync.places import Place
from trimtab.training.deltas.live import stored_tensors
from trimtab.training.deltas.loading import prepare_delta


class Turns:
    """A lock that two threads get in turn: whoever waits for it is next.

    A thread that has it may take it again. (With `threading.RLock`, a loop that takes the lock
    again as soon as it gave it back may never let another thread in.)
    """

    def __init__(self) -> None:
        self._next, self._lock = threading.Lock(), threading.Lock()
        self._owner, self._depth = 0, 0

    @property
    def is_mine(self) -> bool:
        """Whether this thread has it."""
        return self._owner == threading.get_ident()

    def __enter__(self) -> Self:
        if not self.is_mine:
            with self._next:
                self._lock.acquire()
            self._owner = threading.get_ident()
        self._depth += 1
        return self

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = 0
            self._lock.release()


class ModelHolder:
    """A model, or a `state_dict`, whose weights follow a run."""

    def __init__(
        self,
        model: nn.Module | Mapping[str, Tensor],
        base: AnyPath | None = None,
        *,
        threads: int | None = None,
        lock: Turns | None = None,
        changed: Callable[[Collection[str]], None] = lambda names: None,
    ) -> None:
        """Set the model; nothing is read.

        Args:
            model: The model, or tensors with the names that files have.
            base: The checkpoint that the run began with, if it is here.
            threads: Tensors or chunks decoded at the same time; by default one for each core.
            lock: Held while the weights change; whoever uses the model holds it meanwhile.
            changed: Called with the names of the tensors that changed, while the lock is held.
        """
        self._model, self._base, self._threads = model, base, threads
        self._lock = Turns() if lock is None else lock
        self._changed = changed

    @property
    def has_base(self) -> bool:
        """Whether version 0 is at hand."""
        return self._base is not None

    def content_hash(self) -> str | None:
        """Of the weights, as in `CheckpointRecord`."""
        tensors = stored_tensors(self._model).tensors.values()
        return content_hash(
            sorted((t.name, t.dtype.name, t.shape, hash_of(t.read())) for t in tensors)
        )

    def apply(self, deltas: Sequence[Path], start: Start, seconds: dict[str, float]) -> Manifest:
        """Decode deltas while the model is in use; change it when the lock is free.

        Args:
            deltas: Files in the order in which they are applied.
            start: What they are applied to.
            seconds: Gets `decode`, `pause` (until the lock was free) and `apply`.

        Raises:
            DeltaError: They cannot be applied; the weights are as they were.
        """
        base = self._base if start == "base" else None
        prepared = prepare_delta(self._model, deltas, base=base, threads=self._threads)
        seconds["decode"] = prepared.decode_seconds
        started = time.monotonic()
        with self._lock:
            seconds["pause"] = time.monotonic() - started
            seconds["apply"] = prepared.commit(threads=self._threads).apply_seconds
            self._changed(prepared.changes.keys())
        return prepared.manifest


class DeltaFollower(Follower):
    """A model in memory that takes over the weights of a training run, version by version.

    The run is published by a `DeltaPublisher` in another process, perhaps on another machine. Every
    version is decoded and checked while the model is in use, and applied in place between two
    generations, bit for bit or not at all::

        with DeltaFollower(model, "s3://bucket/run").start() as follower:
            while True:
                with follower.lock:
                    model.generate(...)
                print(follower.version)

    Without `start`, call `update()` where it suits.

    Attributes:
        lock: A context manager; weights, `version` and `content_hash` change only while nobody
            else holds it.
        changed: Names of the tensors that the last update changed, as in files.
        last: The last `Update`: versions, bytes, and seconds by stage; None before the first.
        error: What the last look at the place failed with; None if it did not. After `start` there
            is another look soon.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, Tensor],
        place: AnyPath | Place,
        *,
        base: AnyPath | None = None,
        name: str | None = None,
        scratch: AnyPath | None = None,
        threads: int | None = None,
    ) -> None:
        """Set up; nothing is read yet.

        Args:
            model: The model, on any device, in the dtypes of the run. Its weights are those of a
                version; or any, if the base is given, or was published. Or a `state_dict` with the
                names that files have.
            place: Where the run is published: a folder, a URL of an object store, or an open place.
            base: The checkpoint that the run began with, if it is on disk here.
            name: Of this follower, unlike that of any other; by default one is made of the names of
                host and process, and the acknowledgement is removed at the end.
            scratch: Folder for files that were fetched, until they are applied; by default that of
                the system.
            threads: Tensors or chunks decoded at the same time; by default one for each core.

        Raises:
            SettingsError: The name cannot be one of a file.
            SyncError: No such place can be opened.
        """
        self.lock = Turns()
        self.last: Update | None = None
        self.error: TrimtabError | OSError | None = None
        self.changed: tuple[str, ...] = ()
        holder = ModelHolder(model, base, threads=threads, lock=self.lock, changed=self._switch)
        super().__init__(place, holder, name=name, scratch=scratch)
        self._busy = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def update(self, version: int | None = None) -> Update | None:
        """Bring the model to a version now, if it has another one, when the lock is free.

        Args:
            version: By default the newest.

        Returns:
            What was done; None if there was nothing to do, or nothing is published yet.

        Raises:
            DeltaError: The deltas cannot be applied to this model; it is as it was.
            SettingsError: `start` is in effect, and this thread holds the lock.
            SyncError: The place cannot be read, what lies there is damaged, or it lacks the
                version.
        """
        if self._thread is not None and self.lock.is_mine:
            raise SettingsError(
                "update() waits for the thread of start(): call it without the lock"
            )
        with self._busy:
            try:
                update = super().update(version)
            except (TrimtabError, OSError) as error:
                self.error = error
                raise
            self.error = None
            if update is not None:
                self.last = update
            return update

    def start(self, poll: float = 1.0) -> Self:
        """Look for new versions in a thread, and apply each one when the lock is free.

        An error (a place that cannot be reached, a file that is not whole) is in `error` until the
        next look that succeeds.

        Args:
            poll: Seconds between two looks; after an error they become more, at most a minute.

        Raises:
            SettingsError: It was started before, or `poll` is not above 0.
        """
        if self._thread is not None:
            raise SettingsError("the follower was started before: stop() it first")
        if not poll > 0:
            raise SettingsError(f"poll is {poll}, expected seconds above 0")
        self._stopping.clear()
        self._thread = threading.Thread(
            target=self._look, args=(poll,), name=f"trimtab-follow-{self.name}", daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread, without holding the lock; a version that it is applying is applied."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def close(self) -> None:
        """`stop`, and remove the acknowledgement, unless the follower was given a name."""
        self.stop()
        super().close()

    def _switch(self, names: Collection[str]) -> None:
        """The weights are those of the version that was coming; the lock is held."""
        assert self._coming is not None
        self.changed = tuple(names)
        self._version, self._hash = self._coming, self._coming.content_hash

    def _look(self, poll: float) -> None:
        for _ in self.updates(poll=poll, warn=lambda error: None, stop=self._stopping):
            pass
