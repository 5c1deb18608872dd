"""What was measured of a published run: its versions, and how followers came to have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from trimtab.results.records import CheckpointRecord
from trimtab.results.result import Result
from trimtab.results.schema import Amount, Count, Provenance
from trimtab.words import one_line, plural


@dataclass(frozen=True)
class Published:
    """A version that was published.

    Attributes:
        version: Its number.
        step: Step of the trainer, if that was given.
        num_changed: Elements that differ from the version before.
        num_elements: Elements in all.
        num_bytes: Bytes of the link from the version before.
        num_dense_bytes: Bytes of all tensors.
        seconds: Stage -> seconds: `wait` for the version before, and `diff`, both of which the
            trainer waits for; `encode` and `publish`, which happen meanwhile; and `extra` for
            folded links and anchors.
    """

    version: Count
    step: Count | None
    num_changed: Count
    num_elements: Count
    num_bytes: Count
    num_dense_bytes: Count
    seconds: Mapping[str, Amount]

    def __repr__(self) -> str:
        return one_line(
            self,
            f"version {self.version}: {self.num_changed:,} of {self.num_elements:,} elements "
            f"changed, {self.num_bytes:,} bytes of {self.num_dense_bytes:,}",
        )


@dataclass(frozen=True)
class Followed:
    """A version that a follower acknowledged.

    Attributes:
        follower: Its name.
        version: The number of the version.
        num_bytes: Bytes that it fetched for it.
        seconds: Stage -> seconds: `fetch`, `decode`, `pause`, `apply`, `resume`.
    """

    follower: str
    version: Count
    num_bytes: Count
    seconds: Mapping[str, Amount]

    def __repr__(self) -> str:
        return one_line(self, f"{self.follower}: version {self.version}")


@dataclass(frozen=True)
class Served:
    """A version that an engine served.

    Attributes:
        version: Its number.
        is_proven: Whether what it multiplies by had the hashes of the version: see `prove`.
        num_right: Questions that it answered right.
        num_asked: Questions.
    """

    version: Count
    is_proven: bool
    num_right: Count
    num_asked: Count

    def __repr__(self) -> str:
        proven = "proven" if self.is_proven else "NOT PROVEN"
        return one_line(self, f"version {self.version}: {proven}")

    def problems(self) -> Iterator[str]:
        """What no engine answers."""
        if self.num_right > self.num_asked:
            yield f"{self.num_right} of {self.num_asked} are right"


@dataclass(frozen=True)
class SyncLog(Result):
    """What a publisher measured of its run.

    Attributes:
        base: Version 0.
        place: Where the run was published.
        versions: Those that it published, in order.
        followed: What followers acknowledged, as far as the publisher saw it: it looks whenever it
            publishes, and while it waits for them.
        provenance: Version, date and settings.
        served: What an engine served, if somebody looked.
    """

    PLAIN: ClassVar = ("base", "place", "versions", "followed", "provenance", "served?")

    FORMAT: ClassVar[str] = "trimtab.sync"
    NAME: ClassVar[str] = "log of a published run"
    COMMAND: ClassVar[str] = "trimtab sync publish"
    ROWS: ClassVar[str] = "versions"

    base: CheckpointRecord
    place: str
    versions: tuple[Published, ...]
    followed: tuple[Followed, ...]
    provenance: Provenance
    served: tuple[Served, ...] = ()

    def __post_init__(self) -> None:
        """Take the lists of a file as what they were."""
        for name in ("versions", "followed", "served"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def __repr__(self) -> str:
        what = plural(len(self.versions), "version")
        if not self.versions:
            return one_line(self, f"{self.place}: {what}")
        return one_line(self, f"{self.place}: {what}, {self.median_bytes:,} bytes each (median)")

    @property
    def median_bytes(self) -> int:
        """Of the links from one version to the next."""
        return int(median(each.num_bytes for each in self.versions)) if self.versions else 0

    def problems(self) -> Iterator[str]:
        """What no log has."""
        for each in self.versions:
            if each.num_changed > each.num_elements:
                yield f"version {each.version} has more changed elements than elements"
