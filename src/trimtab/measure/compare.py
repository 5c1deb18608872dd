"""`compare`: one streaming pass over two checkpoints, each pair of tensors a task of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.checkpoints.align import Aligned, Alignment, align
from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.names import parts_of
from trimtab.checkpoints.stream import Progress, Reader, Streamed, overlaps, stream
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.elements.criteria import Criterion, parse_criterion, with_defaults
from trimtab.elements.dtypes import Bits
from trimtab.elements.fast import Scanners
from trimtab.elements.scan import Tally
from trimtab.errors import AnalysisError
from trimtab.measure.compare_result import Comparison, Coverage, Profile, TensorChange
from trimtab.measure.geometry import GeometryAnalysis
from trimtab.measure.matrices import MatrixAnalysis, analyse_matrices, work_of
from trimtab.measure.precision import PrecisionProbe
from trimtab.measure.rank import RankAnalysis
from trimtab.results.records import made_now, record_of


def compare(
    base: str | os.PathLike[str] | Checkpoint,
    tuned: str | os.PathLike[str] | Checkpoint,
    *,
    changed: str = "bits",
    cast: str | None = None,
    dequantize: bool = False,
    profiles: bool = False,
    lr: float | None = None,
    steps: int = 1,
    betas: tuple[float, float] = (0.9, 0.999),
    rank: bool = False,
    geometry: bool = False,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Count what changed from a base to a tuned checkpoint, under every criterion at once.

    Args:
        base: The checkpoint before training: a folder, a file, a hub id (`org/name@revision`),
            or an open checkpoint.
        tuned: The checkpoint after training.
        changed: Criterion of headlines: `bits`, `value`, `atol=1e-5`, `rel=1e-3`. The default
            criteria are counted in any case.
        cast: Round every float tensor of both sides to this dtype first (`bf16`). Without it,
            tensors of different dtypes are refused.
        dequantize: Multiply quantised weights by their scales, giving fp32.
        profiles: Keep the changed count of every row and column, not only their summary.
        lr: Learning rate of the run: also say how many elements precision alone lets change in
            `steps` steps of this size (see `trimtab.measure.precision`).
        steps: Optimizer steps of the run; used with `lr`.
        betas: Adam's β1 and β2; used with `lr`.
        rank: Also the rank of each matrix's update, beside a random control. Slow.
        geometry: Also where the update points relative to base's singular vectors. Slow.
        seed: Of the random controls of `rank`.
        threads: Tensors read at the same time; by default the processors there are, at most 8.
        progress: Called after each chunk, from any thread.

    Returns:
        The comparison.

    Raises:
        CheckpointError: A checkpoint cannot be read.
        TensorMismatchError: The two have nothing in common, or differ in dtypes without `cast`.
        CriterionError: `changed` is no criterion.
        AnalysisError: `lr`, `steps` or `betas` are out of range, or `lr` is given for quantised
            weights.
    """
    criterion = parse_criterion(changed)
    with opened(base, tuned) as (base, tuned):
        labels = ("base", "tuned")
        alignment = align(base, tuned, cast=cast, dequantize=dequantize, labels=labels)
        if lr is not None and alignment.is_quantized:
            raise AnalysisError(
                "the weights are quantised, and training recomputes their scales: what one "
                "step can change is not known from the stored elements, so leave out lr (--lr)"
            )
        config = base.config or tuned.config
        task = _Task(
            scanners=Scanners(sum(item.stored[0].num_elements for item in alignment.items)),
            config=config,
            criteria=with_defaults([criterion]),
            keep_profiles=profiles,
            probe=None if lr is None else PrecisionProbe(lr, steps, betas),
            doubtful=alignment.doubtful,
        )
        done = stream(
            alignment,
            task,
            threads=threads,
            progress=progress,
            more=sum(work_of(item, config, rank + geometry) for item in alignment.items),
        )
        analyses: dict[str, Mapping[str, Any]] = {}
        if task.probe is not None:
            for item in task.set_aside.keys() & set(done.items):
                task.probe += task.set_aside[item]
            analyses["precision"] = task.probe.to_dict()
        matrix_analyses: dict[str, MatrixAnalysis] = {}
        if rank:
            matrix_analyses["rank"] = RankAnalysis(seed=seed)
        if geometry:
            matrix_analyses["geometry"] = GeometryAnalysis()
        if matrix_analyses:
            analyse_matrices(done.items, config, list(matrix_analyses.values()), done.report)
        analyses |= {name: analysis.to_dict() for name, analysis in matrix_analyses.items()}
        hashes = done.hashes
        return Comparison(
            base=record_of(base, hashes[0]),
            tuned=record_of(tuned, hashes[1]),
            coverage=_coverage(alignment, done),
            tensors=tuple(change for item in done.items for change in done.results[item]),
            criterion=criterion.key,
            conversion=done.conversion,
            provenance=made_now(
                device="cpu",
                seed=seed if rank else None,
                threads=done.num_threads,
                sums="fp64",
            ),
            analyses=analyses,
        )


