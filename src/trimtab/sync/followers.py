"""What a publisher sees of the followers of its run."""

from __future__ import annotations

import time
from collections.abc import Collection

from trimtab.errors import SyncError
from trimtab.sync.follower import Acknowledgement, acknowledgements
from trimtab.sync.places import Place
from trimtab.sync.published import Followed
from trimtab.words import first_few


class Followers:
    """The followers at a place; remembers every acknowledgement that it saw.

    Args:
        place: The place.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._seen: dict[tuple[str, int], Followed] = {}

    @property
    def followed(self) -> tuple[Followed, ...]:
        """What was acknowledged so far, by name and version."""
        return tuple(self._seen[key] for key in sorted(self._seen))

    def acknowledged(self, run: str | None) -> tuple[Acknowledgement, ...]:
        """The versions that the followers of a run have now."""
        there = tuple(each for each in acknowledgements(self._place) if each.run == run)
        for each in there:
            self._seen[each.name, each.version] = Followed(
                each.name, each.version, each.num_bytes, each.seconds
            )
        return there

    def wait_for(
        self, run: str, version: int, followers: int | Collection[str], timeout: float
    ) -> float:
        """Wait until followers have a version, or a higher one.

        Args:
            run: The run.
            version: The version.
            followers: How many, or their names.
            timeout: Seconds.

        Returns:
            Seconds that it took.

        Raises:
            SyncError: They do not have it in time; the message says which versions they have.
        """
        started, pause = time.monotonic(), 0.01
        while True:
            there = self.acknowledged(run)
            ready = {each.name for each in there if each.version >= version}
            if isinstance(followers, int):
                missing = followers - len(ready)
            else:
                missing = len({*followers} - ready)
            waited = time.monotonic() - started
            if missing <= 0:
                return waited
            if waited > timeout:
                have = first_few([f"{each.name} has {each.version}" for each in there])
                raise SyncError(
                    f"{self._place}: after {timeout:g} s version {version} is missing from "
                    f"{missing} of the followers ({have or 'none was ever here'}): start them, or "
                    "look why they stopped"
                )
            time.sleep(pause)
            pause = min(2 * pause, 1.0)
