"""Which tensor of a mask each tensor of another checkpoint gets its bits from, and how.

Whatever cannot be carried as asked is found here, before a weight or a bit is read, and told at
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from trimtab.checkpoints import parts_of
from trimtab.checkpoints.align import common_shape
from trimtab.checkpoints.names import LAYER, match_renamed
from trimtab.errors import MaskMismatchError
from trimtab.masks.packed import PackedMask
from trimtab.masks.transfer.rows import nearest
from trimtab.words import first_few

__all__ = ["DENSITY", "HOW", "INTERPOLATE", "Carried", "TransferPlan", "plan_transfer"]

INTERPOLATE = "layers=interpolate"
"""The map to another depth."""

DENSITY = "units=density"
"""The map to another width."""

How: TypeAlias = Literal["bits", "rows", "density"]

HOW: tuple[How, ...] = ("bits", "rows", "density")
"""All bits; those of the first rows; or how many in each row, and not which."""


class Carried(NamedTuple):
    """Where the bits of a tensor come from.

    Attributes:
        source: Name of a tensor of the mask.
        shape: Of the tensor to be made.
        how: What is carried.
    """

    source: str
    shape: tuple[int, ...]
    how: How


@dataclass(frozen=True)
class TransferPlan:
    """How a mask is carried to a checkpoint.

    Attributes:
        tensors: Name in the checkpoint -> where its bits come from.
        layers: Layer of the checkpoint -> layer of the mask; None if they are the same.
        not_in_mask: Tensors of the checkpoint that get nothing, as the mask does not have them.
        left_out: Tensors of the mask that no tensor gets anything from.
    """

    tensors: Mapping[str, Carried]
    layers: Mapping[int, int] | None
    not_in_mask: tuple[str, ...]
    left_out: tuple[str, ...]


def plan_transfer(
    mask: PackedMask,
    shapes: Mapping[str, tuple[int, ...]],
    tied: Mapping[str, str],
    *,
    maps: frozenset[str],
    to: str,
) -> TransferPlan:
    """Match a mask to a checkpoint.

    Args:
        mask: The mask.
        shapes: Name -> shape of the tensors that the checkpoint stores.
        tied: Names that repeat one of them -> that one's name.
        maps: Of `INTERPOLATE` and `DENSITY`, those that may be used.
        to: The checkpoint, in words.

    Raises:
        MaskMismatchError: The mask cannot be carried so; the message names all tensors, up to a
            handful, and the map that would help.
    """
    refusal = _Refusal(to)
    layers = _layer_map(mask, shapes, maps, refusal)
    tensors: dict[str, Carried] = {}
    not_in_mask: list[str] = []
    matched = set()
    other_names = match_renamed([_source(name, shapes[name], layers) for name in shapes], [*mask])
    for name, shape in shapes.items():
        source = _source(name, shape, layers)
        source = other_names.get(source, source)
        if source not in mask:
            not_in_mask.append(name)
            continue
        matched.add(source)
        before = mask.shape(source)
        if how := _how(name, before, shape, maps):
            tensors[name] = Carried(source, shape, how)
        else:
            cure = DENSITY if len(shape) == len(before) else None
            refusal.add(f"{source} has shape {before}, and {shape} there", cure)
    left_out = tuple(name for name in mask if name not in matched)
    for name in left_out:
        layer = _layer(name, mask.shape(name))
        is_passed_over = layers is not None and layer is not None and layer not in layers.values()
        if mask.num_selected(name) and not is_passed_over:
            as_what = f", where {tied[name]} stands for it" if name in tied else ""
            refusal.add(f"{name} is not there{as_what}")
    if not tensors and not refusal.reasons:
        refusal.add("it has no tensor that could be carried")
    refusal.raise_if_any()
    return TransferPlan(tensors, layers, tuple(not_in_mask), left_out)


@dataclass
class _Refusal:
    """All reasons why a mask cannot be carried, and the maps that would help."""

    to: str
    reasons: list[str] = field(default_factory=list)
    maps: dict[str, None] = field(default_factory=dict)

    def add(self, reason: str, cure: str | None = None) -> None:
        self.reasons.append(reason)
        if cure is not None:
            self.maps[cure] = None

    def raise_if_any(self) -> None:
        if not self.reasons:
            return
        cure = (
            f"What only a map can carry needs it named: --map {' --map '.join(self.maps)}"
            if self.maps
            else "Expected a checkpoint with the names and shapes of the mask's tensors"
        )
        reasons = first_few(self.reasons, "; ")
        raise MaskMismatchError(f"the mask does not transfer to {self.to}: {reasons}. {cure}")


def _layer_map(
    mask: PackedMask, shapes: Mapping[str, tuple[int, ...]], maps: frozenset[str], refusal: _Refusal
) -> dict[int, int] | None:
    """Layer of the checkpoint -> layer of the mask; None if both are of the same depth."""
    layers_before = _layers({name: mask.shape(name) for name in mask})
    layers_after = _layers(shapes)
    if not layers_before or not layers_after or layers_before[-1] == layers_after[-1]:
        return None
    before, after = layers_before[-1] + 1, layers_after[-1] + 1
    if INTERPOLATE not in maps:
        refusal.add(f"it is of {before} layers, and {refusal.to} has {after}", INTERPOLATE)
        return None
    places = nearest(np.array(layers_after, dtype=np.int64), after, before)
    return dict(zip(layers_after, places.tolist(), strict=True))


def _how(
    name: str, before: tuple[int, ...], after: tuple[int, ...], maps: frozenset[str]
) -> How | None:
    """What can be carried from one shape to another, if anything."""
    if before == after:
        return "bits"
    if common_shape(name, before, after) is not None:
        return "rows"
    return "density" if DENSITY in maps and len(before) == len(after) else None


def _source(name: str, shape: tuple[int, ...], layers: Mapping[int, int] | None) -> str:
    """The name in the mask that stands for a name in the checkpoint."""
    layer = _layer(name, shape)
    match = LAYER.search(name)
    if layers is None or layer is None or match is None:
        return name
    return f"{name[: match.start(1)]}{layers[layer]}{name[match.end(1) :]}"


def _layer(name: str, shape: tuple[int, ...]) -> int | None:
    return parts_of(name, shape, {})[0].layer


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Layers that some tensors are of, ascending."""
    layers = (_layer(name, shape) for name, shape in shapes.items())
    return sorted({layer for layer in layers if layer is not None})
