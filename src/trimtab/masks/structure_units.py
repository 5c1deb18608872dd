"""Which units of a network the lines of a tensor belong to, and what is selected of each.

A weight matrix is stored as `[outputs, inputs]`: row `i` computes output `i`, column `j` reads
input
`j`. So the rows of `q_proj` belong to attention heads, the columns of `down_proj` to MLP neurons,
and
the other side of what reads or writes the residual stream to its channels; GPT-2 stores matrices
transposed. What names, shapes and the config do not tell is left out, with the reason: a wrong unit
would look like a finding. Both nulls of a result are computed here; a fused tensor counts as its
parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.architectures import FUSIONS
from trimtab.checkpoints.names import TensorPart, language_config, parts_of
from trimtab.checkpoints.stream import Chunk, Source, chunks_of, new_buffer, overlaps
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.elements.bits import Counters
from trimtab.elements.dtypes import exponent_bins, num_exponent_bins
from trimtab.masks.packed import unpacked_block
from trimtab.results.urn import Moments, hypergeometric

FAMILIES: Mapping[str, str] = {
    "head": "attention heads: rows of q_proj, columns of o_proj",
    "kv_group": "KV groups: rows of k_proj and v_proj",
    "neuron": "MLP neurons: rows of gate_proj and up_proj, columns of down_proj",
    "channel": "residual channels: whatever reads or writes them, in all layers",
    "token": "vocabulary rows: rows of the embedding and of the head",
    "expert": "experts: all that belongs to one of them",
}
"""Family of units -> its members, in the order of reports."""

Axis = Literal["rows", "columns"]

SIDES: Mapping[str, tuple[str | None, str | None]] = {
    "q_proj": ("head", "channel"),
    "k_proj": ("kv_group", "channel"),
    "v_proj": ("kv_group", "channel"),
    "o_proj": ("channel", "head"),
    "gate_proj": ("neuron", "channel"),
    "up_proj": ("neuron", "channel"),
    "down_proj": ("channel", "neuron"),
    "embed": ("token", "channel"),
    "lm_head": ("token", "channel"),
    "router": (None, "channel"),
    "q_a_proj": (None, "channel"),
    "kv_a_proj_with_mqa": (None, "channel"),
    **{f"{which}.{name}": (None, "channel")
       for which in ("expert", "shared_expert") for name in ("gate_proj", "up_proj")},
    **{f"{which}.down_proj": ("channel", None) for which in ("expert", "shared_expert")},
}  # fmt: skip
"""Kind -> the family of its outputs (rows) and of its inputs (columns)."""

STORED_AS_INPUTS_OUTPUTS = re.compile(
    r"(?:^|\.)(?:attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\."
)
"""Names of GPT-2's matrices; other architectures use some of them for `[outputs, inputs]`."""

FUSED_EXPERTS = frozenset(
    model_type for model_type, fused in FUSIONS.items() if "experts.gate_up_proj" in fused
)
"""Model types whose experts, where one tensor has them all, are `[experts, outputs, inputs]`."""

EXPERT = re.compile(r"(?:^|\.)experts\.(\d{1,9})\.")
INSIDE_ATTENTION = re.compile(r"(?:^|\.)(?:self_attn|attn|attention)\.[^.]+\.(?:weight|bias)$")
POSITIONS = re.compile(r"(?:^|\.)wpe\.")

NO_CONFIG = "no config says how many heads there are: give --base or --config"


class LeftOutError(Exception):
    """Why an axis belongs to no unit, although its kind does."""


class Membership(NamedTuple):
    """The lines (rows or columns) of a part of a tensor that are units of a family.

    Attributes:
        family: Key of `FAMILIES`.
        layer: Of the units; None for units of the whole model.
        axis: Which lines.
        width: Neighbouring lines that are of one unit.
        num_units: Line `i` is of unit `i // width % num_units`.
    """

    family: str
    layer: int | None
    axis: Axis
    width: int
    num_units: int


