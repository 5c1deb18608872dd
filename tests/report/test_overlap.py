"""An overlap of masks in words, as a table and as a page."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.report.overlap_factory import make_overlap
from tests.report.page import Page
from tests.report.test_comparison_page import HOSTILE
from tests.report.test_comparison_table import cells
from trimtab.masks.overlap_chance import NULLS, Shared
from trimtab.masks.overlap_result import Overlap, OverlapCoverage
from trimtab.report.chance import (
    NO_BASE,
    coverage_sentence,
    lift_text,
    other_base_sentence,
    probability_text,
    ratio_text,
    times_sentence,
    z_text,
)
from trimtab.report.html import render
from trimtab.report.overlap import CHANCES, overlap_document, shared_sentence
from trimtab.report.terminal import render_text
from trimtab.results.urn import Tail


def page_of(overlap: Overlap) -> Page:
    return Page(render(overlap_document(overlap)))


def text_of_overlap(overlap: Overlap, **how: Any) -> str:
    return render_text(overlap_document(overlap), **how)


def words(text: str) -> str:
    return " ".join(text.split())


def rows_of(text: str, title: str) -> dict[str, dict[str, str]]:
    """The rows of a table in the terminal's text, by their first cell and their headings."""
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(title))
    headings = [cell.strip() for cell in cells(lines[start])]
    rows = {}
    for line in lines[start + 1 :]:
        found = [cell.strip() for cell in cells(line)]
        if len(found) != len(headings):
            break
        rows[found[0]] = dict(zip(headings, found, strict=True))
    return rows


def test_figures_are_those_of_the_result() -> None:
    overlap = make_overlap()
    text = text_of_overlap(overlap, console_width=140)
    total = overlap.total()
    assert shared_sentence(total, "A", "B") in words(text)
    for null, against in total.nulls.items():
        (line,) = (line for line in text.splitlines() if line.startswith(f"{null} "))
        for cell in (lift_text(against.lift), z_text(against.z), ratio_text(against.chance.o1)):
            assert cell in line.split("  ") or cell in words(line)
    by_kind = rows_of(text, "kind ")
    assert list(by_kind)[-1] == "all"
    for kind, shared in {**overlap.by_kind(), "all": total}.items():
        row = by_kind[kind]
        assert row["shared"] == f"{shared.intersection:,}"
        assert row["in A"] == f"{shared.num_first:,}"
        assert row["magnitude"] == lift_text(shared.nulls["magnitude-matched"].lift)


def test_a_narrow_window_drops_columns_and_no_figure_is_cut() -> None:
    overlap = make_overlap()
    for width in (60, 80, 100):
        text = text_of_overlap(overlap, console_width=width)
        for null, against in overlap.total().nulls.items():
            (line,) = (line for line in text.splitlines() if re.match(rf"{null}:? +\S* ?\d", line))
            assert lift_text(against.lift) in line
    text = text_of_overlap(overlap, console_width=80)
    assert max(map(len, text.splitlines())) <= 80


def test_without_a_base_this_is_said() -> None:
    overlap = make_overlap(with_base=False)
    for text in (text_of_overlap(overlap), page_of(overlap).text):
        assert NO_BASE in words(text)
        assert not re.search("^magnitude-matched ", text, re.MULTILINE)
    assert NO_BASE not in words(text_of_overlap(make_overlap()))


def test_three_masks_are_set_pair_by_pair() -> None:
    overlap = make_overlap(3)
    text = text_of_overlap(overlap, console_width=120)
    lines = text.splitlines()
    start = lines.index("Lift over the magnitude-matched null")
    matrix = [line.split() for line in lines[start + 1 : start + 5]]
    assert matrix[0] == ["A", "B", "C"]

    def lift(first: int, second: int) -> str:
        return lift_text(overlap.total(first, second).nulls["magnitude-matched"].lift)

    assert matrix[1] == ["A", lift(0, 1), lift(0, 2)]
    assert matrix[3] == ["C", lift(0, 2), lift(1, 2)]
    share = lines.index("Share of the mask of the row that is in that of the column")
    row_of_b = lines[share + 3].replace(" %", "%").split()
    assert row_of_b == [
        "B",
        ratio_text(overlap.total(0, 1).o2).replace(" ", ""),
        ratio_text(overlap.total(1, 2).o1).replace(" ", ""),
    ]
    consensus = overlap.consensus()
    found = rows_of(text, "in so many masks")
    assert [row["weights"] for row in found.values()] == [
        f"{num:,}" for num in consensus.num_by_count
    ]


def test_a_series_is_set_against_the_last() -> None:
    overlap = make_overlap(3, is_series=True)
    found = rows_of(text_of_overlap(overlap, console_width=120), "mask ")
    assert list(found) == ["A", "B"]
    assert found["B"]["of C in it"] == ratio_text(overlap.total(1, 2).o2)
    page = page_of(overlap)
    assert "Early and late" in page.sections
    assert [row[0] for row in page.table("Against the last").body] == ["A", "B"]


