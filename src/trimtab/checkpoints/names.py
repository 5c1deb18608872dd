"""What a tensor is, from its name: layer, kind, parts of a fused tensor, and other names.

The tables are in `trimtab.checkpoints.architectures`. A name in no table gets the kind `other`. A
fused tensor whose shape does not fit the config stays whole: a wrong split would put counts under
the wrong kind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import Any, TypeVar

from trimtab.checkpoints.architectures import (
    FUSIONS,
    KINDS,
    MODALITIES,
    TIED,
    TIED_BY_DEFAULT,
    Fusion,
    Sizes,
)

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d{1,9})\.")
NORM = re.compile(r"(?:^ln_\w+|norm\d*)$")
SCALE = re.compile(
    r"(?:^|[._])(?:scale_inv|scales|q?scale_(?:weight|act|input)|zero_point|absmax|scb|qzeros|"
    r"(?:weight|input|activation|proj|global|[kv])_scale(?:_ub|_2)?)$",
    re.IGNORECASE,
)
"""Names of the scales of quantised weights or activations."""
HAS_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""Ends of the architectures that have a language-modelling head."""
LONGEST_END = 3
"""Words of the longest key in the tables."""

WRAPPERS = frozenset(
    {
        "_orig_mod",  # torch.compile, of the model or of its layers
        "_checkpoint_wrapped_module",  # activation checkpointing
        "_fsdp_wrapped_module",
        "base_layer",  # PEFT, around a layer that it adapts
    }
)
"""Parts of a path that wrapping a module inserts, anywhere in it."""

MODULES_TO_SAVE = "modules_to_save"
"""Inserted by PEFT, followed by the adapter's name, around a module that is trained whole."""

PREFIXES = frozenset(
    {
        *("module", "base_model"),  # DistributedDataParallel, PEFT
        *("model", "transformer", "gpt_neox", "backbone"),  # around what a headless save stores
        "language_model",  # in a vision-language model; where it stands depends on the version
    }
)
"""First parts of a path that saving a model inside or outside its wrapper adds or drops."""

SAME_TOWER = {"visual": "vision_tower"}
"""First part of a path -> the name that other versions of the model have for it."""

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Rectangle:
    """Rows and columns of a tensor's 2-D view `[prod(shape[:-1]), shape[-1]]`, half open.

    A 1-D tensor is one row of that view, a scalar one element.
    """

    row_start: int
    row_stop: int
    column_start: int
    column_stop: int


