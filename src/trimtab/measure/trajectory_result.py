"""The result of following a series of checkpoints or steps: how the subnetwork forms.

Each point has integer counts by kind of tensor, from which every figure is derived. "Changed" is by
bits, in the stored dtype. What moves and returns between two observed points is not seen, so counts
of all that ever changed are lower bounds and depend on the cadence, which is always shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias, TypedDict, get_args

from trimtab.results.records import CheckpointRecord, Tied
from trimtab.results.result import Result
from trimtab.results.schema import Count, Like, Provenance
from trimtab.words import one_line, out_of, plural

SETTLED_FROM = 0.95
"""Likeness to the final mask from which the mask counts as settled."""

COVERAGE_LISTS = ("not_compared", "tied", "renamed", "folded")
"""Lists of tensors with remarks, in the order of reports."""

Observed: TypeAlias = Literal["checkpoints", "steps"]
"""What the points are: checkpoints on disk, or steps of a tracked run."""

Likeness: TypeAlias = Literal["coverage", "jaccard"]
"""Of the elements changed at a point (M) and at the last one (F): |M ∩ F| / |F|, or / |M ∪ F|."""


class PointCounts(NamedTuple):
    """Counts of elements at one point of a series, all by bits.

    Attributes:
        num_elements: Elements observed.
        changed: Differ from the base now.
        stepped: Differ from the previous point, or from the base at the first point.
        ever: Differed from the base at this or an earlier point.
        returned: Differed from it and are equal to it now: cancelled.
        in_final: Differ from the base now and at the last point.
        ever_in_final: Differed from the base so far, and differ from it at the last point.
    """

    num_elements: int
    changed: int
    stepped: int
    ever: int
    returned: int
    in_final: int
    ever_in_final: int

    def summary(self) -> str:
        """`1 of 10 elements changed`."""
        return f"{out_of(self.changed, self.num_elements, 'element')} changed"

    @property
    def untouched(self) -> int:
        """Elements that never differed from the base so far."""
        return self.num_elements - self.ever

    @property
    def outside_final(self) -> int:
        """Elements that differed from the base so far and are equal to it at the last point."""
        return self.ever - self.ever_in_final

    @classmethod
    def sum_of(cls, counts: Iterable[PointCounts]) -> PointCounts:
        """The sum of some counts."""
        return cls(*map(sum, zip(cls(0, 0, 0, 0, 0, 0, 0), *counts, strict=True)))

    def problem(self) -> str | None:
        """A contradiction between the counts, or None."""
        if not all(type(count) is int and 0 <= count <= self.num_elements for count in self):
            return f"counts are between 0 and num_elements, found {self._asdict()}"
        if self.changed + self.returned != self.ever:
            return f"changed + returned is ever, found {self._asdict()}"
        if not self.in_final <= min(self.changed, self.ever_in_final):
            return f"in_final is at most changed and ever_in_final, found {self._asdict()}"
        if self.ever_in_final > self.ever:
            return f"ever_in_final is at most ever, found {self._asdict()}"
        return None


@dataclass(frozen=True)
class Point:
    """One point of a series.

    Attributes:
        label: The checkpoint as the user gave it, or the step.
        step: Optimizer step of the run, if known.
        by_kind: Counts by kind of tensor; the same kinds at every point of a series.
        checkpoint: What was read, for a checkpoint on disk.
    """

    PLAIN: ClassVar = ("label", "step", "checkpoint", "total", "by_kind")

    label: str
    step: int | None
    by_kind: Mapping[str, PointCounts]
    checkpoint: CheckpointRecord | None = None

    def __repr__(self) -> str:
        return one_line(self, f"{self.label}: {self.total.summary()}")

    @cached_property
    def total(self) -> PointCounts:
        """Counts of the whole model."""
        return PointCounts.sum_of(self.by_kind.values())

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        for kind, counts in self.by_kind.items():
            if problem := counts.problem():
                yield f"{kind[:60]!a}: {problem}"


class NotFollowed(TypedDict):
    """A tensor that not all have alike."""

    name: str
    why: str
    points: tuple[str, ...]
    num_elements: Count


class Renamed(TypedDict):
    """A tensor of another name."""

    name: str
    renamed: str
    points: tuple[str, ...]


class Folded(TypedDict):
    """Scales that were multiplied into their weights."""

    name: str
    into: str


@dataclass(frozen=True)
class SeriesCoverage:
    """Which stored elements the counts speak of, and which they do not.

    A tensor is followed only if base and every checkpoint have it.

    Attributes:
        num_base: Elements stored in base, without tied copies.
        num_compared: Elements followed through the series.
        not_compared: `{"name", "why", "points", "num_elements"}`: the labels of the checkpoints
            in which the tensor is `missing`, `extra` (not in base), of another `shape`, or
            `resized` (a vocabulary whose common rows are followed); how many elements of it are
            not followed, at most.
        tied: `{"name", "tied_to", "num_elements"}` of tensors that repeat another one.
        renamed: `{"name", "renamed", "points"}` of tensors matched although their name prefixes
            differ.
        folded: `{"name", "into"}` of block scales that were multiplied into their weights.
    """

    num_base: int
    num_compared: int
    not_compared: tuple[Annotated[Mapping[str, Any], Like(NotFollowed)], ...] = ()
    tied: tuple[Annotated[Mapping[str, Any], Like(Tied)], ...] = ()
    renamed: tuple[Annotated[Mapping[str, Any], Like(Renamed)], ...] = ()
    folded: tuple[Annotated[Mapping[str, Any], Like(Folded)], ...] = ()

    __repr__ = one_line

    @property
    def is_complete(self) -> bool:
        """Whether every stored element of every checkpoint was followed."""
        return not self.not_compared

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        if not 0 <= self.num_compared <= self.num_base:
            yield f"num_compared is {self.num_compared} of {self.num_base}"


@dataclass(frozen=True)
class Trajectory(Result):
    """What changed at each point of a series that starts from one base.

    Attributes:
        base: Where the series started.
        points: In the order of training; at least one.
        observed: What the points are.
        every: Cadence: optimizer steps from point to point, if known and always the same.
        coverage: What the counts speak of; None if the model itself was observed, all of it.
        conversion: Words on how elements were compared other than as stored, or None.
        provenance: trimtab version, command, date, device, threads.

    Raises:
        ValueError: The points are not those of one series.
    """

    FORMAT = "trimtab.trajectory"
    NAME = "trajectory"
    COMMAND = "trimtab trajectory"
    ROWS = "points"
    PLAIN: ClassVar = (
        *("observed", "every", "conversion", "provenance", "provenance.base=base", "coverage"),
        *("settled=_plain_settled", "points"),
    )

    base: CheckpointRecord
    points: tuple[Point, ...]
    observed: Observed
    every: int | None = None
    coverage: SeriesCoverage | None = None
    conversion: str | None = None
    provenance: Provenance = field(default_factory=dict)

    def __repr__(self) -> str:
        points, final = plural(len(self.points), "point"), self.final
        return one_line(self, f"{self.base.id} → {final.label}, {points}: {final.total.summary()}")

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("a trajectory has at least one point")
        if self.observed not in get_args(Observed):
            raise ValueError(f"observed is one of {get_args(Observed)}, found {self.observed!r}")
        if self.every is not None and (type(self.every) is not int or self.every < 1):
            raise ValueError(f"every is a number of steps or None, found {self.every!r}")
        for point in self.points:
            for kind, counts in point.by_kind.items():
                if problem := counts.problem():
                    raise ValueError(f"{kind} at {point.label}: {problem}")
        for kind, counts in self.final.by_kind.items():
            if not counts.in_final == counts.ever_in_final == counts.changed:
                raise ValueError(f"{kind}: at the last point, in_final is changed")
        for before, after in pairwise(self.points):
            if before.by_kind.keys() != after.by_kind.keys():
                raise ValueError(f"{after.label} has other kinds than {before.label}")
            for kind, now in after.by_kind.items():
                then = before.by_kind[kind]
                if then.num_elements != now.num_elements or not (
                    then.ever <= now.ever and then.ever_in_final <= now.ever_in_final
                ):
                    raise ValueError(f"{kind} at {after.label} does not follow {before.label}")

    @property
    def final(self) -> Point:
        """The last point: its changed elements are the final subnetwork."""
        return self.points[-1]

    @property
    def steps(self) -> tuple[int, ...] | None:
        """The step of every point; None unless all are known and ascend."""
        steps = [point.step for point in self.points]
        known = [step for step in steps if step is not None]
        ascend = all(before < after for before, after in pairwise(known))
        return tuple(known) if ascend and len(known) == len(steps) else None

    def series(self, kind: str | None = None) -> tuple[PointCounts, ...]:
        """Counts of one kind, or of the whole model, at every point."""
        return tuple(p.total if kind is None else p.by_kind[kind] for p in self.points)

    def likeness(self, measure: Likeness, kind: str | None = None) -> tuple[float | None, ...]:
        """Likeness to the final mask at every point; None where both are empty."""
        series = self.series(kind)
        final = series[-1].changed
        return tuple(
            now.in_final / whole
            if (whole := final if measure == "coverage" else now.changed + final - now.in_final)
            else None
            for now in series
        )

    def settled(self, measure: Likeness = "coverage", kind: str | None = None) -> int | None:
        """Index of the first point from which `likeness` stays at `SETTLED_FROM` or above.

        The last point equals itself, so a series that ends before the mask settles gives that
        point. None if
        nothing is changed at the end.
        """
        if not self.series(kind)[-1].changed:
            return None
        values = self.likeness(measure, kind)
        unlike = [at for at, value in enumerate(values) if (value or 0.0) < SETTLED_FROM]
        return unlike[-1] + 1 if unlike else 0

    def _plain_settled(self) -> dict[str, Any]:
        measures = {measure: self.settled(measure) for measure in get_args(Likeness)}
        return {"from": SETTLED_FROM, **measures}
