"""The tensors of a model in memory, as a checkpoint has them: their names, and their bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.checkpoints.names import match_stored, without_wrappers
from trimtab.checkpoints.tensors import hash_of
from trimtab.deltas.changes import Changes, apply_changes, fingerprint
from trimtab.elements.dtypes import DTYPES, Bits, DType
from trimtab.errors import DeltaError
from trimtab.training.layout import STORED, Layout
from trimtab.training.optimizers.distributed import as_sharded
from trimtab.training.optimizers.kernels import has_kernel
from trimtab.training.pieces import Piece
from trimtab.words import first_few, one_line

NAMES = {
    **{dtype: name for name, dtype in STORED.items()},
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""torch dtype -> its safetensors name."""

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element -> the dtype in which its bits are moved: no arithmetic touches them."""


@dataclass(frozen=True, eq=False)
class LiveTensor:
    """A tensor that the model would store, in the parameters and buffers that hold it.

    Attributes:
        name: Its name in files.
        dtype: Its dtype.
        piece: Its elements, in those of `sources`.
        sources: Name -> parameter or buffer, as integers of the same bits.
    """

    name: str
    dtype: DType
    piece: Piece
    sources: Mapping[str, Tensor]

    def __repr__(self) -> str:
        return one_line(self, f"{self.name}: {self.dtype.name} {list(self.shape)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.piece.shape

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.num_bytes

    def read(self) -> Bits:
        """Its bits, in its shape; on a CPU they may share the memory of the model."""
        values = self.piece.of(self.sources).contiguous().cpu().numpy()
        bits: Bits = values.view(self.dtype.bits)
        return bits

    def write(self, bits: Bits) -> None:
        """Replace its bits."""
        integers = np.ascontiguousarray(bits).reshape(self.shape)
        width = integers.itemsize
        values = torch.from_numpy(integers.view(f"i{width}" if width > 1 else "u1"))
        self.piece.assign(values.to(next(iter(self.sources.values())).device), self.sources)

    def change(self, changes: Changes, *, back: bool = False) -> None:
        """Make `after` of `before`, which it is, or the reverse with `back`; in place.

        It is changed whole or, after an exception or an interrupt, not at all.
        """
        if (flat := self._on_gpu()) is not None:
            from trimtab.training.deltas import cuda_kernels

            cuda_kernels.apply_changes(flat, changes, is_float=self.dtype.is_float, back=back)
        elif (flat := self._in_place()) is not None and flat.device.type == "cpu":
            apply_changes(flat.numpy().view(self.dtype.bits), changes, self.dtype, back=back)
        else:
            before = self.read().copy()
            after = before.copy()
            apply_changes(after.reshape(-1), changes, self.dtype, back=back)
            try:
                self.write(after)
            except BaseException:
                self.write(before)
                raise
            return
        for source in self.sources.values():  # so that autograd knows of it
            if not source.is_inference():
                torch.autograd.graph.increment_version(source)

    def can_be_compared(self, other: LiveTensor) -> bool:
        """Whether `changes_since` takes the other tensor: both are alike, and on one GPU."""
        mine, its = self._on_gpu(), other._on_gpu()
        alike = (self.dtype, self.shape) == (other.dtype, other.shape)
        return alike and mine is not None and its is not None and mine.device == its.device

    def changes_since(self, other: LiveTensor) -> Changes:
        """What makes it of another tensor, found on the GPU of both."""
        from trimtab.training.deltas import cuda_kernels

        before, after = other._on_gpu(), self._on_gpu()
        assert before is not None and after is not None
        return cuda_kernels.find_changes(before, after, self.dtype)

    def digest(self) -> str:
        """A hash of its bits, computed where they are."""
        if (flat := self._on_gpu()) is None:
            return hash_of(self.read())
        from trimtab.training.deltas import cuda_kernels

        return f"{cuda_kernels.fingerprint(flat):016x}"

    def digest_of(self, bits: Bits, xxh3: str = "") -> str:
        """What `digest` would return if it had these bits, whose xxh3-128 may be known."""
        if self._on_gpu() is not None:
            return f"{fingerprint(np.ascontiguousarray(bits)):016x}"
        return xxh3 or hash_of(bits)

    def _in_place(self) -> Tensor | None:
        """Its elements in the memory of the model, flat; None if they are not together there."""
        source = self.sources[self.piece.sources[0]]
        if not self.piece.is_view or not source.is_contiguous():
            return None
        values = self.piece.of(self.sources)
        return values.view(-1) if values.is_contiguous() else None

    def _on_gpu(self) -> Tensor | None:
        """The same, if the kernels can run on them."""
        flat = self._in_place()
        return flat if flat is not None and has_kernel(flat.device) else None

    def is_same(self, other: LiveTensor) -> bool:
        """Whether both are the same elements of the same parameters."""
        mine, its = self.piece, other.piece
        return (mine.sources, mine.offset, mine.shape) == (its.sources, its.offset, its.shape)


class LiveModel(NamedTuple):
    """What `stored_tensors` finds."""

    tensors: Mapping[str, LiveTensor]
    tied: Mapping[str, str]  # further name of a tensor -> its name in `tensors`

    def get(self, name: str) -> LiveTensor | None:
        """The tensor of a name; None without one."""
        return self.tensors.get(self.tied.get(name, name))


@dataclass(frozen=True, eq=False, repr=False)
class CastTensor(LiveTensor):
    """A tensor that files hold in another dtype than the model; only `read` works."""

    original: LiveTensor

    def read(self) -> Bits:
        """Its bits in files, rounded as torch does."""
        before = self.original.dtype
        integers = np.ascontiguousarray(self.original.read()).view(f"i{before.num_bytes}")
        values = torch.from_numpy(integers).view(STORED[before.name]).to(STORED[self.dtype.name])
        bits: Bits = values.view(INTEGERS[values.element_size()]).numpy().view(self.dtype.bits)
        return bits


def cast(live: LiveModel, dtype: str) -> LiveModel:
    """The tensors of a model with those of fp32 in another dtype, by its safetensors name."""
    tensors = {
        name: CastTensor(name, DTYPES[dtype], tensor.piece, tensor.sources, tensor)
        if tensor.dtype.name == "F32"
        else tensor
        for name, tensor in live.tensors.items()
    }
    return live._replace(tensors=tensors)


def stored_tensors(
    model: nn.Module | Mapping[str, Tensor],
    names: Mapping[str, object] | None = None,
    *,
    sharded: bool = False,
) -> LiveModel:
    """The tensors that `save_pretrained` would store of a model, where they are in memory.

    Args:
        model: Any module, or a `state_dict` with the names of files. Tensors that are tied are
            listed once.
        names: Names that a checkpoint has for them; without, those of the module.
        sharded: Whether parameters may be DTensors, which are in `sources` as they are.

    Raises:
        DeltaError: Its values are not here (meta device, sharded), have a dtype that safetensors
            does not have, or transformers computes the stored values from them.
    """
    if isinstance(model, nn.Module):
        values, pieces, tied = _of_module(model)
    else:
        values, tied = dict(model), {}
        if odd := [name for name, value in values.items() if not isinstance(value, Tensor)]:
            raise DeltaError(f"{odd[0]} of the state_dict is no tensor: leave it out")
        pieces = {without_wrappers(n): Piece.whole(n, tuple(t.shape)) for n, t in values.items()}
    _check(values, sharded=sharded)
    _check_apart({name: t for name, t in values.items() if as_sharded(t) is None})
    renamed = match_stored(pieces, names, {}) if names is not None else {}
    integers = {
        n: t.detach().view(INTEGERS[t.element_size()]) if as_sharded(t) is None else t.detach()
        for n, t in values.items()
    }
    tensors: dict[str, LiveTensor] = {}
    first: dict[tuple[object, ...], str] = {}
    for name, piece in pieces.items():
        kinds = {values[source].dtype for source in piece.sources}
        if len(kinds) > 1:
            raise DeltaError(f"{name} would be stored of parameters of different dtypes: {kinds}")
        sources = {source: integers[source] for source in piece.sources}
        known = renamed.get(name, name)
        place = _place(values, piece)
        if place is not None and (original := first.setdefault(place, known)) != known:
            tied[known] = original
            continue
        tensors[known] = LiveTensor(known, DTYPES[NAMES[kinds.pop()]], piece, sources)
    tied = {alias: renamed.get(name, name) for alias, name in tied.items()}
    return LiveModel(tensors, tied)


def _of_module(
    model: nn.Module,
) -> tuple[dict[str, Tensor], dict[str, Piece], dict[str, str]]:
    """Its parameters and persistent buffers, where stored tensors are in them, and tied names."""
    layout = Layout.of(model)
    if layout.computed:
        raise DeltaError(
            f"transformers computes stored values of {first_few([*layout.computed])} when it saves "
            "this model: save it, and make and apply deltas of its files"
        )
    values: dict[str, Tensor] = dict(model.named_parameters())
    persistent = model.state_dict(keep_vars=True)
    buffers = {
        name: tensor
        for name, tensor in model.named_buffers(remove_duplicate=False)
        if name in persistent
    }
    values |= buffers
    pieces = dict(layout.stored)
    for name, tensor in buffers.items():
        pieces[without_wrappers(name)] = Piece.whole(name, tuple(tensor.shape))
    tied = {
        without_wrappers(name): layout.stored_name[first]
        for name, first in layout.tied.items()
        if first in layout.stored_name
    }
    return values, pieces, tied


def _check(values: Mapping[str, Tensor], *, sharded: bool) -> None:
    for name, tensor in values.items():
        if tensor.is_meta:
            raise DeltaError(
                f"{name} is on the meta device, without values (not loaded, or offloaded): load "
                "the whole model, without offloading"
            )
        # A DTensor, a flat parameter of FSDP1, or one that DeepSpeed ZeRO-3 has emptied.
        is_dtensor = as_sharded(tensor) is not None
        is_flat = getattr(tensor, "_is_flat_param", False) or hasattr(tensor, "ds_id")
        if is_flat or (is_dtensor and not sharded):
            raise DeltaError(
                f"{name} is sharded over processes: save the model, and make and apply deltas of "
                "its files"
            )
        if tensor.layout is not torch.strided or tensor.dtype not in NAMES:
            raise DeltaError(
                f"{name} is a tensor of {tensor.dtype} and {tensor.layout}, which safetensors does "
                f"not have: expected a dense one of {', '.join(NAMES.values())}"
            )


def _check_apart(values: Mapping[str, Tensor]) -> None:
    """Refuse tensors that share a part of their memory: a write to one would change the other."""
    spans: dict[tuple[str, int, int], str] = {}
    for name, tensor in values.items():
        last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        start = tensor.data_ptr()
        if tensor.numel():
            end = start + (last + 1) * tensor.element_size()
            spans.setdefault((str(tensor.device), start, end), name)
    ordered = sorted(spans.items(), key=lambda item: item[0])
    for (one, name), (other, its_name) in pairwise(ordered):
        if one[0] == other[0] and other[1] < one[2]:
            raise DeltaError(
                f"{name} and {its_name} of the model overlap in memory: make and apply deltas of "
                "its files"
            )


def _place(values: Mapping[str, Tensor], piece: Piece) -> tuple[object, ...] | None:
    """What two names of one tensor have in common; None for what cannot be tied."""
    tensor = values[piece.sources[0]]
    is_whole = piece.is_all_of(tuple(tensor.shape))
    if not tensor.numel() or not is_whole or as_sharded(tensor) is not None:
        return None
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
