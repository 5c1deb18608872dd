"""What a mask selects, as plain data: in all, by kind and by tensor."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.checkpoints import parts_of
from trimtab.masks.mask_file import FORMAT
from trimtab.masks.packed import PackedMask

__all__ = ["summarise"]


def summarise(mask: PackedMask) -> dict[str, Any]:
    """Count a mask, in the format of the docs page "Formats".

    Kinds follow from names alone, so a fused tensor is one tensor of one kind.
    """
    tensors = [_tensor(mask, name) for name in mask]
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for tensor in tensors:
        by_kind[tensor["kind"]].append(tensor)
    return {
        "format": f"{FORMAT}.summary",
        "format_version": 1,
        "digest": mask.digest,
        "total": _group(tensors),
        "by_kind": {kind: _group(members) for kind, members in by_kind.items()},
        "tensors": tensors,
        "provenance": dict(mask.provenance),
    }


def _tensor(mask: PackedMask, name: str) -> dict[str, Any]:
    (part,) = parts_of(name, mask.shape(name), {})
    base = mask.base.get(name)
    return {
        "name": name,
        "layer": part.layer,
        "kind": part.kind,
        "shape": list(mask.shape(name)),
        "base": None if base is None else base._asdict(),
        **_counts(mask.num_elements(name), mask.num_selected(name)),
    }


def _group(tensors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    num_elements, num_selected = (
        sum(tensor[key] for tensor in tensors) for key in ("num_elements", "num_selected")
    )
    return {"num_tensors": len(tensors), **_counts(num_elements, num_selected)}


def _counts(num_elements: int, num_selected: int) -> dict[str, Any]:
    density = num_selected / num_elements if num_elements else None
    return {"num_elements": num_elements, "num_selected": num_selected, "density": density}
