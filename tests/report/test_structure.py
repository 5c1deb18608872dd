"""The table and the page of a structure have its numbers, and say what they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page as Tab

from tests.report.page import Page
from tests.report.structure_factory import make_structure
from tests.report.test_comparison_page import HOSTILE
from trimtab.masks.structure import structure
from trimtab.masks.structure_result import Family, LeftOut, Structure
from trimtab.report.html import render
from trimtab.report.structure import mask_labels, shared_p_text, structure_document
from trimtab.report.structure_matrices import spread_text
from trimtab.report.structure_units import p_text, ratio_text, unit_name, z_text
from trimtab.report.terminal import render_text


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Structure:
    return make_structure(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Structure:
    return make_structure(tmp_path_factory.mktemp("several"), 3, has_base=True)


def family(result: Structure, name: str) -> Family:
    (found,) = [one for one in result.masks[0].families if one.name == name]
    return found


def text_of(result: Structure, width: int = 120, *, styled: bool = False) -> str:
    return render_text(structure_document(result), console_width=width, styled=styled)


def row_of(text: str, title: str, start: str) -> list[str]:
    """Cells of a line of the table under a title, apart from the first."""
    below = text.partition(title)[2]
    line = next(line for line in below.splitlines() if line.startswith(start))
    return line.removeprefix(start).split()


def test_the_table_has_the_numbers(single: Structure) -> None:
    text = text_of(single, width=300)
    assert "8,066 of 72,912 (11.06 %) weights selected; random control of seed 0" in text
    neurons = family(single, "neuron")
    cells = row_of(text, "the same number of elements in each tensor", "MLP neurons")
    assert cells[:3] == [
        str(neurons.num_units),
        str(neurons.null.num_up),
        str(neurons.null.num_down),
    ]
    assert cells[4:6] == spread_text(neurons.null.spread).split()
    assert neurons.null.num_up > 10
    head = max(family(single, "head").units, key=lambda unit: unit.z or 0.0)
    assert unit_name("head", head) == "layer 1, head 2"
    assert row_of(text, "highest z", "layer 1, head 2") == [
        f"{head.num_selected:,}",
        f"{head.num_elements:,}",
        *ratio_text(head.num_selected, head.expected).split(),
        z_text(head.z),
        z_text(head.control_z),
    ]
    assert "exponent" not in text
    assert "in common" not in text


def test_the_tables_of_several_masks(several: Structure) -> None:
    text = text_of(several, width=200)
    matched = text.partition("each tensor × exponent of the base weight\n")[2].partition("\n\n")[0]
    labels = [line.split()[0] for line in matched.splitlines()[1:16]]
    assert labels == [label for label in mask_labels(several) for _ in range(5)]
    (shared,) = [s for s in several.shared if (s.family, s.first, s.second) == ("neuron", 0, 1)]
    start = "MLP neurons        mask-0, mask-1"
    assert row_of(text, "Rank correlation", start) == [
        str(shared.num_units),
        *(
            f"{value:+.2f}"
            for value in (shared.spearman, shared.matched_spearman, shared.control_spearman)
        ),
    ]
    more, fewer = shared.common[2:]
    assert (more.null, more.direction, fewer.direction) == ("magnitude", "up", "down")
    assert row_of(text, "two masks have in common", start) == [
        *("magnitude", "more", str(more.num_first), str(more.num_second), str(more.num_common)),
        f"{more.chance:.1f}",
        shared_p_text(more.log10_p),
    ]


def test_what_is_not_counted_is_said(single: Structure) -> None:
    gap = LeftOut("head", "q_proj", "no config", 3, 1200, "a.q_proj")
    unknown = LeftOut("all", "other", "who knows", 1, 1, "b")
    result = replace(single, left_out=(gap, unknown), config=None)
    for text in (text_of(result, width=500), Page(page_of(result)).text):
        assert (
            "ot counted in attention heads: a.q_proj and 2 more (1,200 elements): no config."
            in text
        )
        assert "ot counted in any unit: b (1 element): who knows." in text
        assert "no config" in text


def page_of(result: Structure) -> str:
    return render(structure_document(result))


def test_sections_come_in_reading_order(single: Structure, several: Structure) -> None:
    sections = [
        "Do units cluster?",
        "Heads and layers",
        "Units in order",
        "Rows and columns",
        "Inside a matrix",
        "Coverage",
        "Provenance",
    ]
    assert Page(page_of(single)).sections == sections
    assert Page(page_of(several)).sections == [
        *sections[:5],
        "Do masks share units?",
        *sections[5:],
    ]


def test_the_page_has_the_numbers(single: Structure) -> None:
    page = Page(page_of(single))
    printed = {
        row[0]: row
        for row in page.table("Against chance with the same number of elements in each tensor").body
    }
    neurons, heads = family(single, "neuron"), family(single, "head")
    assert printed["MLP neurons"][1:4] == [
        f"{neurons.num_units:,}", f"{neurons.null.num_up:,}", f"{neurons.null.num_down:,}"
    ]  # fmt: skip
    grid = page.specs[0]["data"]["values"]
    assert len(grid) == heads.num_units
    cells = {(cell["tip_0"], cell["tip_1"]): cell for cell in grid}
    for unit in heads.units:
        cell = cells[str(unit.layer), str(unit.index)]
        assert cell["tip_2"] == f"{unit.num_selected:,} of {unit.num_elements:,}"
        assert (cell["tip_4"], cell["tip_5"]) == (z_text(unit.z), z_text(unit.control_z))
        ratio = unit.num_selected / unit.expected
        assert cell["direction"] == ("more" if ratio >= 1 else "fewer")
        assert cell["apart"] == pytest.approx(abs(ratio - 1), abs=1e-4)
    drawn = single.masks[0].map
    assert drawn is not None
    (blocks,) = [
        spec["data"]["values"]
        for spec in page.specs
        if spec["data"]["values"] and isinstance(spec["data"]["values"][0], list)
    ]
    counted = {(row, column): text for column, row, _, text in blocks}
    assert sum(int(text.split(" of ")[0].replace(",", "")) for text in counted.values()) == (
        drawn.num_selected
    )


def test_several_masks_stand_side_by_side(several: Structure) -> None:
    page = Page(page_of(several))
    assert mask_labels(several) == ["mask-0", "mask-1", "mask-2"]
    matched = page.table(
        "Against chance with the same number of elements in each tensor × exponent of the base "
        "weight"
    )
    assert [row[:2] for row in matched.body[::5]] == [
        [label, "attention heads"] for label in mask_labels(several)
    ]
    correlations = page.table("Rank correlation of z over units").body
    assert len(correlations) == len(several.shared) == 15
    assert len(page.table("Significant units that two masks have in common").body) == 15 * 4


def test_names_from_files_stay_text(single: Structure) -> None:
    one = single.masks[0]
    assert one.map is not None
    hostile = replace(
        single,
        masks=(
            replace(
                one,
                mask=replace(one.mask, id=HOSTILE, provenance={HOSTILE: [HOSTILE]}),
                map=replace(one.map, name=HOSTILE),
                tensors=(replace(one.tensors[0], name=HOSTILE, kind=HOSTILE),),
                families=(replace(one.families[0], name=HOSTILE),),
            ),
        ),
        left_out=(LeftOut(HOSTILE, HOSTILE, HOSTILE, 1, 1, HOSTILE),),
        config=HOSTILE,
        provenance={"command": HOSTILE, HOSTILE: 1},
    )
    page = Page(page_of(hostile))
    assert len(page.scripts) == 2
    assert not any(tag == "img" for tag, _, _ in page.attributes)
    escapes = replace(hostile, config="\x1b]0;hi\x07\n")
    assert "\x1b" not in text_of(escapes, width=120)


def test_nothing_known_is_said(tmp_path: Path) -> None:
    from tests.masks.structure.models import random_mask

    result = structure(random_mask({"strange": (4, 4)}), map=None)
    text = text_of(result, width=120)
    assert "Not counted in any unit: strange (16 elements)" in text
    page = Page(page_of(result))
    assert "no tensor belongs to a known unit" in page.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (z_text(None), "–"),
        (z_text(-12.34), "-12.3"),
        (z_text(1234.5), "+1,234"),
        (p_text(0.0), "< 1e-300"),
        (p_text(None), "–"),
        (shared_p_text(-2005.6), "10^-2006"),
        (shared_p_text(-0.3010299957), "0.5"),
        (ratio_text(3, 0.0), "–"),
        (ratio_text(3, 2.0), "1.50 ×"),
        (spread_text(None), "–"),
        (spread_text(0.1234), "12.3 %"),
        (spread_text(10.08), "1,008 %"),
    ],
)
def test_wording(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.browser
def test_every_chart_is_drawn_and_hover_is_exact(
    open_page: Callable[[str], Tab], single: Structure, several: Structure
) -> None:
    tab = open_page(page_of(single))
    states = tab.eval_on_selector_all(".chart", "all => all.map(one => one.dataset.state)")
    # Two grids, five families in order, stripes, map and two profiles.
    assert states == ["drawn"] * 11
    heads = family(single, "head")
    first = tab.locator(".chart .mark-rect path").first
    first.scroll_into_view_if_needed()
    first.hover()
    shown = tab.locator("#vg-tooltip-element td.value").all_inner_texts()
    unit: Any = heads.units[0]
    assert shown[:3] == ["0", "0", f"{unit.num_selected:,} of {unit.num_elements:,}"]
    (chart,) = [
        place
        for place, spec in enumerate(Page(page_of(single)).specs)
        if spec["data"]["values"] and isinstance(spec["data"]["values"][0], list)
    ]
    block = tab.locator(".chart").nth(chart).locator(".mark-rect path").first
    block.scroll_into_view_if_needed()
    block.hover()
    shown = tab.locator("#vg-tooltip-element td.value").all_inner_texts()
    drawn = single.masks[0].map
    assert drawn is not None
    left, top, _, text = Page(page_of(single)).specs[chart]["data"]["values"][0]
    assert shown == [str(top), str(left), text]
    states = open_page(page_of(several)).eval_on_selector_all(
        ".chart", "all => all.map(one => one.dataset.state)"
    )
    # For each of three masks: four grids, stripes, a map and two profiles.
    assert states == ["drawn"] * (3 * 8 + 5)
