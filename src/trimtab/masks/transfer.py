"""Carry a mask to another checkpoint: the same elements where they exist, else by a map.

Exact: the other checkpoint has the mask's tensors with their shapes (base and instruct, another
seed,
another task), and the bits are copied. Of a resized vocabulary the common rows are carried.

By a map, which must be requested because it is a hypothesis about the other model:

- `layers=interpolate`, for another depth: layer i of L₂ gets the bits of layer
  round(i·(L₁ - 1) / (L₂ - 1)) of L₁.
- `units=density`, for another width: each row gets the same share of selected elements as the row
at
  the same relative position of the mask, at random columns. A row is one of the tensor's 2-D view
  `[prod(shape[:-1]), shape[-1]]`; a 1-D tensor is one row.

Only shapes and hashes of the other checkpoint are used. Tensors that cannot be carried are found
before any weight or bit is read, and reported together.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from trimtab.checkpoints.align import common_shape, has_vocabulary_rows
from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.names import LAYER, match_renamed, parts_of
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.checkpoints.weights import read_weights
from trimtab.elements.dtypes import Bits
from trimtab.errors import MaskError, MaskMismatchError
from trimtab.masks.algebra import DerivedMask
from trimtab.masks.header import MaskHeader, PackedMask, provenance_with
from trimtab.masks.matching import base_tensors
from trimtab.masks.packed import PackedTensor, num_packed_bytes, unpacked
from trimtab.results.records import record_of
from trimtab.words import first_few

CHUNK_ELEMENTS = 1 << 20
"""Elements unpacked or drawn at once, if a row has no more."""


def row_counts(tensor: PackedTensor) -> NDArray[np.int64]:
    """Selected elements of each row.

    Returns:
        int64, of the tensor's shape without its last axis.
    """
    columns = tensor.shape[-1] if tensor.shape else 1
    rows = prod(tensor.shape[:-1])
    counts = np.zeros(rows, dtype=np.int64)
    for start, stop in _blocks(rows, columns):
        block = unpacked(tensor.bits, start * columns, stop * columns)
        counts[start:stop] = block.reshape(stop - start, columns).sum(axis=1, dtype=np.int64)
    return counts.reshape(tensor.shape[:-1])


def nearest(positions: NDArray[np.int64], num: int, num_before: int) -> NDArray[np.int64]:
    """Map positions among `num` units to those among `num_before` at the same relative position.

    Unit i maps to i·(num_before - 1) / (num - 1), rounded half up, so that the first and the last
    stay the first and the last; a single unit maps to the first.

    Args:
        positions: Positions of the units, from 0.
        num: Number of units.
        num_before: Number of units to map to.
    """
    gaps = max(num - 1, 1)
    return (2 * positions * (num_before - 1) + gaps) // (2 * gaps)


def scaled_counts(counts: NDArray[np.int64], before: int, after: int) -> NDArray[np.int64]:
    """Rescale counts out of `before` to counts out of `after`, with nearly the same shares.

    Running sums are rounded rather than counts, so the total is right within half an element, and
    each count within one.

    Args:
        counts: int64 `[rows]`, each at most `before`.
        before: Elements of a row before.
        after: Elements of a row after.
    """
    if not before:
        return np.zeros_like(counts)
    sums = [0, *np.cumsum(counts, dtype=object)]  # Python's integers: the products may be large
    return np.diff([(2 * sum_ * after + before) // (2 * before) for sum_ in sums]).astype(np.int64)


def random_rows(
    shape: tuple[int, ...], counts: NDArray[np.int64], *, seed: int, name: str
) -> PackedTensor:
    """Select an exact number of elements in each row, uniformly at random.

    The elements of a row draw 64 random bits each, and the lowest are selected; raw output of
    NumPy's PCG64, which is the same everywhere.

    Args:
        shape: Of the tensor.
        counts: int64 `[rows]`: how many to select in each row, at most `columns`.
        seed: Any integer.
        name: Of the tensor. With the seed it decides the draw, whatever is drawn before or after.
    """
    rows, columns = prod(shape[:-1]), shape[-1] if shape else 1
    generator = np.random.PCG64(xxhash.xxh3_128_intdigest(f"{seed}\0{name}".encode()))
    bits = np.zeros(num_packed_bytes(rows * columns), dtype=np.uint8)
    for start, stop in _blocks(rows, columns):
        draws = generator.random_raw((stop - start) * columns).reshape(stop - start, columns)
        order = np.argsort(draws, axis=1, kind="stable")
        selected = np.empty(draws.shape, dtype=np.bool_)
        wins = np.arange(columns) < counts[start:stop, None]
        np.put_along_axis(selected, order, wins, axis=1)
        packed = np.packbits(selected, bitorder="little")
        bits[start * columns // 8 : start * columns // 8 + len(packed)] = packed
    return PackedTensor(shape, bits, int(counts.sum()))


def _blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows to process at once; every range starts at a byte of the packed bits."""
    height = 8 * max(CHUNK_ELEMENTS // max(8 * columns, 1), 1)
    for start in range(0, rows, height):
        yield start, min(start + height, rows)


INTERPOLATE = "layers=interpolate"
"""The map to another depth."""

DENSITY = "units=density"
"""The map to another width."""

How: TypeAlias = Literal["bits", "rows", "density"]

HOW: tuple[How, ...] = ("bits", "rows", "density")
"""All bits; those of the first rows; or only their number in each row."""


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
        tensors: Name in the checkpoint -> source of its bits.
        layers: Layer of the checkpoint -> layer of the mask; None if they are the same.
        not_in_mask: Tensors of the checkpoint that the mask lacks.
        left_out: Tensors of the mask that are carried to no tensor.
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
    matched = nearest(np.array(layers_after, dtype=np.int64), after, before)
    return dict(zip(layers_after, matched.tolist(), strict=True))


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
    """The name in the mask for a name in the checkpoint."""
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


MAPS = (INTERPOLATE, DENSITY)
"""All maps."""


def transfer(
    mask: PackedMask,
    to: str | os.PathLike[str] | Checkpoint,
    *,
    maps: Collection[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> DerivedMask:
    """Carry a mask to another checkpoint.

    Args:
        mask: The mask.
        to: The checkpoint: a folder, a file, a hub id (`org/name@revision`), or an open one.
            Its bytes are read once, to hash them.
        maps: `layers=interpolate` to carry it to another depth, `units=density` to another width;
            each is used only where it is needed.
        seed: Of the places that a row of another width gets; nothing else is drawn.
        progress: Called after each chunk that is read, from any thread.

    Returns:
        A mask of the checkpoint's tensors, without those that the mask does not have. The last step
        of its provenance says what was carried, and how.

    Raises:
        MaskError: There is no such map.
        MaskMismatchError: The mask cannot be carried so; the message names all tensors, up to a
            handful, and the map that would help.
        CheckpointError: The checkpoint cannot be read.
    """
    if unknown := [repr(one) for one in maps if one not in MAPS]:
        raise MaskError(f"no map {first_few(unknown)}: expected {' or '.join(MAPS)}")
    with opened(to) as (other,):
        shapes = {name: tensor.shape for name, tensor in other.tensors.items()}
        plan = plan_transfer(mask, shapes, other.tied, maps=frozenset(maps), to=other.id)
        _, digests = read_weights(other, other.tensors, _read_past, progress=progress)
        step = {
            "step": "transfer",
            "of": mask.digest,
            "to": record_of(other, digests).to_dict(),
            **_account(mask, plan, seed),
        }
        base = base_tensors(other, {name: digests[name] for name in plan.tensors})
    carried_shapes = {name: carried.shape for name, carried in plan.tensors.items()}
    header = MaskHeader(carried_shapes, base, provenance_with(mask.provenance, step))

    def tensor(name: str) -> PackedTensor:
        source, shape, how = plan.tensors[name]
        before = mask.tensor(source, mask.shape(source))
        if how == "density":
            return _spread(before, shape, seed=seed, name=name)
        return before if how == "bits" else before.resized(shape)

    return DerivedMask(header, tensor)


def _read_past(_: StoredTensor, chunks: Iterator[tuple[int, Bits]]) -> None:
    """Read a tensor only to hash it."""
    deque(chunks, maxlen=0)


def _account(mask: PackedMask, plan: TransferPlan, seed: int) -> dict[str, Any]:
    """The provenance of a transfer."""
    by = {how: [n for n, one in plan.tensors.items() if one.how == how] for how in HOW}
    used = {INTERPOLATE: plan.layers is not None, DENSITY: bool(by["density"])}
    return {
        "maps": [one for one in MAPS if used[one]],
        "layers": None if plan.layers is None else {str(k): v for k, v in plan.layers.items()},
        "seed": seed if by["density"] else None,
        "by_density": by["density"],
        "common_rows": [
            {
                "name": name,
                "shape": list(plan.tensors[name].shape),
                "mask_shape": list(mask.shape(plan.tensors[name].source)),
            }
            for name in by["rows"]
        ],
        "not_in_mask": list(plan.not_in_mask),
        "left_out": list(plan.left_out),
    }


def _spread(before: PackedTensor, shape: tuple[int, ...], *, seed: int, name: str) -> PackedTensor:
    """Select the same share of each row as of the row at the same relative position before."""
    if not prod(before.shape) or not prod(shape):
        return random_rows(shape, np.zeros(prod(shape[:-1]), np.int64), seed=seed, name=name)
    counts = row_counts(before)
    if has_vocabulary_rows(name) and len(shape) == 2:  # a token's row is its own, not a place
        picked: NDArray[np.int64] = np.zeros(shape[0], dtype=np.int64)
        num_common = min(shape[0], before.shape[0])
        picked[:num_common] = counts[:num_common]
    else:
        axes = zip(shape[:-1], before.shape[:-1], strict=True)
        rows = (nearest(np.arange(num), num, num_before) for num, num_before in axes)
        picked = counts[np.ix_(*rows)].reshape(-1)
    scaled = scaled_counts(picked, before.shape[-1], shape[-1])
    return random_rows(shape, scaled, seed=seed, name=name)
