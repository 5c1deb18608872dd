"""One model, several ways to name its tensors: masks under the names of what they meet.

A file that was saved inside or outside a wrapper, without the head, or by another version of
transformers names the same tensors differently (`trimtab.checkpoints.names.core_name`). Whatever
sets masks beside each other, or beside a checkpoint, first brings them to one set of names here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from trimtab.checkpoints import Checkpoint
from trimtab.checkpoints.names import match_stored
from trimtab.masks.header import PackedMask

__all__ = ["named_alike", "named_as_in", "named_like"]

AMask = TypeVar("AMask", bound=PackedMask)


def named_like(
    mask: AMask, names: Collection[str], tied: Mapping[str, str] = MappingProxyType({})
) -> AMask:
    """Give tensors of a mask the names that others have for them.

    Args:
        mask: The mask.
        names: Names of tensors of the same model.
        tied: Further names -> the one of `names` that is the same tensor.

    Returns:
        The mask under those names, with the digest that it had; tensors that have no other name
        among them keep theirs. The mask itself if nothing changes.
    """
    new_names: dict[str, str] = match_stored([*mask], names, tied)
    return mask.renamed(new_names) if new_names else mask


def named_as_in(mask: AMask, checkpoint: Checkpoint) -> AMask:
    """A mask under the names under which a checkpoint stores the tensors; see `named_like`."""
    return named_like(mask, checkpoint.tensors, checkpoint.tied)


def named_alike(masks: Sequence[AMask], base: Checkpoint | None = None) -> list[AMask]:
    """Masks under one set of names: those of a base, or else of the first mask that has a tensor.

    Args:
        masks: Masks of one model.
        base: A checkpoint whose names count more than those of the masks.
    """
    names = set(base.tensors if base is not None else ())
    alike = []
    for mask in masks:
        alike.append(named_like(mask, names, base.tied if base is not None else {}))
        names.update(alike[-1])
    return alike
