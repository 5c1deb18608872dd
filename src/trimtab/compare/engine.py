"""`compare`: one streaming pass over two checkpoints.

Each pair of tensors is a task of its own, read in chunks from first byte to last by one thread,
so sums are added in a fixed order whatever the number of threads, and memory is a few buffers
per thread however large the checkpoints are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import trimtab
from trimtab.checkpoints import Checkpoint, StoredTensor, open_checkpoint, parts_of
from trimtab.checkpoints.pairing import Pair, may_repeat, pair_tensors
from trimtab.checkpoints.record import record_of
from trimtab.checkpoints.sources import Source, chunks_of, new_buffer, overlaps
from trimtab.checkpoints.tied import without_tied_copies
from trimtab.compare.accounting import coverage_of
from trimtab.compare.geometry import GeometryAnalysis
from trimtab.compare.matrices import analyse_matrices
from trimtab.compare.precision import PrecisionProbe
from trimtab.compare.rank import RankAnalysis
from trimtab.compare.result import Comparison, Profile, TensorChange
from trimtab.elements.criteria import Criterion, parse_criterion, with_defaults
from trimtab.elements.dtypes import Bits
from trimtab.elements.scan import NumpyScanner, Scanner, Tally
from trimtab.errors import AnalysisError

__all__ = ["compare"]

COMPILED_FROM = 4_000_000
"""Elements from which loading the compiled kernels costs less than it saves (about 0.5 s)."""

Progress = Callable[[int, int], None]
"""Called with bytes read since the last call, and bytes to read in all."""


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
        dequantize: Multiply fp8 weights by their block scales, giving fp32.
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
        AnalysisError: `lr`, `steps` or `betas` are out of range, or `lr` is given for fp8 weights
            with block scales.
    """
    criterion = parse_criterion(changed)
    with ExitStack() as stack:
        base = base if isinstance(base, Checkpoint) else stack.enter_context(open_checkpoint(base))
        tuned = (
            tuned if isinstance(tuned, Checkpoint) else stack.enter_context(open_checkpoint(tuned))
        )
        pairing = pair_tensors(base, tuned, cast=cast, dequantize=dequantize)
        apart = pairing.apart(base, tuned)
        num_threads = threads or min(os.cpu_count() or 1, 8)
        if lr is not None and pairing.has_block_scales:
            raise AnalysisError(
                "the weights are fp8 with block scales, which training computes anew: what one "
                "step can change is not known from the stored elements, so leave out lr (--lr)"
            )
        config = base.config or tuned.config
        num_bytes = sum(p.base.num_bytes + p.tuned.num_bytes for p in pairing.pairs)
        num_passes = 2 if rank or geometry else 1
        run = _Run(
            config=config,
            criteria=with_defaults([criterion]),
            keep_profiles=profiles,
            probe=None if lr is None else PrecisionProbe(lr, steps, betas),
            compiled=sum(pair.base.num_elements for pair in pairing.pairs) >= COMPILED_FROM,
            progress=progress,
            num_bytes=num_passes * num_bytes + sum(tensor.num_bytes for _, tensor in apart),
            doubtful=may_repeat(pairing.pairs, base, tuned),
        )
        results, hashes = run.all(pairing.pairs, apart, num_threads)
        kept, tied = without_tied_copies(pairing.pairs, run.doubtful, hashes, base, tuned)
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
            analyse_matrices(kept, config, list(matrix_analyses.values()), run.report)
        analyses |= {name: analysis.to_dict() for name, analysis in matrix_analyses.items()}
        return Comparison(
            base=record_of(base, hashes[0]),
            tuned=record_of(tuned, hashes[1]),
            coverage=coverage_of(base, tuned, pairing, kept, tied, hashes),
            tensors=tuple(change for pair in kept for change in results[pair]),
            criterion=criterion.key,
            conversion=pairing.conversion,
            provenance={
                "trimtab_version": trimtab.__version__,
                "command": None,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "device": "cpu",
                "seed": seed if rank else None,
                "threads": num_threads,
                "sums": "fp64",
            },
            analyses=analyses,
        )


class _Worker(threading.local):
    """What a thread keeps from task to task."""

    def __init__(self, compiled: bool) -> None:
        self.scanner: Scanner = NumpyScanner()
        if compiled:
            from trimtab.elements.kernels import NumbaScanner

            self.scanner = NumbaScanner()
        self.buffers = new_buffer(), new_buffer()


