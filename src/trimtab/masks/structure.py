"""`structure`: where in a network masks live: heads, neurons, channels, rows and columns.

One streaming pass, tensor by tensor: the bits of a tensor are summed by row and by column, once
for each mask and once for its random control, and its lines are gathered into units. Memory is the
bits of the tensors at work, and what is kept of units; of a base, a few buffers and a small
histogram of each row and column. One matrix is drawn at the resolution of a screen: blocks of
elements, and its rows and columns in order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints import Checkpoint, opened, parts_of
from trimtab.checkpoints.folder import read_config, read_json
from trimtab.checkpoints.stream import Progress, Source, new_buffer
from trimtab.elements.bits import Counters
from trimtab.elements.fast import counters_for
from trimtab.errors import CheckpointNotFoundError, MaskError
from trimtab.masks.header import PackedMask, mask_record
from trimtab.masks.matching import check_digests, check_shapes, in_common, named_alike
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
    PartCounts,
    Units,
    belongings,
    count_tensor,
    expert_of,
)
from trimtab.results.records import made_now, record_of
from trimtab.words import first_few

__all__ = [
    "MOST_BLOCKS",
    "Structure",
    "config_of",
    "element_map",
    "is_matrix",
    "structure",
]


def config_of(
    base: Checkpoint | None, config: str | os.PathLike[str] | None
) -> tuple[str | None, Mapping[str, Any]]:
    """Where the config comes from, and the config; None and empty if there is none.

    Raises:
        CheckpointError: It cannot be read.
    """
    if config is not None:
        path = Path(config)
        is_folder = path.is_dir() or not os.path.lexists(path)
        found = read_config(path) if is_folder else read_json(path)
        if not found:
            raise CheckpointNotFoundError(f"{path}: expected a config.json, and there is none")
        return str(path), found
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
    """Draw a matrix together.

    Args:
        name: Of the tensor.
        shape: Of its 2-D view.
        bits: Its packed bits.
        lines: Selected elements of its rows, and of its columns.
        control_lines: The same of the random control.
        counters: Do the counting.
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
    """Where blocks of one size begin, and the end; the last may be smaller."""
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
    """Ask where masks live: by head, neuron, channel, row and column, against chance.

    Every mask stands beside a random control with as many elements in each tensor.

    Args:
        masks: Masks of one model, or the files of them; at least one.
        base: The checkpoint that they were made against: its config says how many heads there are,
            and its weights give the null that is matched by magnitude.
        config: A folder with a `config.json`, or such a file; it counts more than that of base.
        map: Name of the tensor to map; by default the matrix whose rows or columns are most
            dispersed in the first mask.
        seed: Of the control of the first mask; that of the next is one more.
        threads: Tensors counted at the same time; by default the processors there are, at most 8.
        progress: Called with bytes read, and bytes in all.

    Returns:
        The result.

    Raises:
        MaskError: A file is no mask; or `map` is no matrix of the masks.
        MaskMismatchError: The masks are of different models, or of another one than base.
        CheckpointError: Base or config cannot be read.
    """
    if not masks:
        raise MaskError("structure needs a mask")
    with ExitStack() as stack:
        given = opened_masks(masks, stack)
        if base is not None:
            (base,) = stack.enter_context(opened(base))
        given = named_alike(given, base)
        origin, settings = config_of(base, config)
        shapes = in_common(given).shapes
        if base is not None:
            stored = base.tensors
            # What base lacks is let pass where nothing of it is selected.
            selected = {name for mask in given for name in mask if mask.num_selected(name)}
            check_shapes({n: shapes[n] for n in shapes if n in stored or n in selected}, base)
        if map is not None and not is_matrix(shapes.get(map)):
            matrices = [name for name, shape in shapes.items() if is_matrix(shape)]
            raise MaskError(f"{map} is no matrix of the masks; those are {first_few(matrices)}")
        run = _Run(given, shapes, settings, base, seed, progress)
        run.count(threads or min(os.cpu_count() or 1, 8))
        families = run.gathering.families()
        digests = run.digests
        if base is not None:
            check_digests(given, digests, base)
        shown = map if map is not None else run.most_dispersed()
        return Structure(
            masks=tuple(
                MaskStructure(
                    mask=mask_record(mask, mask.path, digests),
                    control_seed=seed + place,
                    families=tuple(family_of(units[place]) for units in families.values()),
                    tensors=tuple(run.tensors[place]),
                    map=run.map_of(place, shown),
                )
                for place, mask in enumerate(given)
            ),
            shared=shared_units(families),
            left_out=tuple(run.left_out.values()),
            config=origin,
            base=None if base is None else record_of(base, digests),
            provenance=made_now(device="cpu", seed=seed),
        )


@dataclass(frozen=True, eq=False)
class _Counted:
    """What a thread found in one tensor."""

    digest: str | None
    tensors: list[list[TensorStructure]]
    units: list[Units]
    experts: list[ExpertTensor]
    left_out: list[LeftOut]


