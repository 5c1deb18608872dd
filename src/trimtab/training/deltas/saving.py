"""Write a model in memory as a delta, without writing the model."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.checkpoints.align import match_names
from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.safetensors import file_start
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.deltas.changes import apply_changes
from trimtab.deltas.make import write_delta
from trimtab.deltas.manifest import MAX_FILE_BYTES, Manifest
from trimtab.deltas.masked import AnyMask
from trimtab.deltas.source import Source, WeightsFile, other_files
from trimtab.elements.dtypes import Bits
from trimtab.errors import CheckpointError
from trimtab.inputs import read_bytes
from trimtab.masks.on_disk import opened_masks
from trimtab.outputs import ensure_free
from trimtab.results.records import CheckpointRecord, record_of_tensors
from trimtab.training import runtime
from trimtab.training.deltas.live import LiveModel, LiveTensor, stored_tensors
from trimtab.training.deltas.sharded import Gathering, gathered
from trimtab.training.folders import WEIGHTS
from trimtab.training.layout import dtype_name
from trimtab.words import first_few

ORDER = (
    *("U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
)
"""The order of dtypes in a file that safetensors writes; in each, tensors are sorted by name."""


def save_delta(
    model: nn.Module | Mapping[str, Tensor],
    base: str | os.PathLike[str] | Checkpoint,
    output: str | os.PathLike[str],
    *,
    reference: nn.Module | None = None,
    after: str | os.PathLike[str] | None = None,
    mask: AnyMask | None = None,
    sha256: bool = False,
    threads: int | None = None,
    force: bool = False,
) -> Manifest:
    """Write a model in memory as a delta against its base.

    What `apply_delta` makes of it has one `model.safetensors` with the bytes that `save_pretrained`
    would write, the `config.json` of the model (if it has one), and the other files of the base:
    its tokenizer, and so on.

    A model that is sharded over processes (FSDP2, tensor parallelism) is gathered one parameter at
    a time. All processes must call this; the first one reads the base and writes the delta.

    Args:
        model: The tuned model, on any device; tied parameters are stored once. Or a `state_dict`
            with the names that files have, such as one that was gathered from many processes; then
            `config.json` is that of the base.
        base: The checkpoint before training: a folder, a file, a hub id or an open checkpoint.
        output: The delta file to write.
        reference: A model on the same GPU that has the weights of `base`, such as the reference
            model of RL. What changed is then found on the GPU, and only that is copied to the
            host; it changes nothing in the delta. Elsewhere it is not used.
        after: The delta that produced `base`, if the two belong to one chain.
        mask: As in `make_delta`: a mask, or its file, if only its elements were trained.
        sha256: Also store the SHA-256 of every file, as `make_delta` does.
        threads: Tensors or chunks coded at the same time; by default one for each core.
        force: Replace an existing file.

    Returns:
        What the delta holds.

    Raises:
        CheckpointError: The base cannot be read.
        DeltaError: The model is without values, or sharded by FSDP1 or DeepSpeed ZeRO-3; or `after`
            does not end at `base`; or elements changed that `mask` does not select.
        MaskError: The mask is damaged, or not of this base.
        OutputExistsError: The output exists and `force` is not set.
    """
    live, whole = stored_tensors(model, sharded=True), list[str]()
    gathering = Gathering(
        {name: value for tensor in live.tensors.values() for name, value in tensor.sources.items()}
    )

    def save() -> Manifest:
        ensure_free(output, force=force)
        with opened(base) as (old,), ExitStack() as stack:
            masks = opened_masks([] if mask is None else [mask], stack)
            tensors = live
            if gathering.is_needed:
                tensors = gathered(live, gathering)
            elif reference is not None:
                tensors = _compared(live, stored_tensors(reference), old, whole)
            source = _source_of(model, tensors, old)
            return write_delta(
                old,
                source,
                output,
                after=after,
                mask=masks[0] if masks else None,
                sha256=sha256,
                threads=threads,
                force=force,
            )

    manifest = gathering.run(save) if gathering.is_needed else save()
    if whole:
        warnings.warn(
            f"the reference model has other weights than the base in {first_few(sorted(whole))}: "
            "these tensors were copied to the host whole",
            stacklevel=2,
        )
    return manifest


@dataclass(frozen=True, eq=False, repr=False)
class _ComparedTensor(LiveTensor):
    """A tensor on a GPU that is read as its base in a file, and what changed in it."""

    reference: LiveTensor
    stored: StoredTensor
    whole: list[str]  # gets its name if the reference does not have the bits of the file

    def read(self) -> Bits:
        bits = self.stored.read()
        apply_changes(bits.reshape(-1), self.changes_since(self.reference), self.dtype)
        if self.digest_of(bits) == self.digest():
            return bits
        self.whole.append(self.name)
        return super().read()


def _compared(
    live: LiveModel, reference: LiveModel, base: Checkpoint, whole: list[str]
) -> LiveModel:
    """The tensors, compared with those of the reference where both are on one GPU."""
    names = {its_name: name for name, its_name in match_names(base, live).items()}
    tensors = dict(live.tensors)
    for name, tensor in live.tensors.items():
        other, at = reference.get(name), names.get(name)
        stored = None if at is None else base.tensors[base.tied.get(at, at)]
        if other is None or stored is None or not tensor.can_be_compared(other):
            continue
        if (stored.dtype, stored.shape) == (tensor.dtype, tensor.shape):
            parts = tensor.name, tensor.dtype, tensor.piece, tensor.sources
            tensors[name] = _ComparedTensor(*parts, other, stored, whole)
    return live._replace(tensors=tensors)


def _source_of(
    model: nn.Module | Mapping[str, Tensor], live: LiveModel, base: Checkpoint
) -> Source:
    others, _ = other_files(base, {tensor.file.path.name for tensor in base.tensors.values()})
    return live_source(
        model,
        live,
        {
            **{name: read for name, read in others.items() if not name.endswith(".index.json")},
            **{name: partial(bytes, content) for name, content in config_files(model).items()},
        },
    )


def live_source(
    model: nn.Module | Mapping[str, Tensor],
    live: LiveModel,
    others: Mapping[str, Callable[[], bytes]],
) -> Source:
    """A model in memory as `save_pretrained` would write it, in one file of weights.

    Args:
        model: The model, or its `state_dict`.
        live: Its tensors.
        others: Name -> reads a file beside the weights.
    """
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    kept = [tensor for name, tensor in live.tensors.items() if name not in ignored]
    kept.sort(key=lambda tensor: (ORDER.index(tensor.dtype.name), tensor.name))
    tensors = {tensor.name: tensor for tensor in kept}
    start = file_start({n: (t.dtype.name, t.shape) for n, t in tensors.items()}, {"format": "pt"})
    return Source(
        tensors=tensors,
        tied=live.tied,
        weights={WEIGHTS: WeightsFile(start, tuple(tensors))},
        others=others,
        left_out=(),
        record=lambda hashes: _record(model, tensors, hashes),
    )


def config_files(
    model: nn.Module | Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> Mapping[str, bytes]:
    """What `save_pretrained` writes beside the weights, which have a dtype, or that in memory."""
    inner: Any = getattr(model, "_orig_mod", model)
    if not hasattr(getattr(inner, "config", None), "save_pretrained"):
        return {}
    config = copy.copy(inner.config)
    config.dtype = dtype_name(inner.dtype if dtype is None else dtype)
    config.architectures = [_class_name(inner)]
    with TemporaryDirectory() as folder, runtime.quiet():
        config.save_pretrained(folder)
        if inner.can_generate():
            inner.generation_config.save_pretrained(folder)
        return {
            path.name: read_bytes(path, CheckpointError, limit=MAX_FILE_BYTES)
            for path in sorted(Path(folder).iterdir())
        }


def _class_name(model: nn.Module) -> str:
    """The name of the class of a model, which `fully_shard` replaces by one of its own."""
    names = [each.__name__ for each in type(model).__mro__]
    return names[names.index("FSDPModule") + 1] if "FSDPModule" in names else names[0]


def _record(
    model: nn.Module | Mapping[str, Tensor],
    tensors: Mapping[str, LiveTensor],
    hashes: Mapping[str, str],
) -> CheckpointRecord:
    name = "state_dict"
    if isinstance(model, nn.Module):
        name = _class_name(getattr(model, "_orig_mod", model))
    return record_of_tensors(
        ((n, tensor.dtype.name, tensor.shape, hashes[n]) for n, tensor in tensors.items()),
        id=f"{name} in memory",
        revision=None,
        architecture=name if hasattr(model, "config") else None,
    )
