"""`Session`: takes the points of a run that is tracked.

In memory are, per element, its stored bits at the previous point and three flags: whether it
differs from the base, ever did, and has changed in that. The base stays on disk.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.elements import index_coding, step_kernels
from trimtab.elements.dtypes import Bits
from trimtab.elements.index_coding import EMPTY
from trimtab.errors import CheckpointError, OutputExistsError
from trimtab.measure.tracked_file import (
    FORMAT_VERSION,
    KindFigures,
    Part,
    StepFigures,
    TrackedFile,
    pack_point,
)
from trimtab.training.layout import Layout
from trimtab.training.tracker.file import (
    BaseFile,
    Sets,
    append_point,
    base_path,
    check_header,
    create_file,
    new_header,
    open_at_step,
    sets_of,
    write_base,
)
from trimtab.training.tracker.gradients import Gradients, Moments, Moved, count_gradients
from trimtab.training.tracker.parts import (
    CHUNK,
    MAGNITUDES,
    ModelPart,
    Processes,
    as_bits,
    buffer,
    find_parts,
    fitting_dtypes,
    stored_bits,
    tracked_parameters,
)

MOST_PENDING = 16
"""Chunks that may wait for a thread, approximately; limits memory for what moved them."""

Weights: TypeAlias = Tensor | NDArray[Any]
"""Flat elements: bits if they are on the CPU."""


class Observation(NamedTuple):
    """The counts of a part at one point.

    Attributes:
        figures: Figures without gradients.
        num_changed: Elements that differ from the base.
        num_ever: Elements that ever did.
        coding: How `toggled` is coded.
        toggled: Elements that started or stopped to differ from the base.
    """

    figures: KindFigures
    num_changed: int
    num_ever: int
    coding: int
    toggled: bytes


class Watched:
    """A part of the model, and the state of its elements.

    Attributes:
        part: The part.
        before: Its stored bits at the previous point, or those of the base.
        changed: Bit set of the elements that differ from the base.
        ever: Bit set of those that did at some point.
        start: Offset in the base file, in bytes.
    """

    def __init__(self, part: ModelPart, elements: Tensor, start: int) -> None:
        self.part = part
        self.start = start
        self.before: Bits = np.empty(elements.numel(), part.dtype.bits)
        for begin in range(0, elements.numel(), CHUNK):
            here = slice(begin, begin + CHUNK)
            self.before[here] = stored_bits(elements[here], part.dtype)
        words = step_kernels.num_words(self.before.size)
        self.changed = np.zeros(words, np.uint64)
        self.ever = np.zeros(words, np.uint64)
        self._toggled = np.zeros(words, np.uint64)

    @property
    def num_bytes(self) -> int:
        """Size of its base in bytes."""
        return self.before.nbytes

    def look(self, begin: int, weights: Weights, base: BaseFile, moved: Moved) -> Counts:
        """Compare the chunk of weights at `begin`, a multiple of `CHUNK`; see `observe`."""
        here = slice(begin, min(begin + CHUNK, self.before.size))
        words = slice(begin // step_kernels.WORD, -(-here.stop // step_kernels.WORD))
        dtype, before = self.part.dtype, self.before[here]
        now = stored_bits(weights[here], dtype)
        then = buffer("base", dtype.bits, before.size)
        base.read_into(self.start + begin * dtype.num_bytes, then)
        counts = step_kernels.look(
            now,
            before,
            then,
            MAGNITUDES[dtype.num_bytes],
            moved.values[here],
            moved.magnitude,
            moved.decays,
            moved.selected[here],
            self.changed[words],
            self.ever[words],
            self._toggled[words],
        )
        squares = step_kernels.squared_distance
        found = Counts(
            *counts,
            squares(now, before, dtype.storage) if counts[0] else 0.0,
            squares(now, then, dtype.storage) if counts[1] else 0.0,
        )
        if found.stepped:
            before[:] = now
        return found

    def settle(self, counts: Sequence[Counts], *, knows_moments: bool) -> Observation:
        """Sum the counts of all chunks; without any, nothing ever moved."""
        total = Counts(*map(sum, zip(Counts(), *counts, strict=True)))
        coding, toggled = index_coding.encode(self._toggled, self.before.size)
        figures = KindFigures(
            stepped=total.stepped,
            asked=total.asked if knows_moments else None,
            absorbed=total.absorbed if knows_moments else None,
            step_squares=total.step_squares,
            update_squares=total.update_squares,
        )
        return Observation(figures, total.changed, total.ever, coding, toggled)


class Counts(NamedTuple):
    """The counts of a chunk; the first five as `step_kernels.look` returns them."""

    stepped: int = 0
    changed: int = 0
    ever: int = 0
    asked: int = 0
    absorbed: int = 0
    step_squares: float = 0.0
    update_squares: float = 0.0


def observe(
    watched: Iterable[tuple[Watched, Tensor | None, Moved]],
    base: BaseFile,
    pool: ThreadPoolExecutor,
    *,
    knows_moments: bool,
) -> list[Observation]:
    """Take a point: compare every element with the previous point and with the base.

    Args:
        watched: Each part with its flat elements, or None if it was never trained; and what moved
            them. Consumed lazily.
        base: The open base.
        pool: Threads to run on.
        knows_moments: Whether it is known what moved the elements.
    """
    observations = []
    pending: deque[tuple[Watched, list[Future[Counts]]]] = deque()

    def settle() -> None:
        part, futures = pending.popleft()
        counts = [future.result() for future in futures]
        observations.append(part.settle(counts, knows_moments=knows_moments))

    for part, elements, moved in watched:
        futures = []
        if elements is not None:
            weights = as_bits(elements)[0] if elements.device.type == "cpu" else elements
            starts = range(0, part.before.size, CHUNK)
            futures = [pool.submit(part.look, start, weights, base, moved) for start in starts]
        pending.append((part, futures))
        while sum(len(futures) for _, futures in pending) > MOST_PENDING and len(pending) > 1:
            settle()
    while pending:
        settle()
    return observations


class TrackerSettings(NamedTuple):
    """What is tracked, and how.

    Attributes:
        path: The file.
        every: Steps between points.
        stored_dtype: Dtype in which fp32 weights are compared, by its safetensors name; None for
            that of the base.
        force: Whether a new run may replace an existing file.
    """

    path: Path
    every: int
    stored_dtype: str | None
    force: bool


class KindTotals(NamedTuple):
    """The figures of a kind of tensor at one point, for logs.

    Attributes:
        num_elements: Elements tracked.
        changed: Elements that differ from the base.
        ever: Elements that did at this point or an earlier one.
        figures: The other figures.
    """

    num_elements: int
    changed: int
    ever: int
    figures: KindFigures

    @classmethod
    def sum_of(cls, totals: Iterable[KindTotals]) -> KindTotals:
        """The totals of several kinds together."""
        num_elements, changed, ever, figures = zip(*totals, strict=True)
        return cls(sum(num_elements), sum(changed), sum(ever), KindFigures.sum_of(figures))


class Session:
    """Takes the points of a run.

    Attributes:
        last_step: Step of the last point.
        totals: Its totals by kind; empty before the first point, and in all processes but the
            first.
    """

    def __init__(self, settings: TrackerSettings, model: Any, step: int) -> None:
        """Start a new file at step 0, or resume an existing one at any other step.

        Args:
            settings: What is tracked, and how.
            model: The model: the base at step 0, otherwise the weights to resume from.
            step: Optimizer steps taken.

        Raises:
            OutputExistsError: A new run would replace a file.
            SettingsError: The resumed run has tracked something else.
            CheckpointError: The base of the resumed run is missing, or the weights are not those of
                the last point.
            ResultFormatError: The file of the resumed run is missing or damaged.
            OptimizerError: The parameters cannot be tracked.
        """
        self._settings = settings
        self.last_step = step
        self.totals: dict[str, KindTotals] = {}
        self._parameters = tracked_parameters(model)
        self._processes = Processes(self._parameters.values())
        if not self._processes.takes_part:
            return
        self._base_path = base_path(settings.path, self._processes.number, self._processes.size)
        self._pool = ThreadPoolExecutor(torch.get_num_threads())
        self._gradients: Gradients | None = None
        self._version = FORMAT_VERSION
        if step:
            self._resume(model, step)
        else:
            self._begin(model)

    def count_gradients(self, optimizer: Any) -> None:
        """Count the gradients before the step at which a point will be taken."""
        if self._processes.takes_part:
            watched = [(w.part, self._parameters[w.part.parameter]) for w in self._watched]
            self._gradients = count_gradients(optimizer, watched, self._pool)

    def take_point(self, step: int, optimizer: Any = None) -> None:
        """Take a point.

        Args:
            step: Optimizer steps taken.
            optimizer: The optimizer that has just taken the last of them, after
                `count_gradients`; None if anything else has happened since.
        """
        if not self._processes.takes_part:
            return
        gradients, self._gradients = self._gradients, None
        moments = None
        if optimizer is not None and gradients is not None and self.last_step == step - 1:
            moments = Moments(optimizer, self._parameters, gradients)
        rows = []
        for number, (watched, seen) in enumerate(
            zip(self._watched, self._observe(moments), strict=True)
        ):
            counts = None if gradients is None else gradients.counts[number]
            figures = seen.figures
            if counts is not None:
                figures = figures._replace(
                    gradient_elements=counts.num_seen, gradient_nonzero=counts.num_nonzero
                )
            totals = KindTotals(watched.before.size, seen.num_changed, seen.num_ever, figures)
            rows.append((watched.part.kind, totals, (seen.coding, seen.toggled)))
        self.last_step = step
        all_rows = list(chain.from_iterable(self._processes.to_first(rows)))
        if self._processes.is_first:
            by_kind: dict[str, list[KindTotals]] = {}
            for kind, totals, _ in all_rows:
                by_kind.setdefault(kind, []).append(totals)
            self.totals = {kind: KindTotals.sum_of(group) for kind, group in by_kind.items()}
            figures_by_kind = {kind: totals.figures for kind, totals in self.totals.items()}
            sets = [toggled for _, _, toggled in all_rows]
            point = pack_point(StepFigures(step, figures_by_kind), sets)
            append_point(self._settings.path, point, self._version)

    def close(self, *, finished: bool) -> None:
        """Close; `finished` says that all steps are taken, so that the base can be deleted."""
        if not self._processes.takes_part:
            return
        self._pool.shutdown()
        if finished:
            self._base_path.unlink(missing_ok=True)

    def _begin(self, model: Any) -> None:
        settings, processes = self._settings, self._processes
        processes.by_first(self._refuse_to_replace)
        stored = settings.stored_dtype
        if stored is None:
            fit = set.intersection(*processes.together(lambda: fitting_dtypes(self._parameters)))
            stored = next((name for name in ("BF16", "F16") if name in fit), "F32")
        self._watch(model, stored)
        write_base(self._base_path, (watched.before for watched in self._watched))
        digests = processes.together(self._base_digest)
        header = new_header(model, self._parameters, stored, settings.every, self._parts(), digests)
        processes.by_first(lambda: create_file(settings.path, header))

    def _resume(self, model: Any, step: int) -> None:
        settings, processes = self._settings, self._processes
        reached: list[TrackedFile] = []  # in the first process only

        def header_at_step() -> Mapping[str, Any]:
            reached.append(open_at_step(settings.path, step))
            return reached[0].header

        header = processes.by_first(header_at_step)
        self._watch(model, header["stored_dtype"])
        parts = self._parts()
        processes.by_first(
            lambda: check_header(header, settings.every, settings.stored_dtype, parts)
        )
        processes.together(lambda: self._check_base(header["base_digests"][processes.number]))
        sets: list[list[Sets]] = [[] for _ in range(processes.size)]
        for tracked in reached:
            for number, part in enumerate(tracked.parts):
                sets[part.process].append(sets_of(tracked, number))
        for watched, (changed, ever) in zip(self._watched, processes.from_first(sets), strict=True):
            watched.changed[:], watched.ever[:] = changed, ever
        processes.together(self._check_weights)
        self._version = header["format_version"]
        processes.by_first(lambda: os.truncate(settings.path, reached[0].end))

    def _watch(self, model: Any, stored: str) -> None:
        config: dict[str, Any] = getattr(getattr(model, "config", None), "to_dict", dict)()
        self._watched: list[Watched] = []
        start = 0
        for part in find_parts(self._parameters, Layout.of(model), stored, config):
            watched = Watched(part, part.of(self._parameters[part.parameter]), start)
            self._watched.append(watched)
            start += watched.num_bytes

    def _parts(self) -> list[Part]:
        """The parts of all processes."""
        number = self._processes.number
        own = [
            Part(w.part.name, w.part.kind, w.part.dtype.name, w.before.size, number)
            for w in self._watched
        ]
        return list(chain.from_iterable(self._processes.together(lambda: own)))

    def _observe(self, moments: Moments | None) -> list[Observation]:
        """Compare all weights; `moments` is None if it is unknown what moved them."""

        def chosen() -> Iterator[tuple[Watched, Tensor | None, Moved]]:
            for watched in self._watched:
                parameter = self._parameters[watched.part.parameter]
                if not parameter.requires_grad and not watched.ever.any():
                    yield watched, None, Moved()
                else:
                    moved = Moved() if moments is None else moments.of(watched.part)
                    yield watched, watched.part.of(parameter), moved

        with BaseFile(self._base_path) as base:
            return observe(chosen(), base, self._pool, knows_moments=moments is not None)

    def _refuse_to_replace(self) -> None:
        path = self._settings.path
        if path.is_dir():
            raise OutputExistsError(f"{path} is a folder: give UpdateTracker the name of a file")
        if path.exists() and not self._settings.force:
            raise OutputExistsError(
                f"{path} exists already: give another name, or UpdateTracker(…, force=True) to "
                "replace it (a resumed run continues it)"
            )
        path.parent.mkdir(parents=True, exist_ok=True)

    def _base_digest(self) -> str:
        with BaseFile(self._base_path) as base:
            return base.digest()

    def _check_base(self, digest: str) -> None:
        if self._base_digest() != digest:
            raise CheckpointError(
                f"{self._base_path}: not the base of {self._settings.path}: restore that file, or "
                "train from the base"
            )

    def _check_weights(self) -> None:
        if any(seen.coding != EMPTY for seen in self._observe(None)):
            raise CheckpointError(
                f"the weights to resume from are not those of step {self.last_step} in "
                f"{self._settings.path}: resume from a checkpoint of the same run"
            )
