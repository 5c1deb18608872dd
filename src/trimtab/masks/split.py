"""The result of splitting masks into what all have in common and what each has alone.

A `Split` is complete in itself: tables and reports are drawn from it (or from its JSON, years
later) without opening a mask again. Each part is a mask in a file of its own; how the sizes by
chance come about stands in `trimtab.masks.common_core`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trimtab.masks.identity.result import MaskRecord
from trimtab.results.records import CheckpointRecord
from trimtab.results.schema import Amount, Provenance, from_plain, to_plain
from trimtab.words import one_line, out_of, plural

__all__ = ["FORMAT", "FORMAT_VERSION", "Part", "Split"]

FORMAT = "trimtab.split"
FORMAT_VERSION = 1
"""History: 1, the first."""


@dataclass(frozen=True)
class Part:
    """The common core, or the own part of one mask.

    Attributes:
        file: Where it was written.
        mask: Place of the mask that it is the own part of, from 0; None for the core.
        num_selected: Elements in it.
        chance: Elements that would be in it by chance, for masks that have as many of each tensor.
        matched_chance: The same for as many of each tensor × exponent bin of the base; None if it
            was not given.
    """

    PLAIN: ClassVar = (
        *("file", "mask", "num_selected", "chance", "matched_chance"),
        *("share?=_of_the_split", "lift?=_of_the_split", "matched_lift?=_of_the_split"),
    )
    _of_the_split: ClassVar = None  # the split says them of its parts

    file: str
    mask: int | None
    num_selected: int
    chance: Amount
    matched_chance: Amount | None = None

    @property
    def lift(self) -> float | None:
        """How many times as many elements as by chance; None if there would be none."""
        return self.num_selected / self.chance if self.chance else None

    @property
    def matched_lift(self) -> float | None:
        """The same over `matched_chance`."""
        return self.num_selected / self.matched_chance if self.matched_chance else None


@dataclass(frozen=True, eq=False)
class Split:
    """Several masks, split.

    Attributes:
        num_elements: Elements of the tensors of all masks.
        masks: What was split.
        parts: The core, then the own part of each mask.
        base: The checkpoint whose weights are matched by magnitude, or None.
        base_differs: Tensors for which the masks do not agree what they were made against.
        provenance: trimtab version, command, date.
    """

    num_elements: int
    masks: tuple[MaskRecord, ...]
    parts: tuple[Part, ...]
    base: CheckpointRecord | None
    base_differs: tuple[str, ...]
    provenance: Provenance = field(default_factory=dict)

    def __repr__(self) -> str:
        core = out_of(self.core.num_selected, self.num_elements, "element")
        return one_line(self, f"{plural(len(self.masks), 'mask')}, {core} in all of them")

    @property
    def core(self) -> Part:
        """What all masks select."""
        return self.parts[0]

    def whole(self, part: Part) -> int:
        """Elements that a part is a share of: of its mask, or for the core of the smallest one."""
        num_selected = [mask.num_selected for mask in self.masks]
        return min(num_selected) if part.mask is None else num_selected[part.mask]

    def share(self, part: Part) -> float | None:
        """A part as a share of `whole`; None if that is empty."""
        whole = self.whole(part)
        return part.num_selected / whole if whole else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, in the format of the docs page "Formats"."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **to_plain(self)}

    def plain_parts(self) -> list[dict[str, Any]]:
        """The parts with what is derived of them."""
        derived = (
            {"share": self.share(part), "lift": part.lift, "matched_lift": part.matched_lift}
            for part in self.parts
        )
        return [to_plain(part) | of for part, of in zip(self.parts, derived, strict=True)]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Split:
        """The inverse of `to_dict`; what is derived is derived again.

        Raises:
            ResultFormatError: The data is no split, of another version, or damaged.
        """
        return from_plain(
            cls,
            data,
            what="split",
            format=FORMAT,
            version=FORMAT_VERSION,
            command="trimtab mask share",
        )

    def problems(self) -> Iterator[str]:
        """What `write_parts` does not make."""
        if [part.mask for part in self.parts] != [None, *range(len(self.masks))]:
            yield "its parts are not a core and an own part of each mask"
        elif len(self.masks) < 2:
            yield "it is not of several masks"
        else:
            for place, part in enumerate(self.parts):
                if not 0 <= part.num_selected <= self.whole(part) <= self.num_elements:
                    yield f"parts[{place}] has {part.num_selected} of {self.whole(part)} elements"
                if (part.matched_chance is None) != (self.base is None):
                    yield f"parts[{place}] and the base do not agree on magnitudes"