@dataclass(eq=False)
class _Task:
    """Compares one tensor; holds the settings of a comparison and what its threads share."""

    scanners: Scanners
    config: Mapping[str, Any]
    criteria: Sequence[Criterion]
    keep_profiles: bool
    probe: PrecisionProbe | None
    doubtful: frozenset[Aligned]
    set_aside: dict[Aligned, PrecisionProbe] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, item: Aligned, reader: Reader) -> tuple[TensorChange, ...]:
        """The changes of a tensor's parts."""
        scanner = self.scanners.scanner
        parts = [
            (part, Tally(item.dtype, self.criteria, part.num_rows, part.num_columns))
            for part in parts_of(item.name, item.shape, self.config)
        ]
        # A probe of its own for each tensor, so that threads do not wait for each other.
        probe = None if self.probe is None else self.probe.empty()
        for chunk in reader.chunks():
            base_bits, tuned_bits = reader.read(chunk)
            for part, tally in parts:
                for inside, row, column in overlaps(part.rectangles, chunk):
                    before = _contiguous(base_bits, inside)
                    tally.add(before, _contiguous(tuned_bits, inside), row, column, scanner)
                    if probe is not None:
                        probe.add(part.kind, before, item.dtype)
        if probe is not None:
            self._add(probe, item)
        base, tuned = item.stored
        base_hash, tuned_hash = (source.finish() for source in reader.sources)
        return tuple(
            TensorChange(
                name=part.name_in(item.name),
                layer=part.layer,
                kind=part.kind,
                shape=part.shape_in(item.shape),
                dtype=item.dtype.name,
                base_dtype=base.dtype.name,
                tuned_dtype=tuned.dtype.name,
                base_hash=base_hash,
                tuned_hash=tuned_hash,
                counts=tally.counts(scanner),
                rows=Profile.of(tally.changed_per_row, keep=self.keep_profiles),
                columns=Profile.of(tally.changed_per_column, keep=self.keep_profiles),
            )
            for part, tally in parts
        )

    def _add(self, probe: PrecisionProbe, item: Aligned) -> None:
        """Add to the probe of the model; set doubtful tensors aside, which may not count."""
        with self.lock:
            if item in self.doubtful:
                self.set_aside[item] = probe
            elif self.probe is not None:
                self.probe += probe


def _contiguous(bits: Bits, inside: tuple[slice, slice]) -> Bits:
    part = bits[inside]
    return part if part.flags.c_contiguous else part.copy()


def _coverage(alignment: Alignment, done: Streamed[Any]) -> Coverage:
    """Sort every stored element into compared, tied, missing, extra, mismatched or folded."""
    (side,), hashes = alignment.sides, done.hashes
    sides = dict(zip(("base", "tuned"), alignment.checkpoints, strict=True))

    def only_in(index: int, tensor: StoredTensor) -> dict[str, Any]:
        return {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "dtype": tensor.dtype.name,
            "num_elements": tensor.num_elements,
            "hash": hashes[index][tensor.name],
        }

    def mismatch(stored: Sequence[StoredTensor], num_compared: int) -> dict[str, Any]:
        base, tuned = stored
        return {
            "name": base.name,
            "base_shape": list(base.shape),
            "tuned_shape": list(tuned.shape),
            "num_compared": num_compared,
            "num_uncompared_base": base.num_elements - num_compared,
            "num_uncompared_tuned": tuned.num_elements - num_compared,
            "base_hash": hashes[0][base.name],
            "tuned_hash": hashes[1][tuned.name],
        }

    num_base, num_tuned = (
        sum(tensor.num_elements for tensor in tensors)
        for tensors in zip(*(item.stored for item in done.items), *side.mismatched, strict=True)
    )
    return Coverage(
        num_base=num_base + sum(tensor.num_elements for tensor in side.missing.values()),
        num_tuned=num_tuned + sum(tensor.num_elements for tensor in side.extra),
        num_compared=sum(item.num_elements for item in done.items),
        tied=tuple(
            {
                "name": item.name,
                "tied_to": original.name,
                "num_elements": item.stored[0].num_elements,
                "stored_in": [
                    name for name, checkpoint in sides.items() if item.name in checkpoint.tensors
                ],
            }
            for item, original in done.tied
        ),
        missing=tuple(only_in(0, tensor) for tensor in side.missing.values()),
        extra=tuple(only_in(1, tensor) for tensor in side.extra),
        shape_mismatch=(
            *(mismatch(i.stored, i.num_elements) for i in done.items if i.is_resized),
            *(mismatch(pair, 0) for pair in side.mismatched),
        ),
        renamed=tuple({"base": base, "tuned": tuned} for base, tuned in side.renamed.items()),
        folded=tuple(
            {"name": name, "into": into, "num_elements": checkpoint.tensors[name].num_elements}
            for name, into in alignment.folded.items()
            for checkpoint in alignment.checkpoints
            if name in checkpoint.tensors
        ),
    )
