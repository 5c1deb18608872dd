"""A run that is being tracked: from its first step, or from the one it is resumed after.

For each element three bits are kept (whether it differs from the base, ever did, entered or left)
and its stored bits at the point before. The base stays on disk.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from trimtab.training.tracker.gradients import Gradients, Moments, Moved, see_gradients
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
"""Chunks that wait for a thread, or a few more: what moved them is in memory."""

Weights: TypeAlias = Tensor | NDArray[Any]
"""Elements, flat: bits if they are on the CPU."""


class Seen(NamedTuple):
    """What one point saw of a part.

    Attributes:
        figures: Without gradients.
        num_changed: Elements that differ from the base.
        num_ever: Elements that ever did.
        coding: How `toggled` is coded.
        toggled: Elements that entered or left those that differ from the base.
    """

    figures: KindFigures
    num_changed: int
    num_ever: int
    coding: int
    toggled: bytes


class Watched:
    """A part of the model, and what is known of its elements.

    Attributes:
        part: The part.
        before: Its stored bits at the last point, or those of the base.
        changed: Set of the elements that differ from the base.
        ever: Set of those that did at some point.
        start: Where in the base file it begins, in bytes.
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
        """Bytes of its base."""
        return self.before.nbytes

    def look(self, begin: int, weights: Weights, base: BaseFile, moved: Moved) -> Counts:
        """Look at a chunk of weights from `begin`, a multiple of `CHUNK`; see `look_at`."""
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

    def settle(self, counts: Sequence[Counts], *, knows_moments: bool) -> Seen:
        """Put what was found in the chunks together; without any, nothing ever moved."""
        total = Counts(*map(sum, zip(Counts(), *counts, strict=True)))
        coding, toggled = index_coding.encode(self._toggled, self.before.size)
        figures = KindFigures(
            stepped=total.stepped,
            asked=total.asked if knows_moments else None,
            absorbed=total.absorbed if knows_moments else None,
            step_squares=total.step_squares,
            update_squares=total.update_squares,
        )
        return Seen(figures, total.changed, total.ever, coding, toggled)


class Counts(NamedTuple):
    """What was found in a chunk; the first five as `step_kernels.look` returns them."""

    stepped: int = 0
    changed: int = 0
    ever: int = 0
    asked: int = 0
    absorbed: int = 0
    step_squares: float = 0.0
    update_squares: float = 0.0


def look_at(
    watched: Iterable[tuple[Watched, Tensor | None, Moved]],
    base: BaseFile,
    pool: ThreadPoolExecutor,
    *,
    knows_moments: bool,
) -> list[Seen]:
    """Take a point: compare every element with the point before and with the base.

    Args:
        watched: Each part with its elements, flat, or None if nothing ever trained it; and what
            moved them. Not all are taken at once.
        base: Where the base is.
        pool: Threads to do it on.
        knows_moments: Whether it is known what moved the elements.
    """
    seen = []
    pending: deque[tuple[Watched, list[Future[Counts]]]] = deque()

    def settle() -> None:
        of, futures = pending.popleft()
        seen.append(of.settle([future.result() for future in futures], knows_moments=knows_moments))

    for of, elements, moved in watched:
        futures = []
        if elements is not None:
            weights = as_bits(elements)[0] if elements.device.type == "cpu" else elements
            starts = range(0, of.before.size, CHUNK)
            futures = [pool.submit(of.look, start, weights, base, moved) for start in starts]
        pending.append((of, futures))
        while sum(len(futures) for _, futures in pending) > MOST_PENDING and len(pending) > 1:
            settle()
    while pending:
        settle()
    return seen


class TrackerSettings(NamedTuple):
    """What is tracked, and how.

    Attributes:
        path: The file.
        every: Steps from point to point.
        stored_dtype: In which fp32 weights are compared, as safetensors spells it; None for that
            of the base.
        force: Whether a new run may take the place of an old file.
    """

    path: Path
    every: int
    stored_dtype: str | None
    force: bool


class KindTotals(NamedTuple):
    """What one point saw of a kind, for logs.

    Attributes:
        num_elements: Elements tracked.
        changed: Differ from the base now.
        ever: Differed from it at this point or one before.
        figures: The rest.
    """

    num_elements: int
    changed: int
    ever: int
    figures: KindFigures

    @classmethod
    def sum_of(cls, totals: Iterable[KindTotals]) -> KindTotals:
        """All these elements together."""
        num_elements, changed, ever, figures = zip(*totals, strict=True)
        return cls(sum(num_elements), sum(changed), sum(ever), KindFigures.sum_of(figures))