@dataclass(frozen=True)
class TensorPart:
    """A tensor, or a part of a fused one.

    Attributes:
        label: Name of the part (`q`, `gate`), or None for a whole tensor.
        layer: Index of the transformer layer, or None outside the layers.
        kind: What it is: `q_proj`, `down_proj`, `norm`, `embed`, ...
        rectangles: Where it lies. The parts of a tensor tile it exactly.
    """

    label: str | None
    layer: int | None
    kind: str
    rectangles: tuple[Rectangle, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the part's own 2-D view, in which its rectangles stand one below the other."""
        return sum(r.row_stop - r.row_start for r in self.rectangles)

    @property
    def num_columns(self) -> int:
        """Columns of that view."""
        return self.rectangles[0].column_stop - self.rectangles[0].column_start

    def shape_in(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the part of a tensor of this shape."""
        rows, columns = self.num_rows, self.num_columns
        if rows * columns == prod(shape):
            return shape
        # The pieces of a fused bias lie in one row; the part is a vector of them all.
        return (rows * columns,) if len(shape) == 1 else (rows, columns)

    def name_in(self, name: str) -> str:
        """Name of the part of a tensor of this name: `...qkv_proj.weight[q]`."""
        return name if self.label is None else f"{name}[{self.label}]"


def parts_of(
    name: str, shape: tuple[int, ...], config: Mapping[str, Any]
) -> tuple[TensorPart, ...]:
    """The parts of a tensor: one for an ordinary tensor, several for a fused one.

    Args:
        name: As stored, with any prefix of a multimodal wrapper.
        shape: As stored.
        config: The checkpoint's config; empty if there is none, then nothing is split.
    """
    whole = Rectangle(0, prod(shape[:-1]), 0, shape[-1] if shape else 1)
    modality = next((MODALITIES[word] for word in name.split(".") if word in MODALITIES), None)
    if modality:  # the layers of a vision tower are not those of the language model
        return (TensorPart(None, None, modality, (whole,)),)
    match = LAYER.search(name)
    layer = int(match[1]) if match else None
    path, is_bias = _path(name)
    language = language_config(config)
    fusion = _find(FUSIONS.get(str(language.get("model_type")), {}), path)
    if fusion is not None and len(shape) == fusion.dimensions - is_bias:
        rectangles = _split(fusion, shape, whole, language)
        if rectangles:
            return tuple(
                TensorPart(label, layer, "bias" if is_bias else kind, of_part)
                for (label, kind), of_part in zip(fusion.parts, rectangles, strict=True)
            )
    return (TensorPart(None, layer, _kind(path, is_bias), (whole,)),)


def without_wrappers(name: str) -> str:
    """The name without what `torch.compile`, activation checkpointing, FSDP and PEFT insert.

    A prefix (`module.`) stays: it may be the name of a module.
    """
    words = name.split(".")
    while MODULES_TO_SAVE in words[:-2]:
        at = words.index(MODULES_TO_SAVE)
        del words[at : at + 2]
    return ".".join(word for word in words if word not in WRAPPERS)


def core_name(name: str) -> str:
    """The name without wrappers and without the prefixes that saving adds or drops.

    `model.language_model.layers.0.mlp.up_proj.weight`, `language_model.model.layers…`, `layers…`
    and `_orig_mod.layers…` have the same core. So can two different tensors of one model.
    """
    words = without_wrappers(name).split(".")
    while len(words) > 2 and words[0] in PREFIXES:
        words = words[1:]
    return ".".join([SAME_TOWER.get(words[0], words[0]), *words[1:]])


def match_renamed(left: Collection[str], right: Collection[str]) -> dict[str, str]:
    """Match the names that only one side has by their cores.

    Args:
        left: Names of tensors of a model.
        right: Names of tensors of the same model, from another file or from memory.

    Returns:
        Name on the left -> name on the right, where they differ. A core that several unmatched
        names of one side share matches none of them.
    """
    by_core = _by_core(name for name in right if name not in left)
    alone = _by_core(name for name in left if name not in right)
    return {name: by_core[core] for core, name in alone.items() if core in by_core}


def match_stored(
    names: Collection[str], stored: Collection[str], tied: Mapping[str, str]
) -> dict[str, str]:
    """Match names with those under which a checkpoint stores the tensors.

    Args:
        names: Names of tensors of the same model.
        stored: Names that the checkpoint stores.
        tied: Further names -> the stored name of the same tensor.

    Returns:
        Name -> stored name, where they differ. No stored name is used twice.
    """
    renamed = match_renamed(names, stored)
    others = match_renamed(names, [*stored, *tied]) if tied else {}
    taken = {*names, *renamed.values()}
    for name in names:
        original = tied.get(others.get(name, name))
        if name not in stored and original is not None and original not in taken:
            renamed[name] = original
            taken.add(original)
    return renamed


def _by_core(names: Iterable[str]) -> dict[str, str]:
    """Core -> name, for the cores that only one name has."""
    cores = {name: core_name(name) for name in names}
    num_uses = Counter(cores.values())
    return {core: name for name, core in cores.items() if num_uses[core] == 1}


def tied_names(names: Collection[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Names that the config ties to a stored tensor, and that are not stored themselves.

    Usually the head is not stored; `safetensors.torch.save_model` stores the name that sorts first,
    so that it can be the input embedding instead.

    Args:
        names: Names that are stored.
        config: The checkpoint's config.

    Returns:
        Name that is not stored -> the stored name of the same tensor.
    """
    language = language_config(config)
    default = not TIED_BY_DEFAULT.isdisjoint(
        str(part.get("model_type")) for part in (config, language)
    )
    # The setting of a wrapper takes precedence over that of the language model in it.
    is_tied = config.get("tie_word_embeddings", language.get("tie_word_embeddings", default))
    named = config.get("architectures")  # the config is untrusted
    architecture = named[0] if isinstance(named, list) and named else HAS_HEAD[0]
    if is_tied is not True or not str(architecture).endswith(HAS_HEAD):
        return {}
    tied = {head: embed for embed, head in TIED.items() if embed in names and head not in names}
    for head in {head: None for head in TIED.values() if head in names}:
        embeds = [embed for embed, its_head in TIED.items() if its_head == head]
        if not any(embed in names for embed in embeds):
            tied |= {embed: head for embed in embeds if _has_layers_next_to(embed, names)}
    return tied


def _has_layers_next_to(embed: str, names: Iterable[str]) -> bool:
    """Whether an embedding of this name belongs to the model with these names."""
    *model, _, _ = embed.split(".")
    prefixes = tuple(".".join([*model, layers, ""]) for layers in ("layers", "h"))
    return any(name.startswith(prefixes) for name in names)


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a multimodal config."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _path(name: str) -> tuple[str, bool]:
    """Dotted path with `#` for numbers, without `.weight` or `.bias`; and whether it is a bias.

    The causal mask `attn.bias` of GPT-2 is a path in the tables, not a bias.
    """
    path = re.sub(r"(?<=\.)\d+(?=\.)", "#", name)
    stem, _, leaf = path.rpartition(".")
    if leaf not in ("weight", "bias") or _find(KINDS, path) is not None:
        return path, False
    return stem, leaf == "bias"


def _find(table: Mapping[str, Entry], path: str) -> Entry | None:
    """Entry of the longest end of `path` that the table has."""
    words = path.split(".")[-LONGEST_END:]
    ends = (".".join(words[start:]) for start in range(len(words)))
    return next((table[end] for end in ends if end in table), None)


def _kind(path: str, is_bias: bool) -> str:
    if SCALE.search(path):
        return "scale"
    if NORM.search(path.rpartition(".")[2]):
        return "norm"
    if is_bias:
        return "bias"
    return _find(KINDS, path) or ("bias" if path.endswith("_bias") else "other")


def _split(
    fusion: Fusion, shape: tuple[int, ...], whole: Rectangle, config: Mapping[str, Any]
) -> list[tuple[Rectangle, ...]]:
    """Rectangles of each part; empty if the config does not say or does not fit the shape."""
    sizes: Sizes = {key: n for key, n in config.items() if type(n) is int and n > 0}
    try:
        repetitions, widths = fusion.layout(sizes)
    except KeyError:
        return []
    period = sum(widths)
    by_rows = fusion.axis == "rows" and len(shape) > 1
    extent = whole.row_stop if by_rows else whole.column_stop
    if repetitions * period != extent:
        return []
    if by_rows and len(shape) == 3 and shape[0] != repetitions:
        return []
    if prod(shape) == 0:  # an empty file could request any number of rectangles
        return []

    def rectangle(start: int, stop: int) -> Rectangle:
        if by_rows:
            return Rectangle(start, stop, 0, whole.column_stop)
        return Rectangle(0, whole.row_stop, start, stop)

    return [
        tuple(rectangle(turn + start, turn + stop) for turn in range(0, extent, period))
        for start, stop in pairwise(accumulate(widths, initial=0))
    ]
