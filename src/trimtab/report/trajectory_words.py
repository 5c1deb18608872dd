"""The sentences of the report of a trajectory."""

from __future__ import annotations

from dataclasses import replace

from trimtab.elements.counts import percent
from trimtab.measure.trajectory_result import (
    SETTLED_FROM,
    Likeness,
    PointCounts,
    SeriesCoverage,
    Trajectory,
)
from trimtab.report.wording import Shown, endpoint, printable, share
from trimtab.words import plural, were

FATES = {
    "untouched": "differs from the base at no point",
    "cancelled": "differs at some point, and is equal to the base at the last",
    "effective": "differs at the last point: the final subnetwork",
}
"""State of a weight at the end -> its meaning."""

RULE = f"{100 * SETTLED_FROM:g} %"


def fates(counts: PointCounts) -> dict[str, int]:
    """Elements by their state at a point; the keys are those of `FATES`."""
    numbers = counts.untouched, counts.returned, counts.changed
    return dict(zip(FATES, numbers, strict=True))


def cadence(trajectory: Trajectory) -> str:
    """The cadence of the points, to follow "observed": `every 10 steps`."""
    if trajectory.every == 1:
        return "every step"
    points = plural(len(trajectory.points), _noun(trajectory))
    if len(trajectory.points) == 1:
        return f"at {points}"
    if trajectory.every is not None:
        return f"every {trajectory.every:,} steps"
    return f"at {points}, {'uneven steps' if trajectory.steps else 'steps unknown'}"


def cadence_sentence(trajectory: Trajectory) -> str:
    """When the points were observed, and what that misses."""
    points = plural(len(trajectory.points), _noun(trajectory))
    steps = trajectory.steps
    match trajectory.provenance.get("cut_off"):
        case {"num_bytes": int(num_bytes), "after_step": int(after)}:
            whole = cadence_sentence(replace(trajectory, provenance={}))
            return (
                f"{whole.replace('is left unseen', 'up to there is left unseen')} The file ends in "
                f"{plural(num_bytes, 'byte')} of a point that was cut off as it was written: what "
                f"came after step {after:,} is not in it."
            )
    if trajectory.every == 1:
        return f"Observed after every optimizer step, {points}: no move is left unseen."
    if steps and len(steps) == 1:
        when = f"Observed at {points}, after step {steps[0]:,}"
    elif trajectory.every is not None:
        when = f"Observed at {points}, every {trajectory.every:,} optimizer steps"
    elif steps and len(steps) <= 12:
        when = f"Observed at {points}, after steps {', '.join(f'{step:,}' for step in steps)}"
    elif steps:
        when = f"Observed at {points}, unevenly from step {steps[0]:,} to {steps[-1]:,}"
    else:
        when = f"Observed at {points}; how many optimizer steps lie in between is not known"
    return (
        f"{when}. What moves and comes back in between is not seen: “cancelled” is a lower bound, "
        "“untouched” an upper one."
    )


def _noun(trajectory: Trajectory) -> str:
    return "checkpoint" if trajectory.observed == "checkpoints" else "point"


def _point_name(trajectory: Trajectory, index: int) -> str:
    """Short name of a point: its step, or its number if steps are unknown."""
    steps = trajectory.steps
    return f"point {index + 1:,}" if steps is None else f"step {steps[index]:,}"


def point_title(trajectory: Trajectory, index: int) -> str:
    """A point as a row of a table: its step, or its number and label."""
    label = printable(trajectory.points[index].label)
    return f"{index + 1:,}: {label}" if trajectory.steps is None else _point_name(trajectory, index)


def endpoints_of(trajectory: Trajectory) -> tuple[str, str]:
    """The base with its revision, and the last point."""
    return endpoint(trajectory.base), printable(trajectory.final.label)


def fates_sentence(trajectory: Trajectory) -> str:
    """Shares of untouched, cancelled and effective weights."""
    total = trajectory.final.total
    if not total.num_elements:
        return "No weights were followed."
    shares = {fate: percent(num, total.num_elements) for fate, num in fates(total).items()}
    return (
        f"{shares['untouched']} of {total.num_elements:,} weights are untouched, "
        f"{shares['cancelled']} cancelled and {shares['effective']} effective (criterion: bits; "
        f"observed {cadence(trajectory)})."
    )


def outside_sentence(trajectory: Trajectory) -> str | None:
    """The weights that changed but not at the end; None if none ever did."""
    final = trajectory.final.total
    if not final.ever:
        return None
    return (
        f"{final.outside_final:,} weights that once differed from the base are outside the final "
        f"subnetwork: {percent(final.outside_final, final.ever)} of the weights that ever changed, "
        f"{percent(final.outside_final, final.num_elements)} of the model."
    )


def settled_text(trajectory: Trajectory, measure: Likeness, kind: str | None = None) -> str:
    """When the mask of a kind settled, for a table; a dash if nothing changed."""
    index = trajectory.settled(measure, kind)
    if index is None:
        return "–"
    if index == len(trajectory.points) - 1:
        return "not before the end"
    return _point_name(trajectory, index)


def settled_sentence(trajectory: Trajectory) -> str | None:
    """When the mask settled, and by which rule; None if nothing changed or for one point."""
    if len(trajectory.points) == 1 or not trajectory.final.total.changed:
        return None
    coverage, jaccard = (_settled(trajectory, measure) for measure in ("coverage", "jaccard"))
    return (
        f"Settled, by the rule of staying at {RULE} or above from there to the end (observed "
        f"{cadence(trajectory)}): coverage of the final subnetwork {coverage}, Jaccard similarity "
        f"with it {jaccard}."
    )


def _settled(trajectory: Trajectory, measure: Likeness) -> str:
    index = trajectory.settled(measure)
    assert index is not None, "something is changed at the end"
    if index < len(trajectory.points) - 1:
        return f"from {_point_name(trajectory, index)} on"
    before = likeness_text(trajectory, measure, index - 1)
    return f"not before the last point ({before} at the one before)"


def likeness_text(trajectory: Trajectory, measure: Likeness, index: int) -> Shown:
    """Similarity of the mask at a point with the final mask."""
    now, final = trajectory.points[index].total, trajectory.final.total.changed
    union = now.changed + final - now.in_final
    return share(now.in_final, final if measure == "coverage" else union)


def series_coverage_sentence(coverage: SeriesCoverage) -> str:
    """Which share of the checkpoints was tracked."""
    if coverage.is_complete:
        text = f"complete: all {coverage.num_compared:,} stored elements were followed"
    else:
        text = (
            f"INCOMPLETE: {were(coverage.num_compared, 'element')} followed, "
            f"{percent(coverage.num_compared, coverage.num_base)} of base "
            f"({plural(len(coverage.not_compared), 'tensor')} not in all checkpoints with one "
            "shape)"
        )
    if coverage.tied:
        text += f"; {plural(len(coverage.tied), 'tied tensor')} counted once"
    return text