@dataclass(eq=False)
class _Run:
    """The settings of one comparison, and the threads that carry it out."""

    config: Any
    criteria: Sequence[Criterion]
    keep_profiles: bool
    probe: PrecisionProbe | None
    compiled: bool
    progress: Progress | None
    num_bytes: int
    doubtful: frozenset[Pair]
    set_aside: dict[Pair, PrecisionProbe] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def all(
        self,
        pairs: Sequence[Pair],
        apart: Sequence[tuple[int, StoredTensor]],
        num_threads: int,
    ) -> tuple[dict[Pair, tuple[TensorChange, ...]], tuple[dict[str, str], dict[str, str]]]:
        """Compare every pair and hash every other tensor.

        Args:
            pairs: To compare.
            apart: To hash only; 0 for a tensor of base, 1 for one of tuned.
            num_threads: Tasks at a time.

        Returns:
            The changes of each pair, and the hashes of base's and of tuned's tensors by name.
        """
        worker = _Worker(self.compiled)
        executor = ThreadPoolExecutor(num_threads, thread_name_prefix="trimtab-compare")
        try:
            # Large tensors first, so that no thread is left with one at the end.
            by_size = sorted(pairs, key=lambda pair: pair.base.num_bytes, reverse=True)
            compared = {pair: executor.submit(self.one, pair, worker) for pair in by_size}
            hashed = [executor.submit(self.hash_only, tensor, worker) for _, tensor in apart]
            hashes: tuple[dict[str, str], dict[str, str]] = ({}, {})
            for (side, tensor), task in zip(apart, hashed, strict=True):
                hashes[side][tensor.name] = task.result()
            changes: dict[Pair, tuple[TensorChange, ...]] = {}
            for pair in pairs:
                changes[pair], base_hash, tuned_hash = compared[pair].result()
                hashes[0][pair.base.name] = base_hash
                hashes[1][pair.tuned.name] = tuned_hash
        finally:
            # After an error or Ctrl-C the tasks under way end at their next chunk.
            self.stop.set()
            executor.shutdown(cancel_futures=True)
        return changes, hashes

    def one(self, pair: Pair, worker: _Worker) -> tuple[tuple[TensorChange, ...], str, str]:
        """Compare one pair of tensors: changes of its parts, and the hashes of both sides."""
        base = Source(pair.base, pair.dtype, pair.base_scale, worker.buffers[0])
        tuned = Source(pair.tuned, pair.dtype, pair.tuned_scale, worker.buffers[1])
        parts = [
            (part, Tally(pair.dtype, self.criteria, part.num_rows, part.num_columns))
            for part in parts_of(pair.name, pair.shape, self.config)
        ]
        # A probe of its own for each tensor, so that threads do not wait for each other.
        probe = None if self.probe is None else self.probe.empty()
        bytes_per_element = pair.base.dtype.num_bytes + pair.tuned.dtype.num_bytes
        for chunk in chunks_of(pair.shape):
            if self.stop.is_set():
                return (), "", ""  # nobody waits for the result any more
            base_bits, tuned_bits = base.read(chunk), tuned.read(chunk)
            for part, tally in parts:
                for inside, row, column in overlaps(part.rectangles, chunk):
                    before = _contiguous(base_bits, inside)
                    tally.add(before, _contiguous(tuned_bits, inside), row, column, worker.scanner)
                    if probe is not None:
                        probe.add(part.kind, before, pair.dtype)
            self.report(chunk.num_rows * chunk.num_columns * bytes_per_element)
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
                counts=tally.counts(worker.scanner),
                rows=Profile.of(tally.changed_per_row, keep=self.keep_profiles),
                columns=Profile.of(tally.changed_per_column, keep=self.keep_profiles),
            )
            for part, tally in parts
        )
        return changes, base_hash, tuned_hash

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

    def hash_only(self, tensor: StoredTensor, worker: _Worker) -> str:
        """Hash a tensor that has no counterpart."""
        digest = Source(tensor, tensor.dtype, None, worker.buffers[0]).finish()
        self.report(tensor.num_bytes)
        return digest

    def report(self, num_bytes: int) -> None:
        """Tell that so many bytes are done."""
        if self.progress is not None:
            self.progress(num_bytes, self.num_bytes)


def _contiguous(bits: Bits, inside: tuple[slice, slice]) -> Bits:
    part = bits[inside]
    return part if part.flags.c_contiguous else part.copy()
