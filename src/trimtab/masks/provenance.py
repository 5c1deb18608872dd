"""How a mask was made: its steps, the first step first, each with the digests of what it used.

A mask that was made from several others has in `made_from` what the provenance of each was, by
digest, and that of those that they were made from: side by side, so that the masks of a long loop
are not nested in each other, and one that was used twice is there once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import MaskError
from trimtab.masks.packed import PackedMask
from trimtab.results.records import made_now

__all__ = [
    "plain_provenance",
    "provenance_from",
    "provenance_of",
    "provenance_with",
    "provenances_by_digest",
]


def provenance_of(steps: list[Any]) -> dict[str, Any]:
    """The provenance of a mask made just now."""
    return made_now(steps=steps)


def provenance_with(before: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a mask made just now by one step from another mask.

    Args:
        before: Of the other mask.
        step: What was done to it.
    """
    return {**before, **provenance_of([*before.get("steps", ()), dict(step)])}


def provenance_from(masks: Sequence[PackedMask], step: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a mask made just now by one step from several others.

    Args:
        masks: The others; the step has their digests in `of`, in this order.
        step: What was done with them.
    """
    of_all = {**step, "of": [mask.digest for mask in masks]}
    return {**provenance_of([of_all]), "made_from": provenances_by_digest(masks)}


def provenances_by_digest(masks: Sequence[PackedMask]) -> dict[str, Any]:
    """The provenance of each of some masks, and of those that they were made from, by digest."""
    made_from: dict[str, Any] = {}
    for mask in masks:
        provenance = dict(mask.provenance)
        before = provenance.pop("made_from", {})
        # What is there already stays: then no mask is ever said to be made from itself.
        for digest, of in before.items() if isinstance(before, dict) else ():
            made_from.setdefault(digest, of)
        made_from.setdefault(mask.digest, provenance)
    return made_from


def plain_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a provenance as JSON has it, so that no later change can reach it.

    Raises:
        MaskError: It cannot be stored.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(provenance), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise MaskError(f"the provenance cannot be stored as JSON: {error}") from None
    steps = plain.get("steps", [])
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise MaskError("the provenance has steps that are not a list of objects")
    return plain
