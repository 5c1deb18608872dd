"""The result of locating masks: by unit, by tensor, and how masks share units.

There are two nulls: `null` preserves the count of each tensor, `matched` (with a base) that of each
tensor × exponent bin of the base weights. Reports need only the `Structure` (or its JSON).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import ClassVar

from trimtab.results.records import CheckpointRecord, MaskRecord
from trimtab.results.result import Result
from trimtab.results.schema import Provenance
from trimtab.words import one_line, out_of, plural

FALSE_DISCOVERY_RATE = 0.05
"""Units with a q of at most this are called significant."""


@dataclass(frozen=True)
class Test:
    """The units of a family against one null.

    Attributes:
        num_tested: Units whose count can vary.
        num_up: Of them, those with significantly more than expected: q at most
            `FALSE_DISCOVERY_RATE`, by Benjamini and Hochberg over the tested units of the family.
        num_down: The same with fewer.
        overdispersion: Mean of z²: 1 where nothing clusters; None where nothing is tested. It grows
            with the size of units.
        spread: How far units differ in truth, whatever their size: the standard deviation of
            count / expected beyond what chance adds to it; 0 where there is no more than that.
    """

    num_tested: int
    num_up: int
    num_down: int
    overdispersion: float | None
    spread: float | None

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        if min(self.num_up, self.num_down) < 0 or self.num_up + self.num_down > self.num_tested:
            yield f"{self.num_up} up and {self.num_down} down of {self.num_tested} tested"


@dataclass(frozen=True)
class Concentration:
    """How unevenly the selected elements lie over the units of a family.

    Attributes:
        gini: 0 where all units have the same count, near 1 where one has all.
        entropy: Of the shares of units, in units of its maximum: 1 where all have the same.
    """

    gini: float | None
    entropy: float | None


@dataclass(frozen=True)
class CurvePoint:
    """A place in the order of a family's units by selected / expected, highest first.

    Attributes:
        rank: Place, from 1.
        num_selected: Of the mask's unit of that rank.
        expected: By the null.
        control_num_selected: Of the control's unit of that rank.
        control_expected: By the null.
    """

    rank: int
    num_selected: int
    expected: float
    control_num_selected: int
    control_expected: float

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        if min(self.rank, self.num_selected, self.control_num_selected) < 0 or self.expected < 0:
            yield "a rank, a count or an expectation is negative"


@dataclass(frozen=True)
class Unit:
    """One unit.

    Attributes:
        layer: Its layer, or None.
        index: Its number in the layer, or in the model.
        num_elements: Elements of all its parts.
        num_selected: How many the mask selects.
        expected: How many the null expects.
        z: (selected - expected) / standard deviation; None where the count cannot vary.
        p: Two-sided.
        q: Of Benjamini and Hochberg over the family.
        control_num_selected: How many the random control selects.
        control_z: Its z.
        matched_expected: As `expected`, with the exponents of base weights; None without base.
        matched_z: Likewise.
        matched_p: Likewise.
        matched_q: Likewise.
    """

    layer: int | None
    index: int
    num_elements: int
    num_selected: int
    expected: float
    z: float | None
    p: float | None
    q: float | None
    control_num_selected: int
    control_z: float | None
    matched_expected: float | None
    matched_z: float | None
    matched_p: float | None
    matched_q: float | None

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        for name in ("num_selected", "control_num_selected"):
            if not 0 <= getattr(self, name) <= self.num_elements:
                yield f"{name} is {getattr(self, name)} of {self.num_elements}"
        if not 0 <= self.expected <= self.num_elements * (1 + 1e-9):
            yield f"expected is {self.expected} of {self.num_elements}"

    __repr__ = one_line


@dataclass(frozen=True)
class Family:
    """All units of a kind.

    Attributes:
        name: `head`, `kv_group`, `neuron`, `channel`, `token` or `expert`.
        num_units: How many there are.
        num_elements: Elements of all of them.
        num_selected: How many the mask selects.
        null: Against the counts of tensors.
        control: The same of the random control: what chance alone looks like.
        matched: Against the counts of tensors × exponents; None without base.
        from_magnitude: Overdispersion that the magnitudes of base weights alone lead one to expect
            under `null`: that of a mask which is random but for them.
        concentration: Of the mask.
        control_concentration: Of the control.
        curve: Units in order, at most some hundred of them.
        units: All units by layer and index; or, of a family of very many, those furthest from the
            null, highest z first.
    """

    name: str
    num_units: int
    num_elements: int
    num_selected: int
    null: Test
    control: Test
    matched: Test | None
    from_magnitude: float | None
    concentration: Concentration
    control_concentration: Concentration
    curve: tuple[CurvePoint, ...]
    units: tuple[Unit, ...]

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        if not 0 <= self.num_selected <= self.num_elements:
            yield f"num_selected is {self.num_selected} of {self.num_elements}"
        if len(self.units) > self.num_units or max(self.null.num_tested, 0) > self.num_units:
            yield f"more than its {self.num_units} units"

    __repr__ = one_line

    @property
    def has_all_units(self) -> bool:
        """Whether `units` are all of them."""
        return len(self.units) == self.num_units


@dataclass(frozen=True)
class AxisStructure:
    """The rows, or the columns, of a matrix.

    Attributes:
        num_lines: Rows or columns.
        dispersion: Mean of z² over the lines: 1 where there are no stripes; None where no line can
            vary.
        spread: As `Test.spread`.
        control: Dispersion of the random control.
        matched: Dispersion against the counts of tensor × exponent; None without base.
        matched_spread: Spread against them; None without base.
        from_magnitude: Dispersion that magnitudes alone lead one to expect; None without base.
    """

    num_lines: int
    dispersion: float | None
    spread: float | None
    control: float | None
    matched: float | None
    matched_spread: float | None
    from_magnitude: float | None

    __repr__ = one_line


@dataclass(frozen=True)
class TensorStructure:
    """The stripes of one matrix, or of a part of a fused tensor.

    Attributes:
        name: Of the tensor; a part adds its label.
        layer: Index of the transformer layer, or None.
        kind: `q_proj`, `down_proj`, ...
        shape: Of the part.
        num_selected: Elements that the mask selects.
        rows: Its rows.
        columns: Its columns.
    """

    name: str
    layer: int | None
    kind: str
    shape: tuple[int, ...]
    num_selected: int
    rows: AxisStructure
    columns: AxisStructure

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        if min(self.shape, default=0) < 0 or not 0 <= self.num_selected <= prod(self.shape):
            yield f"num_selected is {self.num_selected}, of the shape {list(self.shape)}"

    __repr__ = one_line


@dataclass(frozen=True)
class Profile:
    """How many elements the lines of a matrix have, in order, neighbouring lines together.

    Attributes:
        starts: First line of each group.
        line_length: Elements of a line.
        lowest: Fewest selected elements of a line of the group.
        highest: Most of them.
        control_lowest: The same of the random control.
        control_highest: Likewise.
    """

    starts: tuple[int, ...]
    line_length: int
    lowest: tuple[int, ...]
    highest: tuple[int, ...]
    control_lowest: tuple[int, ...]
    control_highest: tuple[int, ...]

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        lists = self.lowest, self.highest, self.control_lowest, self.control_highest
        if any(len(counts) != len(self.starts) for counts in lists):
            yield "its lists have different lengths"
        elif not all(0 <= num <= self.line_length for counts in lists for num in counts):
            yield f"a count is not between 0 and line_length, {self.line_length}"

    __repr__ = one_line


@dataclass(frozen=True)
class ElementMap:
    """Where in a matrix the selected elements lie, in blocks.

    Attributes:
        name: Of the tensor, as stored.
        shape: Its 2-D view.
        num_selected: Elements that the mask selects.
        row_edges: First row of each block, and the number of rows.
        column_edges: First column of each block, and the number of columns.
        counts: Selected elements of each block, row by row.
        rows: Its rows in order.
        columns: Its columns in order.
    """

    name: str
    shape: tuple[int, ...]
    num_selected: int
    row_edges: tuple[int, ...]
    column_edges: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...]
    rows: Profile
    columns: Profile

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        num_rows, num_columns = len(self.row_edges) - 1, len(self.column_edges) - 1
        if len(self.shape) != 2 or (
            (self.row_edges[:1], self.column_edges[:1]) != ((0,), (0,))
            or (self.row_edges[-1], self.column_edges[-1]) != self.shape
            or any(
                a >= b for edges in (self.row_edges, self.column_edges) for a, b in pairwise(edges)
            )
        ):
            yield f"its blocks do not fill the shape {list(self.shape)}"
        elif [len(row) for row in self.counts] != [num_columns] * num_rows:
            yield f"counts is not of {num_rows} × {num_columns} blocks"
        elif sum(map(sum, self.counts)) != self.num_selected:
            yield f"num_selected is {self.num_selected}, and counts adds up to another number"
        elif any(
            not 0 <= num <= (c - a) * (d - b)
            for (a, c), row in zip(pairwise(self.row_edges), self.counts, strict=True)
            for (b, d), num in zip(pairwise(self.column_edges), row, strict=True)
        ):
            yield "a count is not between 0 and the size of its block"

    __repr__ = one_line


@dataclass(frozen=True)
class MaskStructure:
    """Where one mask lives.

    Attributes:
        mask: What it was.
        control_seed: Of its random control.
        families: Of units, in the order of `units.FAMILIES`.
        tensors: Matrices in the order of the mask.
        map: Of one tensor; None where no tensor is a matrix.
    """

    mask: MaskRecord
    control_seed: int
    families: tuple[Family, ...]
    tensors: tuple[TensorStructure, ...]
    map: ElementMap | None

    def __repr__(self) -> str:
        selected = out_of(self.mask.num_selected, self.mask.num_elements, "element")
        families = ", ".join(family.name for family in self.families)
        return one_line(self, f"{self.mask.id}: {selected} selected, by {families}")


@dataclass(frozen=True)
class Common:
    """Significant units that two masks have in common.

    Attributes:
        null: `tensor` or `magnitude`: against which they are significant.
        direction: `up` or `down`.
        num_first: Significant units of the first mask.
        num_second: Of the second.
        num_common: Of both.
        chance: Expected in common if they were independent.
        log10_p: log10 of the two-sided probability of a number as far from chance.
    """

    null: str
    direction: str
    num_first: int
    num_second: int
    num_common: int
    chance: float
    log10_p: float

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        if self.null not in ("tensor", "magnitude") or self.direction not in ("up", "down"):
            yield f"null is {self.null[:40]!a} and direction {self.direction[:40]!a}"
        if not 0 <= self.num_common <= min(self.num_first, self.num_second):
            yield f"num_common is {self.num_common} of {self.num_first} and {self.num_second}"


@dataclass(frozen=True)
class SharedUnits:
    """Whether two masks favour the same units of a family.

    Attributes:
        first: Place of the first mask, from 0.
        second: Of the second.
        family: Name of the family.
        num_units: Units that can vary in both.
        spearman: Rank correlation of their z.
        control_spearman: The same of their random controls.
        matched_spearman: Of their z against the counts of tensor × exponent; None without base.
        common: Significant units of both.
    """

    first: int
    second: int
    family: str
    num_units: int
    spearman: float | None
    control_spearman: float | None
    matched_spearman: float | None
    common: tuple[Common, ...]

    __repr__ = one_line


@dataclass(frozen=True)
class LeftOut:
    """What is not part of any unit of a family, and why.

    Attributes:
        family: Which it could have been of; `all` where not even that is known.
        kind: Of the tensors.
        reason: In words.
        num_tensors: How many, counting parts of fused ones.
        num_elements: Their elements.
        example: Name of the first.
    """

    family: str
    kind: str
    reason: str
    num_tensors: int
    num_elements: int
    example: str


@dataclass(frozen=True, eq=False)
class Structure(Result):
    """Where one mask or several masks of a model live.

    Attributes:
        masks: One entry for each, in the order given.
        shared: One entry for each pair of masks and family.
        left_out: What could not be told.
        config: Where the head counts come from; None without a config.
        base: The checkpoint whose weights are matched by magnitude, or None.
        provenance: trimtab version, command, date, seed, device.
    """

    FORMAT = "trimtab.structure"
    NAME = "structure result"
    COMMAND = "trimtab mask structure"
    ROWS = "masks"
    PLAIN: ClassVar = (
        *("false_discovery_rate=_rate", "masks", "shared", "left_out"),
        *("config", "base", "provenance"),
    )
    _rate: ClassVar = FALSE_DISCOVERY_RATE

    masks: tuple[MaskStructure, ...]
    shared: tuple[SharedUnits, ...]
    left_out: tuple[LeftOut, ...]
    config: str | None
    base: CheckpointRecord | None
    provenance: Provenance = field(default_factory=dict)

    def __repr__(self) -> str:
        ids = ", ".join(str(each.mask.id) for each in self.masks)
        return one_line(self, f"{plural(len(self.masks), 'mask')}: {ids}")

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        if not self.masks:
            yield "it is of no mask"
        for index, of in enumerate(self.shared):
            if not 0 <= of.first < of.second < len(self.masks):
                yield f"shared[{index}] is of masks {of.first} and {of.second}"
        names = [[family.name for family in of.families] for of in self.masks]
        if any(of != names[0] for of in names[1:]):
            yield "its masks have different families"
