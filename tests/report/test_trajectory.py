"""A trajectory in words, as a table and as a page."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from tests.report.page import Page
from tests.report.test_comparison_page import HOSTILE
from tests.report.test_comparison_table import cells
from tests.report.trajectory_factory import make_record, make_trajectory
from trimtab.elements.counts import percent
from trimtab.measure.trajectory_result import Point, PointCounts, SeriesCoverage, Trajectory
from trimtab.report.html import render
from trimtab.report.terminal import render_text
from trimtab.report.trajectory import trajectory_document
from trimtab.report.trajectory_words import (
    cadence,
    cadence_sentence,
    fates_sentence,
    outside_sentence,
    series_coverage_sentence,
    settled_sentence,
)


def text_of_trajectory(trajectory: Trajectory, **how: Any) -> str:
    return render_text(trajectory_document(trajectory), **how)


def words(text: str) -> str:
    return " ".join(text.split())


def at_steps(*steps: int | None, every: int | None = None, **more: Any) -> Trajectory:
    points = make_trajectory(len(steps)).points
    renamed = [
        replace(point, step=step, label=f"p{at}")
        for at, (point, step) in enumerate(zip(points, steps, strict=True))
    ]
    return make_trajectory(points=tuple(renamed), every=every, **more)


def of_counts(*counts: PointCounts) -> Trajectory:
    points = tuple(Point(str(at), at, {"norm": c}) for at, c in enumerate(counts, 1))
    return Trajectory(make_record("base"), points, "steps", 1)


EVEN = make_trajectory(4)
UNEVEN = at_steps(1, 2, 10)
UNKNOWN = at_steps(None, None, None)
LONG = at_steps(*(step**2 for step in range(1, 21)))
TRACKED = at_steps(1, 2, 3, every=1, observed="steps", coverage=None)


@pytest.mark.parametrize(
    ("trajectory", "short", "sentence"),
    [
        (EVEN, "every 5 steps", "Observed at 4 checkpoints, every 5 optimizer steps. What"),
        (UNEVEN, "at 3 checkpoints, uneven steps", "at 3 checkpoints, after steps 1, 2, 10. What"),
        (UNKNOWN, "at 3 checkpoints, steps unknown", "how many optimizer steps lie in between is"),
        (
            LONG,
            "at 20 checkpoints, uneven steps",
            "20 checkpoints, unevenly from step 1 to 400.",
        ),
        (make_trajectory(1), "at 1 checkpoint", "Observed at 1 checkpoint, after step 5. What mo"),
        (at_steps(None), "at 1 checkpoint", "at 1 checkpoint; how many optimizer steps lie in"),
        (TRACKED, "every step", "after every optimizer step, 3 points: no move is left unseen."),
    ],
)
def test_cadence(trajectory: Trajectory, short: str, sentence: str) -> None:
    assert cadence(trajectory) == short
    assert sentence in cadence_sentence(trajectory)
    assert ("lower bound" in cadence_sentence(trajectory)) == (trajectory.every != 1)


def test_a_file_that_was_cut_off_says_so() -> None:
    result = {"cut_off": {"after_step": 3, "num_bytes": 1234}}
    sentence = cadence_sentence(replace(TRACKED, provenance=result))
    assert "no move up to there is left unseen. The file ends in 1,234 bytes" in sentence
    assert "what came after step 3 is not in it" in sentence


@pytest.mark.parametrize("trajectory", [EVEN, UNEVEN, UNKNOWN, LONG, TRACKED])
def test_the_cadence_stands_on_every_figure_and_table(trajectory: Trajectory) -> None:
    page = Page(render(trajectory_document(trajectory)))
    figures = [table.title for table in page.tables if table.title not in ("Checkpoints", "Points")]
    assert figures.pop() == "Trajectory"
    assert len(page.specs) == len(figures) == 5
    assert all(f"(observed {cadence(trajectory)})" in title for title in figures)
    labels = [value for _, name, value in page.attributes if name == "aria-label"]
    assert (
        sum(f"observed {cadence(trajectory)}" in label for label in labels) == 5 + 5 + 3
    )  # figures, tables, headline
    text = text_of_trajectory(trajectory, console_width=100)
    assert words(text).count(f"observed {cadence(trajectory)}") == 4
    assert words(cadence_sentence(trajectory)) in words(text)


def test_figures_by_hand() -> None:
    trajectory = of_counts(
        PointCounts(1000, 100, 100, 100, 0, 60, 60),
        PointCounts(1000, 150, 90, 180, 30, 140, 150),
        PointCounts(1000, 160, 40, 200, 40, 160, 160),
    )
    assert fates_sentence(trajectory).startswith(
        "80.00 % of 1,000 weights are untouched, 4.00 % cancelled and 16.00 % effective"
    )
    assert outside_sentence(trajectory) == (
        "40 weights that once differed from the base are outside the final subnetwork: "
        "20.00 % of the weights that ever changed, 4.00 % of the model."
    )
    sentence = settled_sentence(trajectory) or ""
    assert "staying at 95 % or above from there to the end (observed every step)" in sentence
    assert "subnetwork not before the last point (87.50 % at the one before)" in sentence
    assert "with it not before the last point (82.35 % at the one before)" in sentence
    lines = text_of_trajectory(trajectory, console_width=120).splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("step "))
    table = [[cell.strip() for cell in cells(line)] for line in lines[start : start + 4]]
    assert dict(zip(table[0], table[2], strict=True)) == {
        "step": "2",
        "unchanged": "85.00 %",
        "untouched": "82.00 %",
        "cancelled": "3.00 %",
        "moved": "9.00 %",
        "coverage": "87.50 %",
        "Jaccard": "82.35 %",
        "outside/ever": "16.67 %",
        "outside/all": "3.00 %",
    }


def test_where_it_settled() -> None:
    settled = PointCounts(1000, 100, 0, 150, 50, 100, 100)
    early = PointCounts(1000, 110, 110, 110, 0, 96, 96)
    trajectory = of_counts(early, settled, settled)
    sentence = settled_sentence(trajectory) or ""
    assert "final subnetwork from step 1 on, Jaccard similarity with it from step 2 on" in sentence
    rows = text_of_trajectory(trajectory, console_width=120).splitlines()
    everything = [row for row in rows if row.startswith("all ")]
    assert everything[-1].split()[-2:] == ["step", "1"]


def test_0_and_100_percent_are_exact() -> None:
    nearly = of_counts(PointCounts(10**9, 10**9 - 1, 1, 10**9 - 1, 0, 10**9 - 1, 10**9 - 1))
    assert fates_sentence(nearly).startswith(
        "<0.01 % of 1,000,000,000 weights are untouched, 0 % cancelled and >99.99 % effective"
    )


def test_nothing_changed_and_nothing_followed() -> None:
    still = of_counts(*[PointCounts(10, 0, 0, 0, 0, 0, 0)] * 2)
    assert outside_sentence(still) is None
    assert settled_sentence(still) is None
    assert "100 % of 10 weights are untouched" in text_of_trajectory(still)
    assert "The final subnetwork" not in Page(render(trajectory_document(still))).sections
    empty = of_counts(PointCounts(0, 0, 0, 0, 0, 0, 0))
    assert "No weights were followed." in text_of_trajectory(empty)
    assert "no weights were followed" in render(trajectory_document(empty))


def test_one_point_says_nothing_of_settling() -> None:
    one = make_trajectory(1)
    assert settled_sentence(one) is None
    assert len(Page(render(trajectory_document(one))).specs) == 5


@pytest.mark.parametrize("num", [1, 23, 24, 25, 100, 1000])
def test_a_long_series_is_thinned_in_the_terminal_only(num: int) -> None:
    trajectory = make_trajectory(num)
    lines = text_of_trajectory(trajectory, console_width=120).splitlines()
    steps = [
        int(found[1].replace(",", ""))
        for line in lines
        if (found := re.match(r" *([\d,]+) +[\d.<>]+ %", line))
    ]
    assert len(steps) == min(num, 24)
    assert steps == sorted(set(steps))
    assert steps[-1] == 5 * num
    left_out = f"{num - 24:,} more not shown here; the JSON has all."
    assert (left_out in words(" ".join(lines))) == (num > 24)


def test_the_page_has_a_long_series_whole() -> None:
    trajectory = make_trajectory(100)
    page = Page(render(trajectory_document(trajectory)))
    assert len(page.table("Update sparsity over time (observed every 5 steps)").body) == 100


def test_the_page_has_the_numbers_of_every_point() -> None:
    trajectory = make_trajectory()
    page = Page(render(trajectory_document(trajectory)))
    assert page.sections == [
        "What became of the weights",
        "How it came about",
        "The final subnetwork",
        "Coverage",
        "Provenance",
    ]
    observed = "(observed every 5 steps)"
    final = trajectory.final.total
    rows = page.table(f"Update sparsity over time {observed}").body
    for row, now in zip(rows, trajectory.series(), strict=True):
        assert row[1:] == [
            percent(now.num_elements - now.changed, now.num_elements),
            f"{now.num_elements - now.changed:,}",
            percent(now.untouched, now.num_elements),
            f"{now.untouched:,}",
        ]
    rows = page.table(f"Update density from point to point {observed}").body
    for row, now in zip(rows, trajectory.series(), strict=True):
        assert row[1:] == [percent(now.stepped, now.num_elements), f"{now.stepped:,}"]
    rows = page.table(f"How much of the final mask is there {observed}").body
    for row, now in zip(rows, trajectory.series(), strict=True):
        union = now.changed + final.changed - now.in_final
        both = [percent(now.in_final, final.changed), percent(now.in_final, union)]
        assert row[1::2] == both
    title = f"Weights that changed so far and are outside the final subnetwork {observed}"
    for row, now in zip(page.table(title).body, trajectory.series(), strict=True):
        both = [percent(now.outside_final, whole) for whole in (now.ever, now.num_elements)]
        assert row[1::2] == both
    kinds = page.table(f"Untouched, cancelled, effective {observed}").body
    assert [row[0] for row in kinds] == ["q_proj", "down_proj", "norm", "all"]
    for row in kinds:
        last = trajectory.series(None if row[0] == "all" else row[0])[-1]
        fates = (last.untouched, last.returned, last.changed)
        assert row[2:5] == [percent(num, last.num_elements) for num in fates]


def test_charts_show_what_their_tables_say() -> None:
    trajectory = make_trajectory()
    bars, *curves = Page(render(trajectory_document(trajectory))).specs
    ends = {(row["name"], row["arm"]): row["to"] for row in bars["data"]["values"]}
    total = trajectory.final.total
    assert ends["all", "effective"] == pytest.approx(100 * total.changed / total.num_elements)
    assert ends["all", "cancelled"] == pytest.approx(100 * total.ever / total.num_elements)
    for spec in curves:
        rows = spec["data"]["values"]
        assert {row["at"] for row in rows} == set(trajectory.steps or ())
        low, high = spec["layer"][-1]["encoding"]["y"]["scale"]["domain"]
        assert all(low <= row["value"] <= high for row in rows)


def test_points_of_unknown_steps_are_numbered() -> None:
    _, curve, *_ = Page(render(trajectory_document(UNKNOWN))).specs
    assert {row["at"] for row in curve["data"]["values"]} == {1, 2, 3}
    assert curve["layer"][0]["encoding"]["x"]["axis"]["title"] == "point, in the order given"
    assert {row["tip_0"] for row in curve["data"]["values"]} == {"1: p0", "2: p1", "3: p2"}
    text = text_of_trajectory(UNKNOWN, console_width=120)
    assert "\n2: p1 " in text
    assert "  point 2\n" in text


def test_gaps_are_loud() -> None:
    rows = [{"name": "x", "why": "missing", "points": ["a", "b"], "num_elements": 9}]
    coverage = SeriesCoverage(1139, 1130, tuple(rows))
    trajectory = make_trajectory(coverage=coverage, conversion="elements rounded to BF16")
    sentence = series_coverage_sentence(coverage)
    assert sentence.startswith("INCOMPLETE: 1,130 elements were followed, 99.21 % of base")
    assert words(sentence) in words(text_of_trajectory(trajectory, console_width=70))
    page = Page(render(trajectory_document(trajectory)))
    assert sentence in page.text
    (row,) = page.table("Not in all checkpoints with one shape, not followed (1)").body
    assert row == ["x", "missing", "a × b", "9"]
    assert "Converted before comparing: elements rounded to BF16" in page.text


def test_hostile_names_stay_text() -> None:
    points = tuple(
        replace(point, label=HOSTILE, step=None, checkpoint=make_record(HOSTILE))
        for point in make_trajectory(2).points
    )
    trajectory = make_trajectory(points=points, base=make_record(HOSTILE), every=None)
    text = render(trajectory_document(trajectory))
    assert HOSTILE not in text
    assert HOSTILE in Page(text).text
    assert "\x1b" not in text_of_trajectory(replace(trajectory, base=make_record("a\x1b[2J")))
