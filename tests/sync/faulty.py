"""A place that fails, at random from a seed: for tests of what is published and followed there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from time import sleep

from trimtab.errors import SyncError
from trimtab.sync.places import Place

FAULTS = {
    "error": "a request fails, and nothing was done",
    "unanswered": "a request fails, and all was done",
    "lost": "what is put is never there, or what is removed stays",
    "late": "what is put or removed is so some requests later, after others that came later",
    "again": "what is put comes once more, some requests later",
    "cut": "what is put is there by half",
    "hidden": "what is there is not found",
    "stale": "what was there before is read",
    "flipped": "a bit of what is fetched is wrong",
}


class InjectedError(SyncError):
    """A request failed on purpose."""


class FaultyPlace:
    """A place beside another one, which it uses, with faults.

    Args:
        place: The place.
        seed: Of the faults.
        faults: Which there are, of `FAULTS`.
        rate: Probability of each kind, for each request that can have it.
        whole: Names of files that are never put by half.
        delay: Longest sleep of a request, in seconds.
    """

    def __init__(
        self,
        place: Place,
        seed: int,
        faults: Collection[str] = FAULTS,
        *,
        rate: float = 0.05,
        whole: Collection[str] = ("chain.json",),
        delay: float = 0.0,
    ) -> None:
        assert set(faults) <= set(FAULTS)
        self.place, self.faults, self.rate, self.whole, self.delay = (
            *(place, faults, rate, whole, delay),
        )
        self.counts: Counter[str] = Counter()
        self._random = Random(seed)
        self._clock = 0
        self._late: list[tuple[int, str, bytes | None]] = []
        self._read: dict[str, bytes | None] = {}

    def __str__(self) -> str:
        return str(self.place)

    def read(self, name: str, limit: int) -> bytes | None:
        with self._request():
            if self._has("hidden"):
                return None
            if name in self._read and self._has("stale"):
                return self._read[name]
            self._read[name] = self.place.read(name, limit)
            return self._read[name]

    def fetch(self, name: str, target: Path, num_bytes: int) -> bool:
        with self._request():
            if self._has("hidden"):
                return False
            found = self.place.fetch(name, target, num_bytes)
        if found and num_bytes and self._has("flipped"):
            content = bytearray(target.read_bytes())
            content[self._random.randrange(num_bytes)] ^= 1 << self._random.randrange(8)
            target.write_bytes(content)
        return found

    def put(self, name: str, content: bytes | Path) -> None:
        data = content if isinstance(content, bytes) else content.read_bytes()
        with self._request():
            if self._has("lost"):
                return
            if self._has("late"):
                self._later(name, data, 6)
                return
            if self._has("again"):
                self._later(name, data, 20)
            if name not in self.whole and data and self._has("cut"):
                data = data[: self._random.randrange(len(data))]
            self.place.put(name, data)

    def claim(self, name: str, content: bytes) -> bool:
        with self._request():
            return self.place.claim(name, content)

    def names(self, folder: str = "") -> Iterator[str]:
        with self._request():
            names = list(self.place.names(folder))
        yield from (name for name in names if not self._has("hidden"))

    def remove(self, name: str) -> None:
        with self._request():
            if self._has("lost"):
                return
            if self._has("late"):
                self._later(name, None, 6)
                return
            self.place.remove(name)

    def heal(self) -> None:
        """Bring what is late, and have no faults from now on."""
        self._arrive(len(self._late))
        self.faults = ()

    def _has(self, fault: str) -> bool:
        if fault not in self.faults or self._random.random() >= self.rate:
            return False
        self.counts[fault] += 1
        return True

    def _later(self, name: str, content: bytes | None, most: int) -> None:
        self._late.append((self._clock + self._random.randint(1, most), name, content))

    def _arrive(self, num: int) -> None:
        self._late.sort(key=lambda late: late[0])
        arrived, self._late = self._late[:num], self._late[num:]
        for _, name, content in arrived:
            if content is None:
                self.place.remove(name)
            else:
                self.place.put(name, content)

    @contextmanager
    def _request(self) -> Iterator[None]:
        self._clock += 1
        self._arrive(sum(due <= self._clock for due, _, _ in self._late))
        if self.delay:
            sleep(self._random.random() * self.delay)
        if self._has("error"):
            raise InjectedError(f"{self}: refused on purpose")
        yield
        if self._has("unanswered"):
            raise InjectedError(f"{self}: no answer on purpose")
