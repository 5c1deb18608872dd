"""`trajectory`: one streaming pass over a base and a series of checkpoints.

Each tensor is a task of its own (`trimtab.checkpoints.stream`). A chunk is followed through the
whole
series before the next is read; only the last, the current and the previous checkpoint are in
memory.
The optimizer step of a checkpoint is read from its name: `checkpoint-120`, `global_step_120` or a
revision `step-120`; other names give no step.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.align import Aligned, Alignment, align
from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.names import parts_of
from trimtab.checkpoints.stream import Chunk, Progress, Reader, Source, Streamed, overlaps, stream
from trimtab.elements.fast import history_maker
from trimtab.elements.series import COUNTED, HistoryMaker
from trimtab.errors import AnalysisError
from trimtab.measure.trajectory_result import Point, PointCounts, SeriesCoverage, Trajectory
from trimtab.results.records import made_now, record_of

Ref: TypeAlias = str | os.PathLike[str] | Checkpoint
"""A checkpoint as a caller gives it."""

STEP = re.compile(r"(?<![A-Za-z])(?:checkpoint|step)[-_]?(\d{1,15})(?!\d)")
SAVED = re.compile(r"checkpoint-(\d{1,15})")
"""Name of a checkpoint in the folder of a training run, as transformers writes it."""


def step_of(id: str) -> int | None:
    """The optimizer step in the path or hub id of a checkpoint, or None.

    Examples:
        >>> step_of("runs/grpo/checkpoint-120"), step_of("org/model@step-7"), step_of("runs/sft-2")
        (120, 7, None)
    """
    path = Path(id)
    name = path.parent.name if path.suffix in (".safetensors", ".bin") else path.name
    match = STEP.search(name.rpartition("@")[2])
    return int(match[1]) if match else None


def expand(checkpoints: Ref | Iterable[Ref]) -> list[Ref]:
    """The checkpoints of a series, one by one.

    Args:
        checkpoints: In order; or a single one, or a training run's folder that holds
            `checkpoint-…` folders, which become the series in the order of their steps.

    Raises:
        AnalysisError: There are none.
    """
    if isinstance(checkpoints, Checkpoint):
        return [checkpoints]
    refs: list[Ref]
    refs = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else list(checkpoints)
    if not refs:
        raise AnalysisError("no checkpoints to follow: give at least one after the base")
    if len(refs) == 1 and not isinstance(refs[0], Checkpoint):
        return list(_saved_in(Path(refs[0]))) or refs
    return refs


def _saved_in(run: Path) -> list[str]:
    """The checkpoints in the folder of a training run, by their steps."""
    if not run.is_dir():
        return []
    saved = {
        int(match[1]): str(folder)
        for folder in run.iterdir()
        if (match := SAVED.fullmatch(folder.name)) and folder.is_dir()
    }
    return [folder for _, folder in sorted(saved.items())]


def check_order(ids: Sequence[str]) -> None:
    """Refuse checkpoints of one folder that are not in the order of their steps.

    A shell sorts `checkpoint-1000` before `checkpoint-200`, and a wrong order gives plausible
    figures.

    Raises:
        AnalysisError: They are not; the message names the first two.
    """
    for before, after in pairwise(ids):
        steps = step_of(before), step_of(after)
        if None in steps or Path(before).parent != Path(after).parent or "@" in before + after:
            continue
        if steps[0] >= steps[1]:  # type: ignore[operator]
            raise AnalysisError(
                f"{after} comes after {before}: expected checkpoints in the order of their steps, "
                "each once; give them so, or only the folder that holds them"
            )


def spacing(base: str, steps: Sequence[int | None]) -> int | None:
    """Optimizer steps from point to point, if known and constant.

    Args:
        base: Path or hub id of the base: step 0, unless its name gives an earlier step of the same
            run.
        steps: Of each point.
    """
    known = [step for step in steps if step is not None]
    if len(known) < len(steps):
        return None
    start = step_of(base)
    start = start if start is not None and start < known[0] else 0
    distances = {after - before for before, after in pairwise([start, *known])}
    return distances.pop() if len(distances) == 1 and min(distances) > 0 else None


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
        alignment = align(base, *series, cast=cast, dequantize=dequantize)
        num_followed = sum(item.num_elements for item in alignment.items)
        task = partial(
            _follow,
            history_maker(len(series) * num_followed),
            next((checkpoint.config for checkpoint in (base, *series) if checkpoint.config), {}),
        )
        buffers = _buffers(len(series))
        done = stream(alignment, task, threads=threads, progress=progress, buffers=buffers)
        counts = _by_kind([part for item in done.items for part in done.results[item]])
        steps = [step_of(checkpoint.id) for checkpoint in series]
        return Trajectory(
            base=record_of(base, done.hashes[0]),
            points=tuple(
                Point(
                    label=checkpoint.id,
                    step=step,
                    by_kind={kind: points[index] for kind, points in counts.items()},
                    checkpoint=record_of(checkpoint, done.hashes[1 + index]),
                )
                for index, (checkpoint, step) in enumerate(zip(series, steps, strict=True))
            ),
            observed="checkpoints",
            every=spacing(base.id, steps),
            coverage=_coverage(alignment, done),
            conversion=done.conversion,
            provenance=made_now(device="cpu", threads=done.num_threads),
        )


def _buffers(num_checkpoints: int) -> tuple[int, ...]:
    """The buffer of each checkpoint: 0 for base, 3 for the last, 1 and 2 in turn for the others."""
    return 0, *(1 + index % 2 for index in range(num_checkpoints - 1)), 3


class _PartCounts(NamedTuple):
    """Counts of a tensor, or of a part of one; `counts` is int64 `[points, len(COUNTED)]`."""

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


def _follow(
    make_history: HistoryMaker, config: Mapping[str, Any], item: Aligned, reader: Reader
) -> tuple[_PartCounts, ...]:
    """Follow one tensor: the counts of its parts."""
    parts = parts_of(item.name, item.shape, config)
    counted = tuple(
        _PartCounts(
            kind=part.kind,
            num_elements=part.num_rows * part.num_columns,
            counts=np.zeros((len(item.stored) - 1, len(COUNTED)), np.int64),
        )
        for part in parts
    )
    for chunk in reader.chunks():
        regions = [
            (inside, part_counts.counts)
            for part, part_counts in zip(parts, counted, strict=True)
            for inside, _, _ in overlaps(part.rectangles, chunk)
        ]
        _follow_chunk(make_history, chunk, reader.sources, regions)
    return counted


def _follow_chunk(
    make_history: HistoryMaker,
    chunk: Chunk,
    sources: Sequence[Source],
    regions: Sequence[tuple[tuple[slice, slice], NDArray[np.int64]]],
) -> None:
    """Follow a chunk through the series, adding to the counts of each region of it."""
    base, *between, end = sources
    first, last = base.read(chunk), end.read(chunk)
    histories = [
        make_history(*(np.ascontiguousarray(bits[inside]) for bits in (first, last)))
        for inside, _ in regions
    ]
    before = first
    for point, source in enumerate([*between, end]):
        now = last if source is end else source.read(chunk)
        for history, (inside, counts) in zip(histories, regions, strict=True):
            was, is_now = (np.ascontiguousarray(bits[inside]) for bits in (before, now))
            history.advance(was, is_now, counts[point])
        before = now


def _coverage(alignment: Alignment, done: Streamed[Any]) -> SeriesCoverage:
    """Sort stored elements into followed and not in all checkpoints."""
    others = [checkpoint.id for checkpoint in alignment.checkpoints[1:]]
    not_compared, renamed = _Rows("why"), _Rows("renamed")
    for item in alignment.items:
        base, *series = item.stored
        for label, tensor in zip(others, series, strict=True):
            if tensor.shape != base.shape:
                largest = max(tensor.num_elements, base.num_elements)
                not_compared.add(item.name, "resized", label, largest - item.num_elements)
    for label, side in zip(others, alignment.sides, strict=True):
        for name, tensor in side.missing.items():
            not_compared.add(name, "missing", label, tensor.num_elements)
        for tensor in side.extra:
            not_compared.add(tensor.name, "extra", label, tensor.num_elements)
        for in_base, tensor in side.mismatched:
            num_elements = max(in_base.num_elements, tensor.num_elements)
            not_compared.add(in_base.name, "shape", label, num_elements)
        for name, other in side.renamed.items():
            renamed.add(name, other, label)
    of_base = [tensor for index, tensor in alignment.apart if index == 0]
    return SeriesCoverage(
        num_base=sum(item.stored[0].num_elements for item in done.items)
        + sum(tensor.num_elements for tensor in of_base if tensor.name not in alignment.folded),
        num_compared=sum(item.num_elements for item in done.items),
        not_compared=not_compared.rows(),
        tied=tuple(
            {"name": copy.name, "tied_to": original.name, "num_elements": copy.num_elements}
            for copy, original in done.tied
        ),
        renamed=renamed.rows(),
        folded=tuple({"name": name, "into": into} for name, into in alignment.folded.items()),
    )


class _Rows:
    """Coverage rows; checkpoints with the same remark share a row."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, name: str, value: str, label: str, num_elements: int | None = None) -> None:
        """Add a remark on a tensor in one checkpoint; the largest number counts."""
        row = self._rows.setdefault((name, value), {"name": name, self._title: value, "points": []})
        row["points"].append(label)
        if num_elements is not None:
            row["num_elements"] = max(num_elements, row.get("num_elements", 0))

    def rows(self) -> tuple[Mapping[str, Any], ...]:
        """All rows, in order of first appearance."""
        return tuple(self._rows.values())
