"""Training one model in several processes.

A parameter is either *sharded*, a DTensor of which every process holds a box (FSDP2 and tensor
parallelism; FSDP2 has reduced its gradient before a hook sees it), or a *copy* that every process
holds entirely. Gradients of copies are averaged here, after masking: a step sends 4 bytes per
selected element. Only `whole` and the methods of `Ranks` communicate, and all processes draw the
same conclusions: all step, skip or raise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import xxhash
from torch import Tensor

from trimtab.errors import OptimizerError
from trimtab.words import first_few

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor


def as_sharded(tensor: Tensor) -> DTensor | None:
    """The tensor if it is a DTensor, else None; works without `torch.distributed`."""
    return cast("DTensor", tensor) if hasattr(tensor, "device_mesh") else None


def placements_of(tensor: Tensor) -> tuple[Any, ...] | None:
    """The placements of a DTensor on its mesh; None for other tensors."""
    sharded = as_sharded(tensor)
    return None if sharded is None else tuple(sharded.placements)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor without autograd in this process: a view; may be empty."""
    sharded = as_sharded(tensor)
    return tensor if sharded is None else sharded.to_local()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, given one without autograd. Collective: all processes must call it."""
    sharded = as_sharded(tensor)
    return tensor if sharded is None else sharded.full_tensor()


def raw_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, flat on the CPU: uint8."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)


def box_of(tensor: Tensor) -> tuple[slice, ...]:
    """The slices of the full tensor that this process holds.

    A dimension of length n that m processes share is split as by `torch.chunk`: each has ⌈n / m⌉,
    except that the last ones may have fewer, or none. A dimension that is sharded over several
    dimensions of the mesh is split by the first, and each piece by the next.
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
    """Position in the full tensor, in C order, of the first element of this process.

    Returns:
        None if its elements are not contiguous there: a dimension other than the first is sharded.
    """
    box = box_of(tensor)
    if any(part.stop - part.start != n for part, n in zip(box[1:], tensor.shape[1:], strict=True)):
        return None
    return box[0].start * tensor.shape[1:].numel() if box else 0


def sharding_trouble(tensor: Tensor) -> str | None:
    """Why a mask does not support the sharding of a tensor; None if it does."""
    sharded = as_sharded(tensor)
    if sharded is None:
        return None
    from torch.distributed.tensor import Replicate, Shard

    plain = all(type(placement) in (Shard, Replicate) for placement in sharded.placements)
    box = box_of(tensor) if plain else ()
    if tuple(part.stop - part.start for part in box) != tuple(local(tensor.detach()).shape):
        placements = ", ".join(map(str, sharded.placements))
        return (
            f"is sharded as ({placements}), which masks do not support: use fully_shard alone, "
            "without tensor parallelism on the same tensor"
        )
    return None


BUCKET_BYTES = 64 << 20
"""Gradients are sent in buckets of about this size."""


