"""Which units of a network the rows and the columns of a tensor belong to.

A weight matrix of a linear layer is stored as `[outputs, inputs]`: row `i` is all that makes output
`i`, column `j` all that reads input `j`. So the rows of `q_proj` are those of the attention heads,
the columns of `down_proj` those of the MLP neurons, and whatever reads or writes the residual
stream has its channels on the other side. Only GPT-2 stores its matrices the other way round.

What cannot be told from names, shapes and the config is left out, with the reason: a wrong unit
would look like a finding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from trimtab.checkpoints import TensorPart
from trimtab.checkpoints.architectures import FUSIONS
from trimtab.checkpoints.names import language_config

__all__ = ["FAMILIES", "Axis", "Belonging", "Layout", "belongings", "expert_of"]

FAMILIES: Mapping[str, str] = {
    "head": "attention heads: rows of q_proj, columns of o_proj",
    "kv_group": "KV groups: rows of k_proj and v_proj",
    "neuron": "MLP neurons: rows of gate_proj and up_proj, columns of down_proj",
    "channel": "residual channels: whatever reads or writes them, in all layers",
    "token": "vocabulary rows: rows of the embedding and of the head",
    "expert": "experts: all that belongs to one of them",
}
"""Family of units -> what they are made of, in the order of reports."""

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
    """Why an axis belongs to no unit, though one of its kind could."""


class Belonging(NamedTuple):
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
            found = (language.get(key) for key in keys)
            return next((n for n in found if type(n) is int and n > 0), None)

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


def belongings(
    name: str, part: TensorPart, shape: tuple[int, ...], layout: Layout
) -> tuple[list[Belonging], list[tuple[str, str]]]:
    """The units that the lines of a part of a tensor belong to.

    Args:
        name: Of the tensor.
        part: The part, as `parts_of` gives it.
        shape: Of the tensor.
        layout: Of the model.

    Returns:
        What belongs to units, and for each family that could have been among them and is not, the
        family and the reason.
    """
    found: list[Belonging] = []
    reasons: list[tuple[str, str]] = []
    families = _families(name, part, shape, layout)
    if isinstance(families, str):
        return [], [("all", families)]
    axes: tuple[Axis, Axis] = ("rows", "columns")
    for axis, family in zip(axes, families, strict=True):
        if family is not None:
            try:
                found.append(_belonging(family, axis, name, part, shape, layout))
            except LeftOutError as reason:
                reasons.append((family, str(reason)))
    if part.kind.startswith("expert.") and len(shape) == 3 and shape[0]:
        # All experts of a layer in one tensor, one after the other.
        found.append(Belonging("expert", part.layer, "rows", part.num_rows // shape[0], shape[0]))
    if part.kind.startswith("expert."):
        reasons.append(("neuron", "neurons of experts are not counted one by one"))
    return found, reasons


def _families(
    name: str, part: TensorPart, shape: tuple[int, ...], layout: Layout
) -> tuple[str | None, str | None] | str:
    """Family of the rows and of the columns; or why nothing is known of them."""
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


def _belonging(
    family: str,
    axis: Axis,
    name: str,
    part: TensorPart,
    shape: tuple[int, ...],
    layout: Layout,
) -> Belonging:
    """The units of one axis.

    Raises:
        LeftOutError: The shape does not fit what the config says.
    """
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
        return Belonging(family, part.layer, axis, layout.head_width, number)
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
        return Belonging(family, None, axis, 1, layout.num_channels)
    layer = None if family == "token" else part.layer
    return Belonging(family, layer, axis, 1, extent)


def expert_of(name: str, part: TensorPart) -> int | None:
    """Number of the expert that a tensor of its own belongs to."""
    match = EXPERT.search(name) if part.kind.startswith("expert.") else None
    return int(match[1]) if match else None