@dataclass(frozen=True)
class Layout:
    """What a config says about the units of a model.

    Attributes:
        model_type: Of the config; empty without one.
        num_heads: Attention heads of a layer, or None.
        num_kv_groups: Heads of keys and values.
        head_width: Rows of a head.
        num_channels: Of the residual stream: by the config, or else by the embedding.
    """

    model_type: str
    num_heads: int | None
    num_kv_groups: int | None
    head_width: int | None
    num_channels: int | None

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        kinds: Mapping[str, str],
    ) -> Layout:
        """Read a config; without one the embedding alone says what it can.

        Args:
            config: The checkpoint's config, or empty.
            shapes: Name -> shape of the tensors.
            kinds: Name -> kind of them.
        """
        language = language_config(config)

        def size(*keys: str) -> int | None:
            values = (language.get(key) for key in keys)
            return next((n for n in values if type(n) is int and n > 0), None)

        heads, channels = size("num_attention_heads", "n_head"), size("hidden_size", "n_embd")
        width = size("head_dim") or (channels // heads if channels and heads else None)
        if channels is None:
            widths = {
                shapes[name][-1]
                for name, kind in kinds.items()
                if kind == "embed" and len(shapes[name]) == 2
            }
            channels = widths.pop() if len(widths) == 1 else None
        return cls(
            model_type=str(language.get("model_type") or ""),
            num_heads=heads,
            num_kv_groups=size("num_key_value_heads") or heads,
            head_width=width,
            num_channels=channels,
        )


def memberships_of(
    name: str, part: TensorPart, shape: tuple[int, ...], layout: Layout
) -> tuple[list[Membership], list[tuple[str, str]]]:
    """The units that the lines of a part of a tensor belong to.

    Args:
        name: Name of the tensor.
        part: The part, as `parts_of` returns it.
        shape: Shape of the tensor.
        layout: Layout of the model.

    Returns:
        The memberships, and each family that is left out with the reason.
    """
    memberships: list[Membership] = []
    reasons: list[tuple[str, str]] = []
    families = _families(name, part, shape, layout)
    if isinstance(families, str):
        return [], [("all", families)]
    axes: tuple[Axis, Axis] = ("rows", "columns")
    for axis, family in zip(axes, families, strict=True):
        if family is not None:
            try:
                memberships.append(_membership(family, axis, name, part, shape, layout))
            except LeftOutError as reason:
                reasons.append((family, str(reason)))
    if part.kind.startswith("expert.") and len(shape) == 3 and shape[0]:
        # All experts of a layer in one tensor, one after the other.
        memberships.append(
            Membership("expert", part.layer, "rows", part.num_rows // shape[0], shape[0])
        )
    if part.kind.startswith("expert."):
        reasons.append(("neuron", "neurons of experts are not counted one by one"))
    return memberships, reasons


def _families(
    name: str, part: TensorPart, shape: tuple[int, ...], layout: Layout
) -> tuple[str | None, str | None] | str:
    """Family of the rows and of the columns; or the reason why they are unknown."""
    if part.kind == "norm" and len(shape) == 1:
        return None, "channel"
    if len(shape) == 1:
        return "vectors other than norms (biases) are of no unit"
    if part.kind not in SIDES:
        return f"what its rows and columns are is not known for the kind {part.kind}"
    if POSITIONS.search(name):
        return None, "channel"
    if len(shape) == 3 and not (
        part.kind.startswith("expert.") and layout.model_type in FUSED_EXPERTS
    ):
        return "three dimensions whose order is not known for this architecture"
    rows, columns = SIDES[part.kind]
    if STORED_AS_INPUTS_OUTPUTS.search(name):
        if not layout.model_type:
            return (
                "its rows may be inputs or outputs, and no config says which (--base or --config)"
            )
        if layout.model_type == "gpt2":
            return columns, rows
    return rows, columns


def _membership(
    family: str,
    axis: Axis,
    name: str,
    part: TensorPart,
    shape: tuple[int, ...],
    layout: Layout,
) -> Membership:
    """The units of one axis; raises LeftOutError if the shape does not fit the config."""
    extent = part.num_rows if axis == "rows" else part.num_columns
    if family in ("head", "kv_group"):
        number = layout.num_heads if family == "head" else layout.num_kv_groups
        if number is None or layout.head_width is None:
            raise LeftOutError(NO_CONFIG)
        if number * layout.head_width != extent:
            raise LeftOutError(
                f"{axis} of {part.kind} are {extent}, and the config says {number} × "
                f"{layout.head_width}"
            )
        return Membership(family, part.layer, axis, layout.head_width, number)
    if family == "channel":
        if layout.num_channels is None:
            raise LeftOutError("neither a config nor an embedding says how many channels there are")
        if part.kind == "norm" and INSIDE_ATTENTION.search(name):
            raise LeftOutError("norms inside attention do not act on the residual stream")
        repeats = shape[0] if len(shape) == 3 and axis == "rows" else 1
        if extent != repeats * layout.num_channels:
            raise LeftOutError(
                f"{axis} of {part.kind} are {extent // repeats}, and there are "
                f"{layout.num_channels} channels"
            )
        return Membership(family, None, axis, 1, layout.num_channels)
    layer = None if family == "token" else part.layer
    return Membership(family, layer, axis, 1, extent)


def expert_of(name: str, part: TensorPart) -> int | None:
    """Index of the expert that a whole tensor belongs to."""
    match = EXPERT.search(name) if part.kind.startswith("expert.") else None
    return int(match[1]) if match else None


Counts = NDArray[np.int64]
Packed = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class BaseCounts:
    """The elements of a part of a tensor by the exponent of their base weight.

    Only exponents that occur have a place.

    Attributes:
        exponents: Which exponents there are, ascending.
        sizes: Elements of each exponent.
        selected: How many of them each mask selects, `[masks, exponents]`.
        by_row: Elements of each row, `[rows, exponents]`.
        by_column: Elements of each column, `[columns, exponents]`.
    """

    exponents: Counts
    sizes: Counts
    selected: Counts
    by_row: NDArray[np.int32]
    by_column: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class PartCounts:
    """A tensor, or a part of a fused one.

    Attributes:
        part: What it is, and where it lies.
        rows: Selected elements of each row, `[2 · masks, rows]`: of the masks, then of their
            controls.
        columns: The same of each column.
        base: By exponent, where the base is known.
    """

    part: TensorPart
    rows: Counts
    columns: Counts
    base: BaseCounts | None

    @property
    def num_elements(self) -> int:
        """Elements of the part."""
        return self.part.num_rows * self.part.num_columns

    @property
    def selected(self) -> Counts:
        """Selected elements, `[2 · masks]`."""
        return self.rows.sum(axis=1, dtype=np.int64)

    def units(self, membership: Membership) -> Units:
        """Gather the lines of one axis into units, with their distribution by chance.

        A control has the same number of elements as its mask in each tensor, but not in each part
        of a fused one, so it has its own null.
        """
        base, is_rows = self.base, membership.axis == "rows"
        counts, length = self.rows, self.part.num_columns
        if not is_rows:
            counts, length = self.columns, self.part.num_rows
        num = membership.num_units
        unit = np.arange(counts.shape[1]) // membership.width % num
        elements = length * np.bincount(unit, minlength=num).astype(np.int64)
        selected = _summed(counts, unit, num)
        size = np.array([self.num_elements], dtype=np.int64)
        null = [hypergeometric(elements[:, None], size, total[None]) for total in self.selected]
        matched = None
        if base is not None:
            by_line = base.by_row if is_rows else base.by_column
            by_unit = _summed(by_line.T, unit, num).T
            matched = stacked([hypergeometric(by_unit, base.sizes, row) for row in base.selected])
        return Units(elements, selected, stacked(null), matched)


@dataclass(frozen=True, eq=False)
class Units:
    """What a part of a tensor, or all tensors, have of some units.

    Attributes:
        elements: Of each unit.
        selected: `[2 · masks, units]`: of the masks, then of their controls.
        null: What chance selects, `[2 · masks, units]`.
        matched: The same where the exponents of the base count too, `[masks, units]`; None without
            base.
    """

    elements: Counts
    selected: Counts
    null: Moments
    matched: Moments | None

    def __add__(self, other: Units) -> Units:
        """What both have of the same units.

        One tensor can have more units than another: a head pads its vocabulary.
        """
        num = max(len(self.elements), len(other.elements))

        def total(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
            widths = [[(0, 0)] * (a.ndim - 1) + [(0, num - a.shape[-1])] for a in arrays]
            summed: NDArray[Any] = np.sum(list(map(np.pad, arrays, widths)), axis=0)
            return summed

        matched = [units.matched for units in (self, other) if units.matched is not None]
        return _merged([self, other], matched, total)

    @classmethod
    def joined(cls, layers: Sequence[Units]) -> Units:
        """The units of several layers, one layer after the other."""
        matched = [units.matched for units in layers if units.matched is not None]
        if len(matched) < len(layers):
            matched = []
        return _merged(layers, matched, lambda arrays: np.concatenate(arrays, axis=-1))


def _merged(
    units: Sequence[Units],
    matched: Sequence[Moments],
    merge: Callable[[Sequence[NDArray[Any]]], NDArray[Any]],
) -> Units:
    """Units put together array by array."""

    def moments(of_each: Sequence[Moments]) -> Moments:
        return Moments(*(merge(values) for values in zip(*of_each, strict=True)))

    return Units(
        merge([each.elements for each in units]),
        merge([each.selected for each in units]),
        moments([each.null for each in units]),
        moments(matched) if matched else None,
    )


def stacked(of_each: Sequence[Moments]) -> Moments:
    """The moments of several sets of counts, one set after the other."""
    return Moments(*(np.stack(values) for values in zip(*of_each, strict=True)))


def count_tensor(
    name: str,
    shape: tuple[int, ...],
    packed: Sequence[Packed],
    config: Mapping[str, Any],
    counters: Counters,
    stored: StoredTensor | None,
) -> tuple[tuple[PartCounts, ...], str | None]:
    """Count the rows and the columns of all parts of a tensor.

    Args:
        name: Of the tensor.
        shape: Of the tensor.
        packed: Its bits in each of the masks, then in each of their controls.
        config: Of the checkpoint, or empty.
        counters: Do the work.
        stored: The tensor in the base, or None.

    Returns:
        Its parts, and the xxh3-128 of the stored bytes.
    """
    parts = parts_of(name, shape, config)
    masks = packed[: len(packed) // 2]
    by_exponent: Sequence[BaseCounts | None] = [None] * len(parts)
    digest = None
    if stored is not None:
        by_exponent, digest = count_base(stored, parts, masks, counters)
    num_columns = shape[-1] if shape else 1
    counted = []
    for part, base in zip(parts, by_exponent, strict=True):
        sums = [_part_sums(part, bits, num_columns, counters) for bits in packed]
        rows, columns = (np.stack(lines) for lines in zip(*sums, strict=True))
        counted.append(PartCounts(part, rows, columns, base))
    return tuple(counted), digest


def count_base(
    stored: StoredTensor,
    parts: Sequence[TensorPart],
    masks: Sequence[Packed],
    counters: Counters,
) -> tuple[list[BaseCounts], str]:
    """Count the elements of a tensor by the exponent of their base weight, in two passes.

    The first finds the exponents that occur, so that the second needs no 256 counts for every row.

    Returns:
        The counts of each part, and the xxh3-128 of the stored bytes.
    """
    num_bins = num_exponent_bins(stored.dtype)
    counts = np.zeros((len(parts), len(masks), 2, num_bins), dtype=np.int64)
    source = Source(stored, stored.dtype, None, new_buffer())
    for chunk in chunks_of(stored.shape):
        bins = exponent_bins(source.read(chunk), stored.dtype)
        inside = [unpacked_block(bits, stored.shape, chunk) for bits in masks]
        for at_part, part in enumerate(parts):
            for at, _, _ in overlaps(part.rectangles, chunk):
                for of_mask, into in zip(inside, counts[at_part], strict=True):
                    counters.count_bins(bins[at], of_mask[at], into)
    digest = source.finish()
    sizes, selected = counts[:, 0].sum(axis=1), counts[:, :, 1]
    used = [np.flatnonzero(of_part) for of_part in sizes]
    lines = [
        [np.zeros((num, len(bins)), dtype=np.int32) for num in (part.num_rows, part.num_columns)]
        for part, bins in zip(parts, used, strict=True)
    ]
    for chunk, bins in _exponents_again(stored):
        for part, of_part, (by_row, by_column) in zip(parts, used, lines, strict=True):
            slots = np.zeros(num_bins, dtype=np.int64)
            slots[of_part] = np.arange(len(of_part))
            for at, row, column in overlaps(part.rectangles, chunk):
                inner = bins[at]
                height, width = inner.shape
                counters.count_by_bin(
                    inner, slots, by_row[row : row + height], by_column[column : column + width]
                )
    return [
        BaseCounts(bins, sizes[at][bins], selected[at][:, bins], *lines[at])
        for at, bins in enumerate(used)
    ], digest


def _exponents_again(stored: StoredTensor) -> Iterator[tuple[Chunk, NDArray[np.uint16]]]:
    buffer = new_buffer()
    position = 0
    for chunk in chunks_of(stored.shape):
        held = buffer[: chunk.num_rows * chunk.num_columns * stored.dtype.num_bytes]
        stored.read_into(position, held)
        position += len(held)
        bits = held.view(stored.dtype.bits).reshape(chunk.num_rows, chunk.num_columns)
        yield chunk, exponent_bins(bits, stored.dtype)


def _part_sums(
    part: TensorPart, bits: Packed, num_columns: int, counters: Counters
) -> tuple[Counts, Counts]:
    """Set bits by row and by column of a part, whose rectangles are stacked."""
    by_row = []
    by_column = np.zeros(part.num_columns, dtype=np.int64)
    for r in part.rectangles:
        rows, columns = range(r.row_start, r.row_stop), range(r.column_start, r.column_stop)
        of_rows, of_columns = counters.bit_sums(bits, num_columns, rows, columns)
        by_row.append(of_rows)
        by_column += of_columns
    return np.concatenate(by_row), by_column


def _summed(counts: NDArray[np.integer], unit: NDArray[np.int64], num_units: int) -> Counts:
    """Sums by unit of each row of counts, `[rows, units]`; exact below 2**53."""
    if num_units == counts.shape[1]:  # each line is a unit
        return counts.astype(np.int64, copy=False)
    sums: Counts = np.zeros((len(counts), num_units), dtype=np.int64)
    for row, into in zip(counts, sums, strict=True):
        into[:] = np.bincount(unit, weights=row, minlength=num_units)
    return sums