def ranks_of(parameters: Sequence[tuple[str, Tensor]], group: ProcessGroup | None) -> Ranks | None:
    """The processes that share the parameters; None for a single process.

    `group` holds copies of the parameters that are not sharded; None for all processes.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    ranks = Ranks(parameters, group)
    return ranks if ranks.all_groups else None


class Ranks:
    """The processes that share parameters.

    Every method but the constructor is collective: all processes must call it in the same way.

    Attributes:
        all_groups: Groups of more than one process; reducing over each in turn reaches all.
    """

    def __init__(
        self, parameters: Sequence[tuple[str, Tensor]], group: ProcessGroup | None
    ) -> None:
        """Collect the groups; see `ranks_of`."""
        first = local(parameters[0][1].detach())
        self._device = first.device
        self._parts: dict[str, tuple[ProcessGroup, ...]] = {}
        world = torch.distributed.group.WORLD
        assert world is not None
        self._copies = _large([world if group is None else group])
        self.all_groups: list[ProcessGroup] = []
        for name, parameter in parameters:
            sharded = as_sharded(parameter)
            if sharded is None:
                shared_by = self._copies
            else:
                mesh = sharded.device_mesh
                groups = [mesh.get_group(axis) for axis in range(mesh.ndim)]
                shared_by = _large(groups)
                self._parts[name] = _large(
                    group
                    for group, placement in zip(groups, sharded.placements, strict=True)
                    if placement.is_shard()
                )
            self.all_groups += [group for group in shared_by if group not in self.all_groups]

    def check(self, parameters: Sequence[tuple[str, Tensor]], purpose: Sequence[str]) -> None:
        """Check that all processes train the same parameters from the same weights.

        `purpose` is anything else that they must agree on.

        Raises:
            OptimizerError: They differ; raised by all of them.
        """
        listed = [[name, list(p.shape), str(p.dtype), p.requires_grad] for name, p in parameters]
        text = json.dumps([listed, list(purpose)]).encode()
        if not all(self._agree([_digest(text)], self.all_groups)):
            raise OptimizerError(
                "the processes have different parameters, masks or optimizers: give each the same "
                "model and mask (pipeline parallelism is not supported)"
            )
        copies = [
            (name, p)
            for name, p in parameters
            if name not in self._parts and p.device.type != "meta"
        ]
        if not copies or not self._copies:
            return
        same = self._agree([_digest(raw_bytes(p).numpy().data) for _, p in copies], self._copies)
        if bad := [name for (name, _), equal in zip(copies, same, strict=True) if not equal]:
            raise OptimizerError(
                f"the weights of {first_few(bad)} differ between the processes: load the same "
                "checkpoint in each, or broadcast them from one"
            )

    def average_dense(self, parameters: Sequence[tuple[str, Tensor]]) -> None:
        """Average dense gradients in place; a gradient that only other processes have is 0 here."""
        present = self.any_has({name: p.grad is not None for name, p in parameters})
        gradients = {}
        for name, parameter in parameters:
            if present[name] and name not in self._parts:
                dense = parameter.grad
                dense = torch.zeros_like(parameter) if dense is None else dense.to_dense()
                gradients[name] = parameter.grad = dense.detach().contiguous()
        self.average(gradients)

    def any_has(self, has: Mapping[str, bool]) -> dict[str, bool]:
        """Which names any process has, given those of this one."""
        flags = torch.tensor(list(has.values()), dtype=torch.int32, device=self._device)
        for group in self.all_groups:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, group)
        return dict(zip(has, map(bool, flags.tolist()), strict=True))

    def average(self, gradients: Mapping[str, Tensor]) -> None:
        """Average the gradients of copies in place, and leave those of sharded parameters alone.

        Args:
            gradients: Name of the parameter -> contiguous gradient.
        """
        copies = {name: values for name, values in gradients.items() if name not in self._parts}
        flat = [values.view(-1) for values in copies.values()]
        for group in self._copies:
            for bucket in _buckets(flat):
                sent = bucket[0] if len(bucket) == 1 else torch.cat(bucket)
                torch.distributed.all_reduce(sent, group=group)
                sent /= group.size()
                if len(bucket) > 1:
                    parts = torch.split(sent, [part.numel() for part in bucket])
                    torch._foreach_copy_(bucket, parts)

    def sum_over_parts(self, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum the number of each parameter over its shards."""
        together: dict[tuple[ProcessGroup, ...], list[str]] = {}
        for name in numbers:
            together.setdefault(self._parts.get(name, ()), []).append(name)
        sums: dict[str, Tensor] = {}
        for groups, names in together.items():
            total = torch.stack([numbers[name] for name in names])
            for group in groups:
                torch.distributed.all_reduce(total, group=group)
            sums |= zip(names, total, strict=True)
        return {name: sums[name] for name in numbers}

    def _agree(self, digests: Sequence[int], groups: Iterable[ProcessGroup]) -> list[bool]:
        """Which of the digests are equal in all processes."""
        own = torch.tensor(digests, dtype=torch.int64, device=self._device)
        least = torch.stack([own, ~own])  # ~ reverses the order, so this gives the greatest, too
        for group in groups:
            torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN, group)
        agree: list[bool] = (least[0] == ~least[1]).tolist()
        return agree


def _large(groups: Iterable[ProcessGroup]) -> tuple[ProcessGroup, ...]:
    return tuple(group for group in groups if group.size() > 1)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Group consecutive tensors of one dtype into buckets of `BUCKET_BYTES` or a single tensor."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(member.nbytes for member in bucket) + tensor.nbytes
        if bucket and (size > BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _digest(content: Any) -> int:
    return int.from_bytes(xxhash.xxh3_64_digest(content), signed=True)
