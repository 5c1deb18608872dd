"""Figures of a model by layer and by kind, from those of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from trimtab.results.schema import to_plain


class OfTensor(Protocol):
    """A figure of one tensor, or of one part of a fused tensor."""

    @property
    def layer(self) -> int | None:
        """Index of the transformer layer, or None outside the layers."""

    @property
    def kind(self) -> str:
        """What it is: `q_proj`, `down_proj`, `norm`, `embed`, ..."""


Tensor = TypeVar("Tensor", bound=OfTensor)
Figure = TypeVar("Figure")
Key = TypeVar("Key", bound=Hashable)


def by_layer(
    tensors: Iterable[Tensor], figure: Callable[[Sequence[Tensor]], Figure]
) -> dict[int | None, Figure]:
    """A figure of each layer, ascending; None, for tensors outside the layers, comes last.

    Args:
        tensors: All of them.
        figure: Computes the figure of some tensors together.
    """
    groups = _grouped(tensors, lambda tensor: tensor.layer)
    return {layer: figure(groups[layer]) for layer in sorted(groups, key=_order)}


def by_kind(
    tensors: Iterable[Tensor], figure: Callable[[Sequence[Tensor]], Figure]
) -> dict[str, Figure]:
    """A figure of each kind, in the order in which the kinds first appear; see `by_layer`."""
    groups = _grouped(tensors, lambda tensor: tensor.kind)
    return {kind: figure(group) for kind, group in groups.items()}


def by_layer_kind(
    tensors: Iterable[Tensor], figure: Callable[[Sequence[Tensor]], Figure]
) -> dict[tuple[int | None, str], Figure]:
    """A figure of each kind in each layer, ordered by layer; see `by_layer`."""
    groups = _grouped(tensors, lambda tensor: (tensor.layer, tensor.kind))
    return {key: figure(groups[key]) for key in sorted(groups, key=lambda key: _order(key[0]))}


def plain_layers(figures: Mapping[int | None, Figure]) -> dict[str, Figure]:
    """Figures of layers, with their keys in JSON."""
    return {"outside" if layer is None else str(layer): figure for layer, figure in figures.items()}


def plain_layer_kinds(figures: Mapping[tuple[int | None, str], Any]) -> list[dict[str, Any]]:
    """Figures of kinds in layers as rows of JSON."""
    return [
        {"layer": layer, "kind": kind, **to_plain(figure)}
        for (layer, kind), figure in figures.items()
    ]


def _order(layer: int | None) -> tuple[bool, int]:
    return layer is None, layer or 0


def _grouped(tensors: Iterable[Tensor], key: Callable[[Tensor], Key]) -> dict[Key, list[Tensor]]:
    groups: dict[Key, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(key(tensor), []).append(tensor)
    return groups