def test_the_page_of_two_masks() -> None:
    overlap = make_overlap()
    page = page_of(overlap)
    assert page.sections == ["More than chance?", "Where", "Coverage", "Provenance"]
    chance = page.table("Measured, and expected under each null").body
    assert [row[0] for row in chance] == ["measured", *NULLS]
    kinds = page.table("By kind").body
    assert {row[0] for row in kinds} == {*overlap.by_kind(), "all"}
    (spec,) = page.specs
    drawn = {(row["name"], row["arm"]): row for row in spec["data"]["values"]}
    assert len(drawn) == 3 * len(kinds)
    against = overlap.total().nulls["per-tensor"]
    assert drawn["all", "per-tensor"]["lift"] == against.lift
    assert drawn["all", "per-tensor"]["tip_3"] == f"{overlap.total().intersection:,}"


def test_the_page_of_several_masks() -> None:
    overlap = make_overlap(4)
    page = page_of(overlap)
    assert page.sections == ["Every pair", "What all agree on", "Coverage", "Provenance"]
    pairs = page.table("Every pair").body
    assert [row[:2] for row in pairs][:2] == [["A", "B"], ["A", "C"]]
    assert len(pairs) == 6
    shares, lifts, counts = page.specs
    assert len(shares["data"]["values"]) == len(lifts["data"]["values"]) == 12
    measured = [row for row in counts["data"]["values"] if row["arm"] == "measured"]
    assert [row["weights"] for row in measured] == list(overlap.consensus().num_by_count)
    in_all = page.table("In all masks, by kind").body[-1]
    assert in_all[2] == f"{overlap.consensus().num_common:,}"


def test_gaps_and_other_bases_are_loud() -> None:
    coverage = OverlapCoverage(
        10,
        ({"name": "w", "shape": [3], "num_selected": [2, None]},),
        ({"name": "v", "base": [{"dtype": "BF16", "digest": "0" * 32}, None]},),
    )
    overlap = replace(make_overlap(), coverage=coverage)
    message = coverage_sentence(overlap)
    assert message.startswith("INCOMPLETE: 10 elements were compared; 1 tensor not in all masks")
    assert message.endswith("2 of A, 0 of B")
    warning = other_base_sentence(overlap)
    assert warning is not None
    page = page_of(overlap)
    for text in (text_of_overlap(overlap, console_width=400), page.text):
        assert message in words(text)
        assert warning in words(text)
    assert ("p", "class", "notice warning") in page.attributes
    (row,) = page.table("Not in all masks, not compared (1)").body
    assert row == ["w", "3", "2", "–"]
    assert page.table("Made against different bases (1)").body == [["v", "0" * 32, "–"]]
    assert other_base_sentence(make_overlap()) is None


def test_masks_that_select_nothing() -> None:
    for num_masks in (2, 3):
        overlap = make_overlap(num_masks, density=0.0)
        text = text_of_overlap(overlap, console_width=120)
        assert "Nothing that was compared is selected" in text
        assert page_of(overlap).tables
    empty = replace(make_overlap(), tensors=())
    assert text_of_overlap(empty, console_width=120)


def test_names_from_files_stay_text() -> None:
    overlap = make_overlap()
    masks = tuple(replace(mask, id=HOSTILE) for mask in overlap.masks)
    tensors = tuple(replace(tensor, name=HOSTILE, kind=HOSTILE) for tensor in overlap.tensors)
    hostile = replace(overlap, masks=masks, tensors=tensors)
    scripts = page_of(overlap).scripts
    assert page_of(hostile).scripts == scripts
    assert "\x1b" not in text_of_overlap(hostile)


@pytest.mark.parametrize(
    ("lift", "text"),
    [(None, "–"), (0.0, "0"), (1.1444, "1.144"), (74.961, "74.96"), (12345.6, "12,346")],
)
def test_lifts_in_words(lift: float | None, text: str) -> None:
    assert lift_text(lift) == text


def test_small_figures_in_words() -> None:
    assert [z_text(z) for z in (None, -0.001, 2.345, 99.99, -1310.2)] == [
        *("–", "0.00", "2.35", "99.99", "-1,310"),
    ]
    against = Shared(10, 4, 5, 3).nulls["independent"]
    for tail, text in (
        (Tail(-0.5, "exact"), "0.32"),
        (Tail(-0.5, "normal"), "≈0.32"),
        (Tail(-120.0, "exact"), "1e-120"),
        (Tail(-1e6, "normal"), "<1e-300"),
        (Tail(0.0, "exact"), "1"),
    ):
        assert probability_text(replace(against, probability=tail)) == text
    assert times_sentence({"independent": None}, CHANCES) == ""
    assert times_sentence({"independent": 2.0}, CHANCES) == (
        "This is 2 × what masks of these densities share by chance."
    )


@pytest.mark.browser
@pytest.mark.parametrize(("num_masks", "num_charts"), [(2, 1), (3, 3), (26, 3)])
def test_every_chart_is_drawn(
    browse: Callable[[str], str], num_masks: int, num_charts: int
) -> None:
    document = browse(render(overlap_document(make_overlap(num_masks))))
    states = re.findall(r'class="chart"[^>]*data-state="(\w+)"', document)
    assert states == ["drawn"] * num_charts


@pytest.mark.browser
def test_the_chart_of_a_series_is_drawn(browse: Callable[[str], str]) -> None:
    document = browse(render(overlap_document(make_overlap(5, is_series=True))))
    states = re.findall(r'class="chart"[^>]*data-state="(\w+)"', document)
    assert states == ["drawn"] * 4
