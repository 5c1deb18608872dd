"""`compare`: one streaming pass over two checkpoints.

Each pair of tensors is a task of its own, see `trimtab.checkpoints.stream`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.checkpoints import Checkpoint, opened, parts_of
from trimtab.checkpoints.align import Pair, may_repeat, pair_tensors, without_tied_copies
from trimtab.checkpoints.quantized import with_scales
from trimtab.checkpoints.stream import Digests, Progress, Reading, overlaps
from trimtab.compare.accounting import coverage_of
from trimtab.compare.geometry import GeometryAnalysis
from trimtab.compare.matrices import analyse_matrices, work_of
from trimtab.compare.precision import PrecisionProbe
from trimtab.compare.rank import RankAnalysis
from trimtab.compare.result import Comparison, Profile, TensorChange
from trimtab.elements.criteria import Criterion, parse_criterion, with_defaults
from trimtab.elements.dtypes import Bits
from trimtab.elements.fast import Scanners
from trimtab.elements.scan import Tally
from trimtab.errors import AnalysisError
from trimtab.results.records import made_now, record_of

__all__ = ["compare"]


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
            `steps` steps of this size (see `trimtab.compare.precision`).
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
        pairing = pair_tensors(base, tuned, cast=cast, dequantize=dequantize)
        if lr is not None and pairing.is_quantized:
            raise AnalysisError(
                "the weights are quantised, and training computes their scales anew: what one "
                "step can change is not known from the stored elements, so leave out lr (--lr)"
            )
        config = base.config or tuned.config
        reading = Reading(
            pairing.pairs,
            pairing.apart(base, tuned),
            threads=threads,
            progress=progress,
            more=sum(work_of(pair, config, rank + geometry) for pair in pairing.pairs),
        )
        run = _Run(
            reading=reading,
            scanners=Scanners(sum(pair.base.num_elements for pair in pairing.pairs)),
            config=config,
            criteria=with_defaults([criterion]),
            keep_profiles=profiles,
            probe=None if lr is None else PrecisionProbe(lr, steps, betas),
            doubtful=may_repeat(pairing.pairs, base, tuned),
        )
        results, hashes = reading.run(run.one)
        kept, tied = without_tied_copies(pairing.pairs, run.doubtful, hashes)
        analyses: dict[str, Mapping[str, Any]] = {}
        if run.probe is not None:
            for pair in run.set_aside.keys() & set(kept):
                run.add_probe(run.set_aside[pair])
            analyses["precision"] = run.probe.to_dict()
        matrix_analyses: dict[str, RankAnalysis | GeometryAnalysis] = {}
        if rank:
            matrix_analyses["rank"] = RankAnalysis(seed=seed)
        if geometry:
            matrix_analyses["geometry"] = GeometryAnalysis()
        if matrix_analyses:
            analyse_matrices(kept, config, list(matrix_analyses.values()), reading.report)
        analyses |= {name: analysis.to_dict() for name, analysis in matrix_analyses.items()}
        return Comparison(
            base=record_of(base, hashes[0]),
            tuned=record_of(tuned, hashes[1]),
            coverage=coverage_of(base, tuned, pairing, kept, tied, hashes),
            tensors=tuple(change for pair in kept for change in results[pair]),
            criterion=criterion.key,
            conversion=with_scales(pairing.conversion, pairing.pairs, pairing.scales, hashes),
            provenance=made_now(
                device="cpu",
                seed=seed if rank else None,
                threads=reading.num_threads,
                sums="fp64",
            ),
            analyses=analyses,
        )


@dataclass(eq=False)
class _Run:
    """The settings of one comparison, and what its threads share."""

    reading: Reading[Pair]
    scanners: Scanners
    config: Any
    criteria: Sequence[Criterion]
    keep_profiles: bool
    probe: PrecisionProbe | None
    doubtful: frozenset[Pair]
    set_aside: dict[Pair, PrecisionProbe] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def one(self, pair: Pair) -> tuple[tuple[TensorChange, ...], Digests]:
        """Compare one pair of tensors: changes of its parts, and the hashes of both sides."""
        stored, scales = pair.stored, (pair.base_scale, pair.tuned_scale)
        base, tuned = self.reading.sources(stored, pair.dtype, scales)
        scanner = self.scanners.scanner
        parts = [
            (part, Tally(pair.dtype, self.criteria, part.num_rows, part.num_columns))
            for part in parts_of(pair.name, pair.shape, self.config)
        ]
        # A probe of its own for each tensor, so that threads do not wait for each other.
        probe = None if self.probe is None else self.probe.empty()
        for chunk in self.reading.chunks(stored, pair.shape):
            base_bits, tuned_bits = base.read(chunk), tuned.read(chunk)
            for part, tally in parts:
                for inside, row, column in overlaps(part.rectangles, chunk):
                    before = _contiguous(base_bits, inside)
                    tally.add(before, _contiguous(tuned_bits, inside), row, column, scanner)
                    if probe is not None:
                        probe.add(part.kind, before, pair.dtype)
        base_hash, tuned_hash = base.finish(), tuned.finish()
        if probe is not None:
            self._keep(probe, pair)
        changes = tuple(
            TensorChange(
                name=part.name_in(pair.name),
                layer=part.layer,
                kind=part.kind,
                shape=part.shape_in(pair.shape),
                dtype=pair.dtype.name,
                base_dtype=pair.base.dtype.name,
                tuned_dtype=pair.tuned.dtype.name,
                base_hash=base_hash,
                tuned_hash=tuned_hash,
                counts=tally.counts(scanner),
                rows=Profile.of(tally.changed_per_row, keep=self.keep_profiles),
                columns=Profile.of(tally.changed_per_column, keep=self.keep_profiles),
            )
            for part, tally in parts
        )
        return changes, (base_hash, tuned_hash)

    def _keep(self, probe: PrecisionProbe, pair: Pair) -> None:
        """Add to the probe of the model, or set aside where the tensor may not count in the end."""
        with self.lock:
            if pair in self.doubtful:
                self.set_aside[pair] = probe
            else:
                self.add_probe(probe)

    def add_probe(self, probe: PrecisionProbe) -> None:
        """Add to the probe of the model."""
        assert self.probe is not None
        self.probe += probe


def _contiguous(bits: Bits, inside: tuple[slice, slice]) -> Bits:
    part = bits[inside]
    return part if part.flags.c_contiguous else part.copy()
