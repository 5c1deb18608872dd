"""`prune`: set a share of the weights to zero and write the resulting checkpoint.

The base is read once or, by magnitude, five times to choose, and once to write. Memory is a matrix
per thread, and one bit for each weight that can be pruned. Files keep their names, headers and
offsets. By default the matrices of the layers are pruned, not embeddings, head, norms, biases or
routers: they are few, or costly to prune (Sun et al. 2024, arXiv 2306.11695, sec. 4: "linear
layers,
excluding the first embedding layer and the final classification head").

`survivors` selects the non-zero elements of a checkpoint, however it was pruned. Training only
`mask & survivors` keeps a pruned model pruned.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.architectures import TIED
from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.names import parts_of, tied_names
from trimtab.checkpoints.quantized import block_scales, refuse_quantized
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.checkpoints.weights import ensure_rewritable, read_weights, rewrite
from trimtab.elements.counts import summed
from trimtab.elements.dtypes import Bits, DType
from trimtab.errors import AnalysisError, CheckpointError
from trimtab.masks.header import provenance_of
from trimtab.masks.makers.weight_scores import high_magnitude_scores
from trimtab.masks.mask import Mask
from trimtab.masks.matching import base_tensors
from trimtab.masks.packed import PackedTensor, unpacked
from trimtab.masks.selection.quotas import Quotas
from trimtab.masks.selection.top_k import select
from trimtab.masks.wanda import InputNorms, kept_by_wanda
from trimtab.outputs import ensure_no_folder, new_folder
from trimtab.results.records import CheckpointRecord, made_now, record_of
from trimtab.results.result import Result
from trimtab.results.schema import Provenance
from trimtab.words import first_few, one_line, out_of


def survivors(
    checkpoint: str | os.PathLike[str] | Checkpoint, *, progress: Progress | None = None
) -> Mask:
    """Select the elements of a checkpoint that are not 0.

    A tied tensor that is stored twice is in the mask once.

    Args:
        checkpoint: A folder, a file, a hub id (`org/name@revision`), or an open checkpoint.
        progress: Called after each chunk, from any thread.

    Raises:
        CheckpointError: The checkpoint cannot be read, or its weights are packed into integers.
    """
    with opened(checkpoint) as (checkpoint,):
        # A scale keeps zeros; unknown formats are refused here.
        block_scales(checkpoint.tensors, checkpoint.config, checkpoint.id)
        tensors, digests = read_weights(
            checkpoint, checkpoint.tensors, _survivors_of, progress=progress
        )
        copies = _stored_copies(checkpoint, digests)
        step = {
            "step": "survivors",
            "checkpoint": record_of(checkpoint, digests).to_dict(),
            "tied": [{"name": name, "tied_to": original} for name, original in copies.items()],
        }
        surviving = {name: tensor for name, tensor in tensors.items() if name not in copies}
        base = base_tensors(checkpoint, {name: digests[name] for name in surviving})
        return Mask(surviving, base, provenance_of([step]))


def is_zero(bits: Bits, dtype: DType) -> NDArray[np.bool_]:
    """Which elements are 0: +0 and -0 of a float; none of an exponent-only dtype."""
    if dtype.is_float:
        bits = bits << dtype.bits.type(1)  # all but the sign
    zero: NDArray[np.bool_] = bits == 0
    return zero & (dtype.kind != "scale")


def _survivors_of(tensor: StoredTensor, chunks: Iterator[tuple[int, Bits]]) -> PackedTensor:
    return PackedTensor.of_parts(tensor.shape, (~is_zero(bits, tensor.dtype) for _, bits in chunks))


def _stored_copies(checkpoint: Checkpoint, digests: dict[str, str]) -> dict[str, str]:
    """Heads that the config ties to an embedding but that are stored too, bit for bit."""
    names = checkpoint.tensors.keys() - set(TIED.values())
    tied = tied_names(names, checkpoint.config)
    return {
        head: embedding
        for head, embedding in tied.items()
        if head in digests and digests[head] == digests[embedding]
    }


FLOATS = ("BF16", "F16", "F32", "F64")

LEFT_ALONE = frozenset(
    {"embed", "lm_head", "norm", "bias", "router", "scale", "buffer", "other"}
    | {"vision", "audio", "projector", "sinks", "linear_attn.conv1d", "linear_attn.A_log"}
)
"""Kinds that are pruned only if requested."""


def matrices_of(base: Checkpoint, kinds: Sequence[str] | None = None) -> list[StoredTensor]:
    """The tensors to prune.

    Args:
        base: An open checkpoint.
        kinds: Kinds to prune; None for all but `LEFT_ALONE`. A fused tensor is included if all of
            its parts are.

    Raises:
        CheckpointError: There are none of a kind, or they are stored in a dtype that cannot be
            pruned,
            or quantised.
    """
    kinds_by_name = {
        name: {part.kind for part in parts_of(name, tensor.shape, base.config)}
        for name, tensor in base.tensors.items()
        if len(tensor.shape) >= 2
    }
    present = {kind for its_kinds in kinds_by_name.values() for kind in its_kinds}
    wanted = present - LEFT_ALONE if kinds is None else set(kinds)
    if absent := sorted(wanted - present):
        raise CheckpointError(
            f"{base.id} has no matrices of kind {first_few(absent)}: it has "
            f"{', '.join(sorted(present)) or 'none'}"
        )
    chosen = [
        base.tensors[name] for name, its_kinds in kinds_by_name.items() if its_kinds <= wanted
    ]
    if not chosen:
        raise CheckpointError(f"{base.id} has no matrices of layers to prune")
    wrong = [f"{t.name} is {t.dtype.name}" for t in chosen if t.dtype.name not in FLOATS]
    if wrong:
        raise CheckpointError(
            f"{base.id} cannot be pruned: {first_few(wrong)}; expected {', '.join(FLOATS)}. Save "
            "the model in one of them first"
        )
    refuse_quantized(base.tensors, base.config, [tensor.name for tensor in chosen], base.id)
    return chosen


@dataclass(frozen=True)
class ZeroCount:
    """Zeros of a tensor, or of several; addable.

    Attributes:
        num_elements: Elements.
        num_before: Those that were 0 before, of either sign.
        num_after: Those that are 0 now.
    """

    num_elements: int = 0
    num_before: int = 0
    num_after: int = 0

    def __add__(self, other: ZeroCount) -> ZeroCount:
        return summed((self, other))


def write_zeroed(
    base: Checkpoint, mask: Mask, target: Path, *, progress: Progress | None = None
) -> tuple[dict[str, ZeroCount], dict[str, str]]:
    """Write a checkpoint with every element set to +0 that a mask has and does not select.

    Args:
        base: An open checkpoint of safetensors files.
        mask: Selects the elements to keep; tensors that it lacks are kept whole.
        target: An existing folder.
        progress: Called after each tensor.

    Returns:
        Name -> zeros, and name -> xxh3-128 of the bytes in base, of every tensor.
    """
    counts = dict.fromkeys(base.tensors, ZeroCount())

    def change(tensor: StoredTensor, start: int, bits: Bits) -> None:
        num_before = int(np.count_nonzero(is_zero(bits, tensor.dtype)))
        if tensor.name in mask:
            bits[~unpacked(mask.packed(tensor.name), start, start + len(bits))] = 0
        num_after = int(np.count_nonzero(is_zero(bits, tensor.dtype)))
        counts[tensor.name] += ZeroCount(len(bits), num_before, num_after)

    digests = rewrite(base, target, change, progress=progress)
    return counts, digests


Method = Literal["magnitude", "wanda"]
METHODS: tuple[Method, ...] = get_args(Method)

RECORD = "pruning.json"
"""File of the pruned checkpoint that records how it was made."""


@dataclass(frozen=True)
class PrunedTensor:
    """A matrix that was pruned.

    Attributes:
        name: Its name.
        zeros: Its zeros.
    """

    PLAIN: ClassVar = ("name", "=zeros")

    name: str
    zeros: ZeroCount


@dataclass(frozen=True, eq=False)
class Pruning(Result):
    """The result of pruning.

    Attributes:
        base: The checkpoint that was pruned.
        method: How the weights were chosen.
        sparsity: Requested share of each matrix, or of each of its rows.
        kinds: Requested kinds; None for the matrices of the layers.
        seed: Breaks ties between equal magnitudes.
        tensors: The matrices that were pruned.
        others: Zeros of all other tensors together, which are unchanged.
        norms: How the input norms were measured, for `wanda`; None for other methods.
        provenance: trimtab version, command, date.
    """

    FORMAT = "trimtab.pruning"
    NAME = "pruning"
    COMMAND = "trimtab prune"
    PLAIN: ClassVar = (
        *("provenance", "provenance.base=base", "method", "sparsity", "kinds", "seed", "norms"),
        *("total", "others", "tensors"),
    )

    base: CheckpointRecord
    method: Method
    sparsity: float
    kinds: tuple[str, ...] | None
    seed: int
    tensors: tuple[PrunedTensor, ...]
    others: ZeroCount
    norms: Mapping[str, Any] | None
    provenance: Provenance

    def __repr__(self) -> str:
        zero = out_of(self.total.num_after, self.total.num_elements, "element")
        return one_line(self, f"{self.base.id} by {self.method}: {zero} zero now")

    @property
    def total(self) -> ZeroCount:
        """Zeros of all matrices that were pruned."""
        return sum((tensor.zeros for tensor in self.tensors), ZeroCount())

    @property
    def pruned(self) -> dict[str, ZeroCount]:
        """Name -> zeros, of each matrix that was pruned."""
        return {tensor.name: tensor.zeros for tensor in self.tensors}


def prune(
    base: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    sparsity: float,
    method: Method = "magnitude",
    norms: InputNorms | None = None,
    kinds: Sequence[str] | None = None,
    seed: int = 0,
    command: str | None = None,
    progress: Progress | None = None,
) -> Pruning:
    """Write a checkpoint in which a share of the weights is zero.

    `magnitude` prunes the smallest weights of each matrix, `wanda` those of each row that affect
    its output least (see `trimtab.masks.wanda`). Counts are exact; weights that are 0 already are
    chosen first. Dtypes, files and the offsets of tensors in them do not change.

    Args:
        base: A folder of safetensors, or a hub id with an optional `@revision`.
        output: The folder to create, whole or not at all; it must not exist.
        sparsity: Share to prune, 0 to 1, rounded to a whole number of weights.
        method: How to choose.
        norms: Of the inputs of every matrix that is pruned, for `wanda`.
        kinds: Kinds of tensors to prune, such as `up_proj`; by default the matrices of the layers:
            no embeddings, head, norms, biases or routers.
        seed: Breaks ties between equal magnitudes.
        command: Command to record in the provenance.
        progress: Called with bytes done since the last call, and the total; from any thread.

    Raises:
        AnalysisError: Settings that do not go together.
        OutputExistsError: The folder exists.
        CheckpointError: The base cannot be read, or cannot be pruned in this way.
        MaskError: A weight is NaN.
        MaskMismatchError: The norms are not those of this base.
    """
    if not 0 <= sparsity <= 1:
        raise AnalysisError(f"sparsity is {sparsity}, expected a number from 0 to 1")
    if method not in METHODS:
        raise AnalysisError(f"there is no method {method}: expected {' or '.join(METHODS)}")
    if (norms is not None) != (method == "wanda"):
        raise AnalysisError(f"{method} {'needs' if norms is None else 'does not use'} input norms")
    ensure_no_folder(output)
    with opened(base) as (checkpoint,):
        ensure_rewritable(checkpoint, base)
        matrices = matrices_of(checkpoint, kinds)
        names = [matrix.name for matrix in matrices]
        num_bytes = sum(tensor.num_bytes for tensor in (*matrices, *checkpoint.tensors.values()))

        def tell(done: int, _: int) -> None:
            if progress is not None:
                progress(done, num_bytes)

        if norms is None:
            scores = high_magnitude_scores(checkpoint, names, progress=tell)
            quotas = Quotas.of_density(1 - sparsity, {m.name: m.shape for m in matrices})
            mask = select(scores, quotas, seed=seed, provenance={"step": "high-magnitude"})
        else:
            mask = kept_by_wanda(checkpoint, matrices, sparsity, norms, progress=tell)
        with new_folder(output) as draft:
            counts, digests = write_zeroed(checkpoint, mask, draft, progress=tell)
            pruning = Pruning(
                base=record_of(checkpoint, digests),
                method=method,
                sparsity=sparsity,
                kinds=None if kinds is None else tuple(kinds),
                seed=seed,
                tensors=tuple(PrunedTensor(name, counts.pop(name)) for name in names),
                others=sum(counts.values(), ZeroCount()),
                norms=None if norms is None else dict(norms.provenance),
                provenance=made_now(command=command),
            )
            pruning.save(draft / RECORD, force=True)  # base may have one
    return pruning