class _Run:
    """The settings of one call, and what is kept of its tensors."""

    def __init__(
        self,
        masks: Sequence[PackedMask],
        shapes: Mapping[str, tuple[int, ...]],
        config: Mapping[str, Any],
        base: Checkpoint | None,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self._masks = masks
        self._shapes = shapes
        self._config = config
        self._base = base
        self._seed = seed
        self._progress = progress
        self._counters: Counters = counters_for(sum(prod(shape) for shape in shapes.values()))
        kinds = {name: parts_of(name, shape, {})[0].kind for name, shape in shapes.items()}
        self._layout = Layout.of(config, shapes, kinds)
        self.gathering = Gathering(len(masks), seed)
        self.tensors: list[list[TensorStructure]] = [[] for _ in masks]
        self.left_out: dict[tuple[str, str, str], LeftOut] = {}
        self.digests: dict[str, str] = {}
        self._dispersion: dict[str, float] = {}

    def count(self, num_threads: int) -> None:
        """Go through all tensors; what is found is added up in their order."""
        names = [*self._shapes, *(n for n in self._others() if n not in self._shapes)]
        sizes = [self._num_bytes(name) for name in names]
        with ThreadPoolExecutor(num_threads, thread_name_prefix="trimtab-structure") as executor:
            try:
                for name, found, size in zip(
                    names, executor.map(self._one, names), sizes, strict=True
                ):
                    self._add(name, found)
                    if self._progress is not None:
                        self._progress(size, sum(sizes))
            except BaseException:
                executor.shutdown(cancel_futures=True)
                raise

    def _others(self) -> Sequence[str]:
        """Tensors of base that are in no mask: they are hashed, so that all of base is known."""
        return () if self._base is None else tuple(self._base.tensors)

    def _num_bytes(self, name: str) -> int:
        num = len(self._masks) * num_packed_bytes(prod(self._shapes.get(name, (0,))))
        in_base = self._base is not None and name in self._base.tensors
        return num + (self._base.tensors[name].num_bytes if self._base and in_base else 0)

    def _bits(self, place: int, name: str) -> tuple[Packed, Packed]:
        """Of a tensor in a mask, and in its random control."""
        shape = self._shapes[name]
        tensor = self._masks[place].tensor(name, shape)
        control = random_tensor(shape, tensor.num_selected, seed=self._seed + place, name=name)
        return tensor.bits, control.bits

    def _one(self, name: str) -> _Counted:
        stored = None if self._base is None else self._base.tensors.get(name)
        if name not in self._shapes:
            assert stored is not None
            hashed = Source(stored, stored.dtype, None, new_buffer()).finish()
            return _Counted(hashed, [], [], [], [])
        shape = self._shapes[name]
        places = range(len(self._masks))
        bits = [self._bits(place, name) for place in places]
        packed = [of[which] for which in (0, 1) for of in bits]
        parts, digest = count_tensor(name, shape, packed, self._config, self._counters, stored)
        tensors = [
            [stripes_of(name, shape, counts, place) for counts in parts if is_matrix(shape)]
            for place in places
        ]
        found = _Counted(digest, tensors, [], [], [])
        for counts in parts:
            self._sort(name, shape, counts, found)
        return found

    def _sort(self, name: str, shape: tuple[int, ...], counts: PartCounts, into: _Counted) -> None:
        """Find the units of a part of a tensor."""
        part = counts.part
        expert = expert_of(name, part)
        if expert is not None:
            into.experts.append(_of_expert(expert, counts))
        found, reasons = belongings(name, part, shape, self._layout)
        into.units.extend(counts.units(belonging) for belonging in found)
        into.left_out.extend(
            LeftOut(family, part.kind, reason, 1, counts.num_elements, part.name_in(name))
            for family, reason in reasons
        )

    def _add(self, name: str, found: _Counted) -> None:
        for units in found.units:
            self.gathering.add(units)
        for expert in found.experts:
            self.gathering.add_expert(expert)
        for gap in found.left_out:
            key = gap.family, gap.kind, gap.reason
            before = self.left_out.get(key)
            self.left_out[key] = (
                gap
                if before is None
                else replace(
                    before,
                    num_tensors=before.num_tensors + 1,
                    num_elements=before.num_elements + gap.num_elements,
                )
            )
        if found.digest is not None:
            self.digests[name] = found.digest
        for kept, new in zip(self.tensors, found.tensors, strict=False):
            kept.extend(new)
        for told in found.tensors[0] if found.tensors else ():
            axes = (told.rows.dispersion, told.columns.dispersion)
            highest = max((value for value in axes if value is not None), default=0.0)
            self._dispersion[name] = max(self._dispersion.get(name, 0.0), highest)

    def most_dispersed(self) -> str | None:
        """Name of the matrix of the first mask whose lines differ most."""
        return max(self._dispersion, key=self._dispersion.__getitem__, default=None)

    def map_of(self, place: int, name: str | None) -> ElementMap | None:
        """Draw a matrix of a mask."""
        if name is None:
            return None
        shape = self._shapes[name]
        matrix = prod(shape[:-1]), shape[-1]
        packed = self._bits(place, name)
        lines, control_lines = (
            self._counters.bit_sums(bits, matrix[1], range(matrix[0]), range(matrix[1]))
            for bits in packed
        )
        return element_map(name, matrix, packed[0], lines, control_lines, self._counters)


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