class Session:
    """Takes the points of a run.

    Attributes:
        last_step: Step of the last point.
        totals: What it saw, by kind; empty before the first, and in all processes but the first.
    """

    def __init__(self, settings: TrackerSettings, model: Any, step: int) -> None:
        """Begin, or go on.

        Args:
            settings: What is tracked, and how.
            model: The model: the base at step 0, and what training goes on from at any other.
            step: Optimizer steps taken.

        Raises:
            OutputExistsError: A new run would replace a file.
            SettingsError: A run is resumed that has tracked something else.
            CheckpointError: A run is resumed and its base is gone, or it goes on from other
                weights than the file knows.
            ResultFormatError: A run is resumed whose file is gone or damaged.
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
            self._go_on(model, step)
        else:
            self._begin(model)

    def see_gradients(self, optimizer: Any) -> None:
        """See the gradients before the step whose point will be taken."""
        if self._processes.takes_part:
            watched = [(of.part, self._parameters[of.part.parameter]) for of in self._watched]
            self._gradients = see_gradients(optimizer, watched, self._pool)

    def take_point(self, step: int, optimizer: Any = None) -> None:
        """Take a point.

        Args:
            step: Optimizer steps taken.
            optimizer: What took the last of them, just now, after `see_gradients`; None if more
                has happened since.
        """
        if not self._processes.takes_part:
            return
        gradients, self._gradients = self._gradients, None
        moments = None
        if optimizer is not None and gradients is not None and self.last_step == step - 1:
            moments = Moments(optimizer, self._parameters, gradients)
        seen = self._look(moments)
        parts = []
        for number, (of, found) in enumerate(zip(self._watched, seen, strict=True)):
            counts = None if gradients is None else gradients.counts[number]
            figures = found.figures
            if counts is not None:
                figures = figures._replace(
                    gradient_elements=counts.num_seen, gradient_nonzero=counts.num_nonzero
                )
            totals = KindTotals(of.before.size, found.num_changed, found.num_ever, figures)
            parts.append((of.part.kind, totals, (found.coding, found.toggled)))
        self.last_step = step
        of_all = [part for of in self._processes.to_first(parts) for part in of]
        if self._processes.is_first:
            by_kind: dict[str, list[KindTotals]] = {}
            for kind, totals, _ in of_all:
                by_kind.setdefault(kind, []).append(totals)
            self.totals = {kind: KindTotals.sum_of(of) for kind, of in by_kind.items()}
            figures_of = {kind: of.figures for kind, of in self.totals.items()}
            sets = [toggled for _, _, toggled in of_all]
            point = pack_point(StepFigures(step, figures_of), sets)
            append_point(self._settings.path, point, self._version)

    def close(self, *, finished: bool) -> None:
        """Shut down; `finished` is whether all steps are taken, so that the base can be deleted."""
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
        write_base(self._base_path, (of.before for of in self._watched))
        digests = processes.together(self._base_digest)
        header = new_header(model, self._parameters, stored, settings.every, self._parts(), digests)
        processes.by_first(lambda: create_file(settings.path, header))

    def _go_on(self, model: Any, step: int) -> None:
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
        for of, (changed, ever) in zip(self._watched, processes.from_first(sets), strict=True):
            of.changed[:], of.ever[:] = changed, ever
        processes.together(self._check_weights)
        self._version = header["format_version"]
        processes.by_first(lambda: os.truncate(settings.path, reached[0].end))

    def _watch(self, model: Any, stored: str) -> None:
        config: dict[str, Any] = getattr(getattr(model, "config", None), "to_dict", dict)()
        self._watched: list[Watched] = []
        start = 0
        for part in find_parts(self._parameters, Layout.of(model), stored, config):
            of = Watched(part, part.of(self._parameters[part.parameter]), start)
            self._watched.append(of)
            start += of.num_bytes

    def _parts(self) -> list[Part]:
        """What is counted in all processes."""
        number = self._processes.number
        mine = [
            Part(of.part.name, of.part.kind, of.part.dtype.name, of.before.size, number)
            for of in self._watched
        ]
        return [part for parts in self._processes.together(lambda: mine) for part in parts]

    def _look(self, moments: Moments | None) -> list[Seen]:
        """Compare all weights; `moments` is None if it is not known what moved them."""

        def chosen() -> Iterator[tuple[Watched, Tensor | None, Moved]]:
            for of in self._watched:
                parameter = self._parameters[of.part.parameter]
                if not parameter.requires_grad and not of.ever.any():
                    yield of, None, Moved()
                else:
                    moved = Moved() if moments is None else moments.of(of.part)
                    yield of, of.part.of(parameter), moved

        with BaseFile(self._base_path) as base:
            return look_at(chosen(), base, self._pool, knows_moments=moments is not None)

    def _refuse_to_replace(self) -> None:
        path = self._settings.path
        if path.is_dir():
            raise OutputExistsError(f"{path} is a folder: give UpdateTracker the name of a file")
        if path.exists() and not self._settings.force:
            raise OutputExistsError(
                f"{path} exists already: give another name, or UpdateTracker(…, force=True) to "
                "replace it; a run that is resumed goes on in it"
            )
        path.parent.mkdir(parents=True, exist_ok=True)

    def _base_digest(self) -> str:
        with BaseFile(self._base_path) as base:
            return base.digest()

    def _check_base(self, digest: str) -> None:
        if self._base_digest() != digest:
            raise CheckpointError(
                f"{self._base_path}: not the base that {self._settings.path} was begun with: put "
                "that back, or train from the base"
            )

    def _check_weights(self) -> None:
        if any(seen.coding != EMPTY for seen in self._look(None)):
            raise CheckpointError(
                f"the weights to go on from are not those that {self._settings.path} has a point "
                f"of at step {self.last_step}: resume from the checkpoint of the same run"
            )
