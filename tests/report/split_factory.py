"""Split masks as they come out, with chosen figures."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.masks.split import Part, Split
from trimtab.results.records import CheckpointRecord, MaskRecord

BASE = CheckpointRecord("base", None, None, 2, 10_000, {"BF16": 10_000}, "b" * 32)


def make_split(
    ids: Sequence[str | None] = ("runs/math", "runs/code"),
    *,
    matched: bool = False,
    num_own: int = 500,
    base_differs: tuple[str, ...] = (),
) -> Split:
    """Two masks of 2,000 and 4,000 of 10,000 elements."""
    parts = (
        Part("p/core", None, 1500, 800.4, 1450.0 if matched else None),
        Part("p/own-1-math", 0, num_own, 1200.0, 0.0 if matched else None),
        Part("p/own-2-code", 1, 2500, 0.0, 3000.0 if matched else None),
    )
    masks = tuple(
        MaskRecord(id, digit * 32, 2, 10_000, num, 2 if matched else 0, {"steps": []})
        for id, digit, num in zip(ids, "12", (2000, 4000), strict=True)
    )
    provenance = {"trimtab_version": "0.1.0", "command": None, "date": "2026-11-21"}
    return Split(10_000, masks, parts, BASE if matched else None, base_differs, provenance)
