"""Which part of a parameter this process has, if several share it.

FSDP2 and tensor parallelism make parameters `DTensor`s: every process of a mesh has a box of the
whole. A mask knows the whole; here it meets the box. Nothing here communicates but `whole`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "as_sharded",
    "box_of",
    "local",
    "placements_of",
    "sharding_trouble",
    "start_of",
    "whole",
]


def as_sharded(tensor: Tensor) -> DTensor | None:
    """The tensor if it is a DTensor, else None; where torch has no `distributed`, it is none."""
    return cast("DTensor", tensor) if hasattr(tensor, "device_mesh") else None


def placements_of(tensor: Tensor) -> tuple[Any, ...] | None:
    """How a tensor is laid out on its mesh; None if it is no DTensor."""
    sharded = as_sharded(tensor)
    return None if sharded is None else tuple(sharded.placements)


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor without autograd: a view; may be empty."""
    sharded = as_sharded(tensor)
    return tensor if sharded is None else sharded.to_local()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor without autograd. All processes that share it must ask for it."""
    sharded = as_sharded(tensor)
    return tensor if sharded is None else sharded.full_tensor()


def box_of(tensor: Tensor) -> tuple[slice, ...]:
    """Where in the whole tensor the part of this process lies.

    A dimension of length n that m processes share is cut as `torch.chunk` cuts it: each has
    ⌈n / m⌉, but the last ones may have fewer, or none. One that is cut by several dimensions of
    the mesh is cut by the first, and each piece by the next.
    """
    ranges = [(0, length) for length in tensor.shape]
    if (sharded := as_sharded(tensor)) is not None:
        mesh: Any = sharded.device_mesh
        for axis, placement in enumerate(sharded.placements):
            if placement.is_shard():
                dim = cast(Any, placement).dim
                start, stop = ranges[dim]
                step = -(-(stop - start) // mesh.size(axis))
                first = min(start + step * mesh.get_local_rank(axis), stop)
                ranges[dim] = first, min(first + step, stop)
    return tuple(slice(start, stop) for start, stop in ranges)


def start_of(tensor: Tensor) -> int | None:
    """Position in the whole tensor, in C order, of the first element of this process.

    Returns:
        None if its elements do not follow one another there: another dimension than the first is
        cut.
    """
    box = box_of(tensor)
    if any(part.stop - part.start != n for part, n in zip(box[1:], tensor.shape[1:], strict=True)):
        return None
    return box[0].start * tensor.shape[1:].numel() if box else 0


def sharding_trouble(tensor: Tensor) -> str | None:
    """Why a mask cannot follow the way in which a tensor is sharded, if it cannot."""
    sharded = as_sharded(tensor)
    if sharded is None:
        return None
    from torch.distributed.tensor import Replicate, Shard

    plain = all(type(placement) in (Shard, Replicate) for placement in sharded.placements)
    box = box_of(tensor) if plain else ()
    if tuple(part.stop - part.start for part in box) != tuple(local(tensor.detach()).shape):
        placements = ", ".join(map(str, sharded.placements))
        return (
            f"is sharded as ({placements}), which a mask cannot follow: use fully_shard alone, "
            "without tensor parallelism on the same tensor"
        )
    return None
