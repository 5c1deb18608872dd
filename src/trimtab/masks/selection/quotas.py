"""How many elements to select, and where: the densities at which two masks are compared fairly.

Masks of equal density can be matched in three ways, each stricter than the one before:

=============  ===================================================================================
`total`        the same number in the whole model; possibly all from one tensor
`tensor`       the same number in each tensor
`magnitude`    the same number in each tensor × exponent bin of the stored base weight
               (`trimtab.elements.dtypes`): what is left does not depend on small weights
=============  ===================================================================================

`random_matched`, the strictest random control, matches the last at random. A training step moves a
stored weight only if it is large relative to the weight (see `trimtab.elements.absorption`), so
masks
of two trainings both favour small weights; only this control favours them as much.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.checkpoints.weights import CHUNK_ELEMENTS, elements_of, read_weights
from trimtab.elements.dtypes import Bits, exponent_bins, num_exponent_bins
from trimtab.errors import MaskError
from trimtab.masks.header import provenance_with
from trimtab.masks.mask import Mask
from trimtab.masks.matching import base_tensors, check_shapes, named_as_in, named_like
from trimtab.masks.packed import PackedTensor, unpacked
from trimtab.masks.random import Lots
from trimtab.words import one_line

Match = Literal["total", "tensor", "magnitude"]
MATCHES: tuple[Match, ...] = get_args(Match)

Counts = NDArray[np.int64]
"""A number for each stratum."""


@dataclass(frozen=True, eq=False)
class Group:
    """Tensors whose elements compete for the same quotas.

    Attributes:
        names: Names of the tensors.
        sizes: Elements in each stratum.
        nums: How many of them to select.
    """

    names: tuple[str, ...]
    sizes: Counts
    nums: Counts

    __repr__ = one_line

    @property
    def name(self) -> str:
        """Name for drawing random numbers: that of its tensor, if it has only one."""
        return self.names[0] if len(self.names) == 1 else ""


@dataclass(frozen=True, eq=False)
class Quotas:
    """How many elements to select in each stratum of a model.

    Make one with `Quotas.of_density` or `Quotas.like`.

    Attributes:
        match: What the strata are.
        groups: Every tensor is in one of them.
        shapes: Name -> shape of the tensors.
        origin: Source of the numbers, for the provenance of a mask.
        base: The open checkpoint whose exponents are the strata; None for the other matches.
        digests: Name -> xxh3-128 of the stored bytes, of the tensors read to count strata.
    """

    match: Match
    groups: tuple[Group, ...]
    shapes: Mapping[str, tuple[int, ...]]
    origin: Mapping[str, Any]
    base: Checkpoint | None
    digests: Mapping[str, str]

    __repr__ = one_line

    @classmethod
    def of_density(
        cls,
        density: float,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        match: Match = "tensor",
        base: Checkpoint | None = None,
        progress: Progress | None = None,
    ) -> Quotas:
        """The same density in every group, and in every stratum to within one element.

        Args:
            density: Share of the elements, 0 to 1.
            shapes: Name -> shape of the tensors to select from.
            match: What the strata are.
            base: An open checkpoint with these tensors, for `magnitude`.
            progress: Called while base is read.

        Raises:
            MaskError: The density is not between 0 and 1, or `magnitude` has no base.
        """
        if not 0 <= density <= 1:
            raise MaskError(f"density {density}: expected a number from 0 to 1")

        def share_of(sizes: Counts) -> Counts:
            # Rounding the running sum keeps the sum of all strata rounded too.
            ends = np.floor(density * np.cumsum(sizes) + 0.5).astype(np.int64)
            return np.diff(ends, prepend=0)

        groups, digests = _groups(shapes, None, match, base, 1, progress)
        groups = tuple(replace(group, nums=share_of(group.sizes)) for group in groups)
        origin = {"match": match, "density": density}
        return cls(match, groups, shapes, origin, base if match == "magnitude" else None, digests)

    @classmethod
    def like(
        cls,
        mask: Mask,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        *,
        match: Match = "tensor",
        base: Checkpoint | None = None,
        num_passes: int = 1,
        progress: Progress | None = None,
    ) -> Quotas:
        """The numbers that a mask selects.

        Args:
            mask: The mask.
            shapes: Name -> shape of the tensors that can be selected from, by default the mask's.
                Those
                that the mask lacks are left out.
            match: What the strata are.
            base: An open checkpoint with these tensors, for `magnitude`.
            num_passes: Total number of passes over base, for `progress`.
            progress: Called while base is read.

        Raises:
            MaskError: `magnitude` has no base.
            MaskMismatchError: The mask does not fit the shapes, or was made against another base.
        """
        shapes = {name: mask.shape(name) for name in mask} if shapes is None else shapes
        mask = named_like(mask, shapes)
        mask.check(shapes)
        own = {name: shape for name, shape in shapes.items() if name in mask}
        groups, digests = _groups(own, mask, match, base, num_passes, progress)
        mask.check(shapes, digests)
        origin = {"match": match, "like": mask.digest}
        return cls(match, groups, own, origin, base if match == "magnitude" else None, digests)

    @property
    def num_selected(self) -> int:
        """Elements to select in all."""
        return sum(int(group.nums.sum()) for group in self.groups)

    def strata(self, name: str) -> Iterator[NDArray[np.uint16]]:
        """The stratum of each element of a tensor, in chunks of `weights.CHUNK_ELEMENTS`."""
        if self.base is None:
            return _one_stratum(prod(self.shapes[name]))
        tensor = self.base.tensors[name]
        return (exponent_bins(bits, tensor.dtype) for bits in elements_of(tensor))


def _one_stratum(num_elements: int) -> Iterator[NDArray[np.uint16]]:
    """The stratum of each element of a tensor where there is only one."""
    zeros = np.zeros(min(num_elements, CHUNK_ELEMENTS), dtype=np.uint16)
    return (zeros[: num_elements - at] for at in range(0, num_elements, CHUNK_ELEMENTS))


def _groups(
    shapes: Mapping[str, tuple[int, ...]],
    mask: Mask | None,
    match: Match,
    base: Checkpoint | None,
    num_passes: int,
    progress: Progress | None,
) -> tuple[tuple[Group, ...], Mapping[str, str]]:
    """The groups, with what a mask selects of each stratum; and the digests of what was read."""
    if match == "magnitude":
        if base is None:
            raise MaskError(
                "matching by magnitude needs the base whose weights the elements are: add --base"
            )
        check_shapes(shapes, base)
        counted, digests = read_weights(
            base, shapes, partial(_count_bins, mask), num_passes=num_passes, progress=progress
        )
        return tuple(Group((name,), *counts) for name, counts in counted.items()), digests
    sizes = [prod(shape) for shape in shapes.values()]
    nums = [0 if mask is None else mask.num_selected(name) for name in shapes]
    if match == "total":
        return (Group(tuple(shapes), _only(sum(sizes)), _only(sum(nums))),), {}
    return tuple(
        Group((name,), _only(size), _only(num))
        for name, size, num in zip(shapes, sizes, nums, strict=True)
    ), {}


def _only(num: int) -> Counts:
    """The counts of a single stratum."""
    return np.array([num], dtype=np.int64)


def _count_bins(
    mask: Mask | None, tensor: StoredTensor, chunks: Iterator[tuple[int, Bits]]
) -> tuple[Counts, Counts]:
    """Elements of a tensor in each exponent bin, and those that a mask selects."""
    num_bins = num_exponent_bins(tensor.dtype)
    sizes, nums = np.zeros(num_bins, dtype=np.int64), np.zeros(num_bins, dtype=np.int64)
    for start, bits in chunks:
        bins = exponent_bins(bits, tensor.dtype)
        sizes += np.bincount(bins, minlength=num_bins)
        if mask is not None:
            selected = unpacked(mask.packed(tensor.name), start, start + len(bins))
            nums += np.bincount(bins[selected], minlength=num_bins)
    return sizes, nums


def random_matched(
    mask: Mask,
    base: str | os.PathLike[str] | Checkpoint,
    seed: int,
    *,
    progress: Progress | None = None,
) -> Mask:
    """Select the same number of elements of each tensor × exponent bin as a mask does, at random.

    Every choice of that many elements of each bin is equally likely.

    Args:
        mask: The mask to match.
        base: The checkpoint that it was made against; read twice.
        seed: With a tensor's name it decides the tensor's elements, on any machine and whatever
            other tensors there are.
        progress: Called after each chunk, from any thread.

    Raises:
        CheckpointError: Base cannot be read.
        MaskMismatchError: The mask does not fit base, or was made against another one.
    """
    with opened(base) as (base,):
        mask = named_as_in(mask, base)
        shapes = {name: tensor.shape for name, tensor in base.tensors.items()}
        quotas = Quotas.like(
            mask, shapes, match="magnitude", base=base, num_passes=2, progress=progress
        )
        groups = {group.name: group for group in quotas.groups}

        def draw(tensor: StoredTensor, chunks: Iterator[tuple[int, Bits]]) -> PackedTensor:
            group = groups[tensor.name]
            lots = Lots(group.sizes.tolist(), group.nums.tolist(), seed=seed, name=group.name)
            parts = (lots.draw(exponent_bins(bits, tensor.dtype)) for _, bits in chunks)
            return PackedTensor.of_parts(tensor.shape, parts)

        drawn, _ = read_weights(base, quotas.shapes, draw, num_passes=2, progress=progress)
        made_against = {**mask.base, **base_tensors(base, quotas.digests)}
    # Of what base lacks, the mask selects nothing.
    tensors = {n: drawn[n] if n in drawn else mask.tensor(n, mask.shape(n)) for n in mask}
    step = {"step": "random", "match": "magnitude", "seed": seed, "of": mask.digest}
    return Mask(tensors, made_against, provenance_with(mask.provenance, step))
