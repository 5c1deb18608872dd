"""What a publisher measures of every version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trimtab.words import one_line


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

    version: int
    step: int | None
    num_changed: int
    num_elements: int
    num_bytes: int
    num_dense_bytes: int
    seconds: Mapping[str, float]

    def __repr__(self) -> str:
        return one_line(
            self,
            f"version {self.version}: {self.num_changed:,} of {self.num_elements:,} elements "
            f"changed, {self.num_bytes:,} bytes of {self.num_dense_bytes:,}",
        )
