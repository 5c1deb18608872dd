"""`structure`: where in a network masks are: heads, neurons, channels, rows and columns.

One streaming pass, tensor by tensor: the bits of each mask and its random control are summed by row
and column, and lines are gathered into units. Memory is the bits of the tensors in progress, the
counts of units and, with a base, a small histogram of each row and column.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.folder import read_config, read_json
from trimtab.checkpoints.names import parts_of
from trimtab.checkpoints.stream import Progress, Source, new_buffer
from trimtab.elements.bits import Counters
from trimtab.elements.fast import counters_for
from trimtab.errors import CheckpointNotFoundError, MaskError
from trimtab.masks.header import PackedMask, mask_record
from trimtab.masks.matching import check_digests, check_shapes, common_model, named_alike
from trimtab.masks.on_disk import opened_masks
from trimtab.masks.packed import num_packed_bytes
from trimtab.masks.random import random_tensor
from trimtab.masks.structure_families import (
    ExpertTensor,
    Gathering,
    family_of,
    shared_units,
    stripes_of,
)
from trimtab.masks.structure_result import (
    ElementMap,
    LeftOut,
    MaskStructure,
    Profile,
    Structure,
    TensorStructure,
)
from trimtab.masks.structure_units import (
    Layout,
    Membership,
    PartCounts,
    Units,
    count_tensor,
    expert_of,
    memberships_of,
)
from trimtab.results.records import made_now, record_of
from trimtab.words import first_few


def config_of(
    base: Checkpoint | None, config: str | os.PathLike[str] | None
) -> tuple[str | None, Mapping[str, Any]]:
    """Source of the config, and the config; None and empty if there is none.

    Raises:
        CheckpointError: It cannot be read.
    """
    if config is not None:
        path = Path(config)
        is_folder = path.is_dir() or not os.path.lexists(path)
        content = read_config(path) if is_folder else read_json(path)
        if not content:
            raise CheckpointNotFoundError(f"{path}: expected a config.json, and there is none")
        return str(path), content
    if base is not None and base.config:
        return base.id, base.config
    return None, {}


def is_matrix(shape: tuple[int, ...] | None) -> bool:
    """Whether a tensor has rows and columns; None for one that is not there."""
    return shape is not None and len(shape) > 1 and prod(shape) > 0


MOST_BLOCKS = 96
"""Most blocks of a map along either side: 7 or 8 pixels each on a page."""

MOST_GROUPS = 240
"""Most groups of lines in a profile: about 3 pixels each."""

Counts = NDArray[np.int64]


def element_map(
    name: str,
    shape: tuple[int, int],
    bits: NDArray[np.uint8],
    lines: tuple[Counts, Counts],
    control_lines: tuple[Counts, Counts],
    counters: Counters,
) -> ElementMap:
    """Downsample a matrix to blocks.

    Args:
        name: Name of the tensor.
        shape: Shape of its 2-D view.
        bits: Its packed bits.
        lines: Selected elements of its rows, and of its columns.
        control_lines: The same of the random control.
        counters: The counting functions.
    """
    row_edges, column_edges = (_edges(size, MOST_BLOCKS) for size in shape)
    counts = []
    for start, stop in pairwise(row_edges):
        _, by_column = counters.bit_sums(bits, shape[1], range(start, stop), range(shape[1]))
        counts.append(tuple(np.add.reduceat(by_column, column_edges[:-1]).tolist()))
    return ElementMap(
        name=name,
        shape=shape,
        num_selected=int(lines[0].sum()),
        row_edges=tuple(row_edges),
        column_edges=tuple(column_edges),
        counts=tuple(counts),
        rows=_profile(lines[0], control_lines[0], shape[1]),
        columns=_profile(lines[1], control_lines[1], shape[0]),
    )


def _profile(counts: Counts, control: Counts, line_length: int) -> Profile:
    starts = _edges(len(counts), MOST_GROUPS)[:-1]
    return Profile(
        starts=tuple(starts),
        line_length=line_length,
        lowest=tuple(np.minimum.reduceat(counts, starts).tolist()),
        highest=tuple(np.maximum.reduceat(counts, starts).tolist()),
        control_lowest=tuple(np.minimum.reduceat(control, starts).tolist()),
        control_highest=tuple(np.maximum.reduceat(control, starts).tolist()),
    )


def _edges(size: int, most: int) -> list[int]:
    """Starts of blocks of equal size, and the end; the last block may be smaller."""
    return [*range(0, size, -(-size // most)), size]


Packed = NDArray[np.uint8]


def structure(
    *masks: str | os.PathLike[str] | PackedMask,
    base: str | os.PathLike[str] | Checkpoint | None = None,
    config: str | os.PathLike[str] | None = None,
    map: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Structure:
    """Locate masks: by head, neuron, channel, row and column, against chance.

    Every mask is compared with a random control of the same size in each tensor.

    Args:
        masks: Masks of one model, or their files; at least one.
        base: The checkpoint that they were made against: its config gives the number of heads, and
            its weights the null that is matched by magnitude.
        config: A folder with a `config.json`, or such a file; takes precedence over that of base.
        map: Name of the tensor to map; by default the matrix whose rows or columns are most
            dispersed in the first mask.
        seed: Seed of the control of the first mask; each next one adds 1.
        threads: Tensors counted at the same time; by default the number of processors, at most 8.
        progress: Called with bytes read, and the total.

    Returns:
        The result.

    Raises:
        MaskError: A file is not a mask; or `map` is not a matrix of the masks.
        MaskMismatchError: The masks are of different models, or of another one than base.
        CheckpointError: Base or config cannot be read.
    """
    if not masks:
        raise MaskError("structure needs a mask")
    with ExitStack() as stack:
        packed_masks = opened_masks(masks, stack)
        if base is not None:
            (base,) = stack.enter_context(opened(base))
        packed_masks = named_alike(packed_masks, base)
        origin, settings = config_of(base, config)
        shapes = common_model(packed_masks).shapes
        if base is not None:
            stored = base.tensors
            # Base may lack tensors of which nothing is selected.
            selected = {name for mask in packed_masks for name in mask if mask.num_selected(name)}
            check_shapes({n: shapes[n] for n in shapes if n in stored or n in selected}, base)
        if map is not None and not is_matrix(shapes.get(map)):
            matrices = [name for name, shape in shapes.items() if is_matrix(shape)]
            raise MaskError(f"{map} is no matrix of the masks; those are {first_few(matrices)}")
        counting = _Counting(
            masks=packed_masks,
            shapes=shapes,
            config=settings,
            layout=Layout.of(
                settings, shapes, {n: parts_of(n, shape, {})[0].kind for n, shape in shapes.items()}
            ),
            base=base,
            seed=seed,
            counters=counters_for(sum(prod(shape) for shape in shapes.values())),
        )
        gathering = Gathering(len(packed_masks), seed)
        tensors: dict[str, list[list[TensorStructure]]] = {}
        left_out: list[LeftOut] = []
        digests: dict[str, str] = {}
        for name, counted in counting.run(threads or min(os.cpu_count() or 1, 8), progress):
            for membership, units in counted.units:
                gathering.add(membership.family, membership.layer, units)
            for expert in counted.experts:
                gathering.add_expert(expert)
            tensors[name] = counted.tensors
            left_out += counted.left_out
            if counted.digest is not None:
                digests[name] = counted.digest
        if base is not None:
            check_digests(packed_masks, digests, base)
        families = gathering.families()
        shown = map if map is not None else _most_dispersed(tensors)
        return Structure(
            masks=tuple(
                MaskStructure(
                    mask=mask_record(mask, mask.path, digests),
                    control_seed=seed + index,
                    families=tuple(family_of(units, index) for units in families),
                    tensors=tuple(part[index] for parts in tensors.values() for part in parts),
                    map=None if shown is None else counting.map_of(index, shown),
                )
                for index, mask in enumerate(packed_masks)
            ),
            shared=shared_units(families),
            left_out=_summed(left_out),
            config=origin,
            base=None if base is None else record_of(base, digests),
            provenance=made_now(device="cpu", seed=seed),
        )


def _most_dispersed(tensors: Mapping[str, Sequence[Sequence[TensorStructure]]]) -> str | None:
    """Name of the matrix whose lines differ most in the first mask."""

    def highest(name: str) -> float:
        axes = [axis for part in tensors[name] for axis in (part[0].rows, part[0].columns)]
        return max((axis.dispersion for axis in axes if axis.dispersion is not None), default=0.0)

    return max((name for name in tensors if tensors[name]), key=highest, default=None)


def _summed(left_out: Iterable[LeftOut]) -> tuple[LeftOut, ...]:
    """Merge the rows of a kind that have the same reason."""
    rows: dict[tuple[str, str, str], LeftOut] = {}
    for gap in left_out:
        key = gap.family, gap.kind, gap.reason
        if key in rows:
            gap = replace(
                rows[key],
                num_tensors=rows[key].num_tensors + 1,
                num_elements=rows[key].num_elements + gap.num_elements,
            )
        rows[key] = gap
    return tuple(rows.values())


@dataclass(eq=False)
class _Counted:
    """The counts of one tensor.

    `digest` is the xxh3-128 of its stored bytes, None without base; `tensors` has the stripes of
    each part in each mask, if it is a matrix; `experts` are the parts that belong to one expert
    entirely.
    """

    digest: str | None
    tensors: list[list[TensorStructure]] = field(default_factory=list)
    units: list[tuple[Membership, Units]] = field(default_factory=list)
    experts: list[ExpertTensor] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Counting:
    """The settings of one call, which its threads share."""

    masks: Sequence[PackedMask]
    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any]
    layout: Layout
    base: Checkpoint | None
    seed: int
    counters: Counters

    def run(self, num_threads: int, progress: Progress | None) -> Iterator[tuple[str, _Counted]]:
        """Count all tensors of the masks; those that only base has are hashed."""
        stored = {} if self.base is None else self.base.tensors
        names = [*self.shapes, *(name for name in stored if name not in self.shapes)]
        num_bytes = [
            len(self.masks) * num_packed_bytes(prod(self.shapes.get(name, (0,))))
            + (stored[name].num_bytes if name in stored else 0)
            for name in names
        ]
        with ThreadPoolExecutor(num_threads, thread_name_prefix="trimtab-structure") as executor:
            try:
                counted = executor.map(self.one, names)
                for name, result, size in zip(names, counted, num_bytes, strict=True):
                    yield name, result
                    if progress is not None:
                        progress(size, sum(num_bytes))
            except BaseException:
                executor.shutdown(cancel_futures=True)
                raise

    def one(self, name: str) -> _Counted:
        """Count one tensor: its lines and units."""
        stored = None if self.base is None else self.base.tensors.get(name)
        if name not in self.shapes:
            assert stored is not None
            return _Counted(Source(stored, stored.dtype, None, new_buffer()).finish())
        shape = self.shapes[name]
        bits = [self.bits(index, name) for index in range(len(self.masks))]
        packed = [of_mask for of_mask, _ in bits] + [of_control for _, of_control in bits]
        parts, digest = count_tensor(name, shape, packed, self.config, self.counters, stored)
        result = _Counted(digest)
        for counts in parts:
            part = counts.part
            if is_matrix(shape):
                result.tensors.append(stripes_of(name, shape, counts, len(self.masks)))
            expert = expert_of(name, part)
            if expert is not None:
                result.experts.append(_of_expert(expert, counts))
            memberships, reasons = memberships_of(name, part, shape, self.layout)
            result.units += [(lines, counts.units(lines)) for lines in memberships]
            result.left_out += [
                LeftOut(family, part.kind, reason, 1, counts.num_elements, part.name_in(name))
                for family, reason in reasons
            ]
        return result

    def bits(self, index: int, name: str) -> tuple[Packed, Packed]:
        """The bits of a tensor in a mask, and in its random control."""
        shape = self.shapes[name]
        tensor = self.masks[index].tensor(name, shape)
        control = random_tensor(shape, tensor.num_selected, seed=self.seed + index, name=name)
        return tensor.bits, control.bits

    def map_of(self, index: int, name: str) -> ElementMap:
        """Draw a matrix of a mask."""
        shape = self.shapes[name]
        matrix = prod(shape[:-1]), shape[-1]
        packed = self.bits(index, name)
        lines, control_lines = (
            self.counters.bit_sums(bits, matrix[1], range(matrix[0]), range(matrix[1]))
            for bits in packed
        )
        return element_map(name, matrix, packed[0], lines, control_lines, self.counters)


def _of_expert(expert: int, counts: PartCounts) -> ExpertTensor:
    base, half = counts.base, len(counts.rows) // 2
    none = np.zeros(0, dtype=np.int64)
    return ExpertTensor(
        layer=counts.part.layer,
        kind=counts.part.kind,
        expert=expert,
        num_elements=counts.num_elements,
        selected=counts.selected[:half],
        exponents=none if base is None else base.exponents,
        sizes=none if base is None else base.sizes,
        selected_sizes=none.reshape(half, 0) if base is None else base.selected,
    )
