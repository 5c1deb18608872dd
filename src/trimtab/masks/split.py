"""The result of splitting masks into what all have in common and what each has alone.

A `Split` is complete in itself: tables and reports are drawn from it (or from its JSON, years
later) without opening a mask again. Each part is a mask in a file of its own; how the sizes by
chance come about stands in `trimtab.masks.common_core`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab.checkpoints.record import CheckpointRecord, check_format
from trimtab.errors import ResultFormatError
from trimtab.masks.identity.result import MaskRecord
from trimtab.masks.plain import from_plain, to_plain
from trimtab.words import one_line, out_of, plural

__all__ = ["FORMAT", "FORMAT_VERSION", "Part", "Split"]

FORMAT = "trimtab.split"
FORMAT_VERSION = 1
"""History: 1, the first."""

_DERIVED = ("share", "lift", "matched_lift")
"""What the JSON of a part says beside its fields."""


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

    file: str
    mask: int | None
    num_selected: int
    chance: float
    matched_chance: float | None = None

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
    provenance: Mapping[str, Any] = field(default_factory=dict)

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
        derived = (
            {"share": self.share(part), "lift": part.lift, "matched_lift": part.matched_lift}
            for part in self.parts
        )
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **to_plain(self),
            "parts": [to_plain(part) | of for part, of in zip(self.parts, derived, strict=True)],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Split:
        """The inverse of `to_dict`; what is derived is derived again.

        Raises:
            ResultFormatError: The data is no split, of another version, or damaged.
        """
        check_format(data, FORMAT, FORMAT_VERSION, what="split", command="trimtab mask share")
        fields = {key: data[key] for key in data if key not in ("format", "format_version")}
        try:
            fields["parts"] = [
                {key: part[key] for key in part if key not in _DERIVED} for part in fields["parts"]
            ]
            split = from_plain(cls, fields)
            split._check()
        except (KeyError, TypeError, ValueError) as error:
            raise ResultFormatError(f"damaged split: {error!r} while reading it") from None
        return split

    def _check(self) -> None:
        """Raise ValueError if it is not such as `write_parts` makes it."""
        if [part.mask for part in self.parts] != [None, *range(len(self.masks))]:
            raise ValueError("its parts are not a core and an own part of each mask")
        if len(self.masks) < 2:
            raise ValueError("it is not of several masks")
        for part in self.parts:
            if not 0 <= part.num_selected <= self.whole(part) <= self.num_elements:
                raise ValueError(f"{part.file}: more elements than there are to select")
            if part.chance < 0 or (part.matched_chance or 0) < 0:
                raise ValueError(f"{part.file}: fewer than no elements by chance")
            if (part.matched_chance is None) != (self.base is None):
                raise ValueError(f"{part.file} and the base do not agree on magnitudes")
