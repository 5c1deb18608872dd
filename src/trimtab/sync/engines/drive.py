"""Drive a vLLM server through the versions of a run, with a pause only while its weights change."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from trimtab.errors import SyncError, TrimtabError
from trimtab.inputs import AnyPath
from trimtab.sync.chain import at_place, read_chain
from trimtab.sync.engines.control import EngineControl, Pause, absolute
from trimtab.sync.follower import repeatedly
from trimtab.sync.places import Place
from trimtab.words import one_line


@dataclass(frozen=True)
class Driven:
    """A version that a server was brought to.

    Attributes:
        version: Its number.
        seconds: Stage -> seconds: `prepare` (it fetched and decoded while it generated), `pause`
            (until it stood still), `apply`, and `resume`.
    """

    version: int
    seconds: Mapping[str, float]

    def __repr__(self) -> str:
        return one_line(self, f"version {self.version}")

    @property
    def seconds_paused(self) -> float:
        """How long the server started nothing new."""
        return sum(self.seconds[stage] for stage in ("pause", "apply", "resume"))


class EngineDriver:
    """Brings a vLLM server to each new version of a run.

    The server fetches and decodes while it generates; then it is paused, changed, and goes on. If
    the change fails, it goes on with the weights of before. If these are lost too, it stays paused
    until an update succeeds, so nothing is ever served of weights that are not those of a version.
    """

    def __init__(
        self,
        engine: str | EngineControl,
        place: AnyPath,
        *,
        base: AnyPath | None = None,
        name: str | None = None,
        mode: Pause = "wait",
    ) -> None:
        """Set up; nothing is sent yet.

        Args:
            engine: URL of the server.
            place: A folder, or a URL of an object store; the server reads it, too.
            base: The checkpoint that the run began with; by default the model of the server.
            name: Of the follower, unlike that of any other.
            mode: What a pause does with requests that are in progress: `wait` for their end,
                `abort` them, or `keep` them, so that they go on with other weights.
        """
        self.server = EngineControl(engine) if isinstance(engine, str) else engine
        self._path = absolute(place)
        self._place: Place = at_place(place)
        self._base, self._name, self._mode = base, name, mode
        self._is_new = True

    def update(self) -> Driven | None:
        """Bring the server to the newest version; None if it has it, or nothing is published.

        Raises:
            SyncError: The server or the place cannot be reached, or the server cannot apply the
                version.
        """
        chain = read_chain(self._place)
        if chain is None:
            return None
        status = self.server.status()
        is_other = self._name is not None and status["name"] != self._name
        if is_other or status["place"] != str(at_place(self._path)):
            self.server.follow(self._path, base=self._base, name=self._name)
            status = self.server.status()
        if self._is_new and status["is_whole"]:
            self.server.resume()  # a driver that was killed may have left it paused
        self._is_new = False
        number = chain.newest.number
        if status["is_whole"] and status["version"] == number:
            return None
        started = time.monotonic()
        self._prepare(number)
        seconds = {"prepare": time.monotonic() - started}
        started = time.monotonic()
        self.server.pause(self._mode)
        seconds["pause"] = time.monotonic() - started
        started = time.monotonic()
        try:
            self.server.update(number)
        except SyncError:
            if self.server.status()["is_whole"]:
                self.server.resume()
            raise
        seconds["apply"] = time.monotonic() - started
        started = time.monotonic()
        self.server.resume()
        seconds["resume"] = time.monotonic() - started
        return Driven(number, seconds)

    def updates(
        self,
        *,
        poll: float = 1.0,
        warn: Callable[[TrimtabError | OSError], None] | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[Driven]:
        """Follow the run: yield every update when it is done.

        Args:
            poll: Seconds between two looks at the place; after an error they become more, at most a
                minute.
            warn: Called with an error, the first time that it happens, instead of raising it.
            stop: Ends it when it is set.
        """
        return repeatedly(self.update, poll=poll, warn=warn, stop=stop)

    def _prepare(self, number: int) -> None:
        """Let the server fetch and decode.

        Raises:
            SyncError: It cannot.
        """
        wait = 0.01
        status = self.server.prepare(number)
        while status["state"] == "preparing":
            time.sleep(wait)
            wait = min(2 * wait, 0.5)
            status = self.server.status()
        if status["error"] is not None:
            raise SyncError(f"{self.server.url}: {status['error']}")
