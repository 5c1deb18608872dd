"""`trajectory`: one streaming pass over a base and a series of checkpoints.

Each tensor of the model is a task of its own, see `trimtab.checkpoints.stream`. A chunk of it is
followed through the whole series before the next one is read: of the checkpoints, only the last,
the one at hand and the one before are held, so memory does not grow with their number.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints import Checkpoint, opened, parts_of
from trimtab.checkpoints.align import without_tied_copies
from trimtab.checkpoints.quantized import with_scales
from trimtab.checkpoints.stream import Chunk, Digests, Progress, Reading, Source, overlaps
from trimtab.compare.trajectory_matching import Followed, coverage_of, match_series
from trimtab.compare.trajectory_result import Point, PointCounts, Trajectory
from trimtab.compare.trajectory_series import Ref, check_order, expand, spacing, step_of
from trimtab.elements.fast import history_maker
from trimtab.elements.series import COUNTED, HistoryMaker
from trimtab.results.records import made_now, record_of

__all__ = ["trajectory"]


def trajectory(
    base: str | os.PathLike[str] | Checkpoint,
    checkpoints: Ref | Iterable[Ref],
    *,
    cast: str | None = None,
    dequantize: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Trajectory:
    """Follow every element from a base through a series of checkpoints, by bits.

    Args:
        base: The checkpoint before training: a folder, a file, a hub id (`org/name@revision`),
            or an open checkpoint.
        checkpoints: Those after it, in the order of training; or the folder of a training run
            that holds `checkpoint-…` folders, which are taken in the order of their steps.
        cast: Round every float tensor to this dtype first (`bf16`). Without it, tensors of
            different dtypes are refused.
        dequantize: Multiply quantised weights by their scales, giving fp32.
        threads: Tensors read at the same time; by default the processors there are, at most 8.
        progress: Called after each chunk, from any thread.

    Returns:
        A point for each checkpoint; its step is what the checkpoint's name says.

    Raises:
        CheckpointError: A checkpoint cannot be read.
        TensorMismatchError: Checkpoints have nothing in common with the base, or differ in
            dtypes without `cast`.
        AnalysisError: There are no checkpoints, or those of one folder are not in the order of
            their steps.
    """
    refs = expand(checkpoints)
    check_order([ref.id if isinstance(ref, Checkpoint) else os.fspath(ref) for ref in refs])
    with opened(base, *refs) as (base, *series):
        matching = match_series(base, series, cast=cast, dequantize=dequantize)
        reading = Reading(
            matching.followed,
            matching.apart,
            threads=threads,
            progress=progress,
            buffers=_buffers(len(series)),
        )
        run = _Run(
            reading=reading,
            make_history=history_maker(
                len(series) * sum(item.num_elements for item in matching.followed)
            ),
            config=next((of.config for of in (base, *series) if of.config), {}),
        )
        results, hashes = reading.run(run.one)
        kept, tied = without_tied_copies(matching.followed, matching.doubtful, hashes)
        counts = _by_kind([part for item in kept for part in results[item]])
        steps = [step_of(checkpoint.id) for checkpoint in series]
        return Trajectory(
            base=record_of(base, hashes[0]),
            points=tuple(
                Point(
                    label=checkpoint.id,
                    step=step,
                    by_kind={kind: points[place] for kind, points in counts.items()},
                    checkpoint=record_of(checkpoint, hashes[1 + place]),
                )
                for place, (checkpoint, step) in enumerate(zip(series, steps, strict=True))
            ),
            observed="checkpoints",
            every=spacing(base.id, steps),
            coverage=coverage_of(matching, kept, tied),
            conversion=with_scales(matching.conversion, matching.followed, matching.scales, hashes),
            provenance=made_now(device="cpu", threads=reading.num_threads),
        )


def _buffers(num_checkpoints: int) -> tuple[int, ...]:
    """Which buffer each is read into: base 0, the last 3, and the others 1 and 2 in turn."""
    return 0, *(1 + place % 2 for place in range(num_checkpoints - 1)), 3


class _PartCounts(NamedTuple):
    """What was counted in a tensor, or in a part of a fused one.

    Attributes:
        kind: What it is.
        num_elements: Its elements.
        counts: int64 `[points, len(COUNTED)]`.
    """

    kind: str
    num_elements: int
    counts: NDArray[np.int64]


def _by_kind(parts: Sequence[_PartCounts]) -> dict[str, tuple[PointCounts, ...]]:
    """Counts of each kind at every point, kinds in the order in which they first appear."""
    num_elements: dict[str, int] = {}
    counts: dict[str, NDArray[np.int64]] = {}
    for part in parts:
        num_elements[part.kind] = num_elements.get(part.kind, 0) + part.num_elements
        counts[part.kind] = counts.get(part.kind, 0) + part.counts
    return {
        kind: tuple(
            PointCounts(
                num_elements=num_elements[kind],
                **(named := dict(zip(COUNTED, row, strict=True))),
                returned=named["ever"] - named["changed"],
            )
            for row in counts[kind].tolist()
        )
        for kind in counts
    }


@dataclass(frozen=True, eq=False)
class _Run:
    """What the threads of one pass share."""

    reading: Reading[Followed]
    make_history: HistoryMaker
    config: Mapping[str, Any]

    def one(self, item: Followed) -> tuple[tuple[_PartCounts, ...], Digests]:
        """Follow one tensor: the counts of its parts, and its hash in base and each checkpoint."""
        sources = self.reading.sources(item.stored, item.dtype, item.scales)
        parts = parts_of(item.name, item.shape, self.config)
        found = tuple(
            _PartCounts(
                kind=part.kind,
                num_elements=part.num_rows * part.num_columns,
                counts=np.zeros((len(sources) - 1, len(COUNTED)), np.int64),
            )
            for part in parts
        )
        for chunk in self.reading.chunks(item.stored, item.shape):
            places = [
                (inside, part_counts.counts)
                for part, part_counts in zip(parts, found, strict=True)
                for inside, _, _ in overlaps(part.rectangles, chunk)
            ]
            self._follow(chunk, sources, places)
        return found, tuple(source.finish() for source in sources)

    def _follow(
        self,
        chunk: Chunk,
        sources: Sequence[Source],
        places: Sequence[tuple[tuple[slice, slice], NDArray[np.int64]]],
    ) -> None:
        """Follow a chunk through the series, adding to the counts of each place in it."""
        base, *between, end = sources
        first, last = base.read(chunk), end.read(chunk)
        histories = [
            self.make_history(*(np.ascontiguousarray(bits[inside]) for bits in (first, last)))
            for inside, _ in places
        ]
        before = first
        for point, source in enumerate([*between, end]):
            now = last if source is end else source.read(chunk)
            for history, (inside, counts) in zip(histories, places, strict=True):
                was, is_now = (np.ascontiguousarray(bits[inside]) for bits in (before, now))
                history.advance(was, is_now, counts[point])
            before = now
