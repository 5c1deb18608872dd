"""`prune`: set a share of the weights to zero and write the checkpoint that is left.

The base is read once or, by magnitude, five times to choose, and once more while it is written. In
memory are a matrix per thread, and one bit for each weight that can be pruned.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from trimtab.checkpoints import opened
from trimtab.checkpoints.stream import Progress
from trimtab.errors import AnalysisError
from trimtab.masks.makers.magnitude import high_magnitude
from trimtab.masks.pruning.matrices import matrices_of
from trimtab.masks.pruning.norms import InputNorms
from trimtab.masks.pruning.rewriting import ZeroCount, folder_of, write_zeroed
from trimtab.masks.pruning.wanda import kept_by_wanda
from trimtab.masks.selection import select
from trimtab.masks.selection.quotas import Quotas
from trimtab.outputs import ensure_no_folder, new_folder
from trimtab.results.records import CheckpointRecord, made_now, record_of
from trimtab.words import one_line, out_of

__all__ = ["METHODS", "RECORD", "Method", "Pruning", "prune"]

Method = Literal["magnitude", "wanda"]
METHODS: tuple[Method, ...] = get_args(Method)

RECORD = "pruning.json"
"""File of the pruned checkpoint that says how it was made."""

FORMAT = "trimtab.pruning"
FORMAT_VERSION = 1
"""History: 1, the first."""


@dataclass(frozen=True, eq=False)
class Pruning:
    """What pruning did.

    Attributes:
        base: The checkpoint that was pruned.
        method: How the weights were chosen.
        sparsity: Share of each matrix, or of each of its rows, that was asked for.
        kinds: Kinds that were asked for; None for the matrices of the layers.
        seed: What decided between equal magnitudes.
        pruned: Name -> zeros, of each matrix that was pruned.
        others: Zeros of all other tensors together, which keep their bits.
        norms: How the input norms were measured, for `wanda`; None for other methods.
        provenance: trimtab version, command, date.
    """

    base: CheckpointRecord
    method: Method
    sparsity: float
    kinds: tuple[str, ...] | None
    seed: int
    pruned: Mapping[str, ZeroCount]
    others: ZeroCount
    norms: Mapping[str, Any] | None
    provenance: Mapping[str, Any]

    def __repr__(self) -> str:
        zero = out_of(self.total.num_after, self.total.num_elements, "element")
        return one_line(self, f"{self.base.id} by {self.method}: {zero} zero now")

    @property
    def total(self) -> ZeroCount:
        """Zeros of all matrices that were pruned."""
        return sum(self.pruned.values(), ZeroCount())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, in the format of the docs page "Formats"."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "provenance": {**self.provenance, "base": self.base.to_dict()},
            "method": self.method,
            "sparsity": self.sparsity,
            "kinds": None if self.kinds is None else list(self.kinds),
            "seed": self.seed,
            "norms": None if self.norms is None else dict(self.norms),
            "total": dict(self.total.__dict__),
            "others": dict(self.others.__dict__),
            "tensors": [{"name": name, **of.__dict__} for name, of in self.pruned.items()],
        }


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

    `magnitude` prunes the smallest weights of each matrix, `wanda` those of each row that move its
    output least (see `trimtab.masks.pruning.wanda`). Counts are exact; a weight that is 0 already
    goes first. Dtypes, files and the places of tensors in them stay as they are.

    Args:
        base: A folder of safetensors, or a hub id with an optional `@revision`.
        output: The folder to make; it must not exist. It is there whole or not at all.
        sparsity: Share to prune, 0 to 1, rounded to a whole number of weights.
        method: How to choose.
        norms: Of the inputs of every matrix that is pruned, for `wanda`.
        kinds: Kinds of tensors to prune, such as `up_proj`; by default the matrices of the layers:
            no embeddings, head, norms, biases or routers.
        seed: Decides which of equal magnitudes go.
        command: Recorded as what made it.
        progress: Called with bytes done since the last call, and bytes in all; from any thread.

    Raises:
        AnalysisError: Settings that do not go together.
        OutputExistsError: The folder exists.
        CheckpointError: The base cannot be read, or cannot be pruned so.
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
        source = folder_of(checkpoint, base)
        matrices = matrices_of(checkpoint, kinds)
        names = [matrix.name for matrix in matrices]
        num_bytes = sum(tensor.num_bytes for tensor in (*matrices, *checkpoint.tensors.values()))

        def tell(done: int, _: int) -> None:
            if progress is not None:
                progress(done, num_bytes)

        if norms is None:
            scores = high_magnitude(checkpoint, names, progress=tell)
            quotas = Quotas.of_density(1 - sparsity, {m.name: m.shape for m in matrices})
            kept = select(scores, quotas, seed=seed, provenance={"step": "high-magnitude"})
        else:
            kept = kept_by_wanda(checkpoint, matrices, sparsity, norms, progress=tell)
        with new_folder(output) as draft:
            counts, digests = write_zeroed(checkpoint, kept, source, draft, progress=tell)
            pruning = Pruning(
                base=record_of(checkpoint, digests),
                method=method,
                sparsity=sparsity,
                kinds=None if kinds is None else tuple(kinds),
                seed=seed,
                pruned={name: counts.pop(name) for name in names},
                others=sum(counts.values(), ZeroCount()),
                norms=None if norms is None else dict(norms.provenance),
                provenance=made_now(command=command),
            )
            text = json.dumps(pruning.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
            (draft / RECORD).write_text(f"{text}\n", encoding="utf-8")
    return pruning
