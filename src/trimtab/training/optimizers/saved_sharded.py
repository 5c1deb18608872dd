"""The saved state of a sparse optimizer in the form that `torch.distributed.checkpoint` reshards.

Of each parameter there is one vector of all selected elements, in ascending order, per kind of
state. If the parameter is sharded along its first dimension, a process has a stretch of that
vector; `Stretch` tells DCP which. So a checkpoint does not depend on the number of processes, and
each reads the stretches that it needs, bit for bit.

Everything is a tensor of a size that is known before a checkpoint is opened, because DCP reads
into what is there already, and reads other things by pickle. What the state must agree with (see
`ResumableOptimizer._record`) is kept as hashes, and ties as a byte per element.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from trimtab.errors import OptimizerError
from trimtab.masks import Mask
from trimtab.training.optimizers.elements import Elements
from trimtab.training.optimizers.saved import Kept, adopt_state, export_state
from trimtab.training.optimizers.sharding import as_sharded, start_of
from trimtab.words import first_few

__all__ = ["Stretch", "adopt_vectors", "check_hashes", "export_groups", "export_vectors", "hashes"]

STARTED = "started"
"""Key of a parameter's state: 1 once it has taken a step, 0 before."""


class Stretch(torch.Tensor):
    """A vector that several processes share, of which this one has a stretch.

    Only good for `torch.distributed.checkpoint`, whose protocol the three methods are.

    Attributes:
        part: What this process has.
        start: Where that begins in the vector.
    """

    part: Tensor
    start: int

    @staticmethod
    def __new__(cls, part: Tensor, start: int, length: int) -> Stretch:
        """Wrap `part`, which is not copied, as what begins at `start` of `length` elements."""
        self: Stretch = torch.Tensor._make_wrapper_subclass(
            cls, (length,), dtype=part.dtype, device=part.device
        )
        self.part, self.start = part, start
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        raise NotImplementedError(f"a Stretch can only be saved and loaded, not {func}")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Stretch({self.start} to {self.start + len(self.part)} of {self.size(0)})"

    def __create_write_items__(self, fqn: str, object: Any) -> list[Any]:
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=chunk,
                    properties=TensorProperties.create_from_tensor(self.part),
                    size=self.size(),
                ),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[Any]:
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        if not len(self.part):
            return []
        return [ChunkStorageMetadata(torch.Size([self.start]), self.part.size())]

    def __get_tensor_shard__(self, index: Any) -> Tensor:
        return self.part


def export_vectors(
    elements: Elements, mask: Mask, state: Mapping[str, Tensor], kept: Mapping[str, Kept]
) -> dict[str, Tensor]:
    """The state of a parameter; zeros if it has none yet.

    What can be is shared with the optimizer, not copied.

    Raises:
        OptimizerError: The parameter is sharded along another dimension than the first.
    """
    k = elements.num_selected
    if state:
        exported = export_state(elements, state, kept)
    else:
        empty = {"number": (), "vector": (k,), "positions": (0,)}
        exported = {key: torch.zeros(empty[of.kind], dtype=of.dtype) for key, of in kept.items()}
    start, length = _stretch(elements, mask)
    content = {STARTED: torch.tensor(int(bool(state)), dtype=torch.uint8)}
    for key, of in kept.items():
        value = exported[key]
        if of.kind == "positions":
            value = torch.zeros(k, dtype=torch.uint8, device=value.device)
            value[exported[key].long()] = 1
        whole = of.kind == "number" or as_sharded(elements.parameter) is None
        content[key] = value if whole else Stretch(value, start, length)
    return content


def adopt_vectors(
    elements: Elements, content: Mapping[str, Tensor], kept: Mapping[str, Kept]
) -> dict[str, Tensor]:
    """The inverse of `export_vectors`: new tensors."""
    if not content[STARTED]:
        return {}
    state = {}
    for key, of in kept.items():
        value = content[key]
        value = value.part if isinstance(value, Stretch) else value
        if of.kind == "positions":
            value = value.nonzero().flatten().to(of.dtype)
        state[key] = value
    return adopt_state(elements, state, kept)


def export_groups(
    groups: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> dict[str, dict[str, Tensor]]:
    """The settings of the groups, as fp64."""
    return {
        str(number): {key: torch.tensor(group[key], dtype=torch.float64) for key in defaults}
        for number, group in enumerate(groups)
    }


def hashes(record: Mapping[str, Any]) -> dict[str, Tensor]:
    """A hash of each thing that a saved state must agree with."""
    texts = {key: json.dumps(value, sort_keys=True) for key, value in record.items()}
    return {
        key: torch.tensor(list(xxhash.xxh3_128_digest(text.encode())), dtype=torch.uint8)
        for key, text in texts.items()
    }


def check_hashes(saved: Mapping[str, Tensor], own: Mapping[str, Any]) -> None:
    """Check that a saved state belongs to an optimizer.

    Raises:
        OptimizerError: It does not; names every difference.
    """
    mine = hashes(own)
    other = [key for key in mine if not torch.equal(saved[key], mine[key])]
    if other:
        raise OptimizerError(
            f"the saved state belongs to another run: it differs in {first_few(other)}. Use the "
            "mask, base and settings that it was saved with, or start without it"
        )


def _stretch(elements: Elements, mask: Mask) -> tuple[int, int]:
    """Where the selected elements of this process begin among all, and how many those are."""
    start = start_of(elements.parameter)
    if start is None:
        raise OptimizerError(
            f"{elements.name} is sharded along another dimension than the first: save state_dict() "
            "in each process instead, and go on with as many"
        )
    index = mask.indices(elements.name)
    return int(np.searchsorted(index, start)), len(index)
