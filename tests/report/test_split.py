"""The parts of several masks as a table and as a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.report.page import Page
from tests.report.split_factory import make_split
from tests.report.test_comparison_page import HOSTILE
from trimtab.masks.mask import Mask
from trimtab.masks.split import Split, part_files, share
from trimtab.report.html import render
from trimtab.report.split import split_document
from trimtab.report.terminal import render_text


def text_of_split(split: Split, **how: Any) -> str:
    return render_text(split_document(split), **how)


def test_the_whole_table() -> None:
    split = make_split(["a/math", "b/co\x1bde"])
    assert text_of_split(split, console_width=70).splitlines() == [
        "2 masks of 10,000 elements: math (20.00 %), co\\x1bde (40.00 %)",
        "",
        "part             selected  of the mask  by chance   lift",
        "core                1,500      75.00 %        800   1.87",
        "own of math           500      25.00 %      1,200  0.417",
        "own of co\\x1bde     2,500      62.50 %          0      –",
        "The share of the core is that of the smallest mask. By chance: the",
        "mean for random, independent masks with the same number of elements in",
        "each tensor.",
    ]


def test_matched_chance_beside_it() -> None:
    lines = text_of_split(make_split(matched=True, num_own=0), console_width=200).splitlines()
    assert lines[2:5] == [
        "part         selected  of the mask  by chance  lift  matched  matched lift",
        "core            1,500      75.00 %        800  1.87    1,450          1.03",
        "own of math         0          0 %      1,200     0        0             –",
    ]
    assert " ".join(lines).endswith("number in each tensor × exponent of the base's weights.")


def test_other_bases_are_told() -> None:
    split = make_split(base_differs=("w", "v"))
    message = "made against different bases, in 2 tensors"
    assert message in " ".join(text_of_split(split).split())
    assert message in Page(render(split_document(split))).text
    assert "different bases" not in text_of_split(make_split())


def test_the_page() -> None:
    page = Page(render(split_document(make_split(matched=True))))
    assert "75.00 %" in page.text
    assert "of 2,000 weights of the smallest mask are in all 2" in page.text
    assert "1,500 in the core; 1.03 × chance (magnitude-matched)" in page.text
    table = page.table("Core and own parts")
    assert [row[0] for row in table.body] == ["core", "own of math", "own of code"]
    assert table.body[0] == ["core", "1,500", "75.00 %", "800", "1.87", "1,450", "1.03", "p/core"]
    masks = page.table("Masks").body
    assert [row[1] for row in masks] == ["runs/math", "runs/code"]
    assert masks[0][2] == "2,000 of 10,000 (20.00 %) weights selected"


@pytest.mark.browser
def test_the_page_opens(browse: Callable[[str], str]) -> None:
    document = browse(render(split_document(make_split(matched=True))))
    assert "own of math" in document


def test_the_page_without_a_base() -> None:
    page = Page(render(split_document(make_split())))
    assert "1,500 in the core; 1.87 × chance (per-tensor)" in page.text
    assert "No base was given, so chance is not matched by magnitude" in page.text
    assert len(page.table("Core and own parts").body[0]) == 6


def test_masks_in_memory_that_select_nothing(tmp_path: Path) -> None:
    empty = Mask.from_arrays({})
    split = share([empty, empty], part_files(tmp_path, "xy"))
    assert "own of mask 2         0            –          0     –" in text_of_split(split)
    assert "a mask selects nothing" in Page(render(split_document(split))).text


def test_names_from_files_stay_text() -> None:
    split = make_split([HOSTILE, "x/\x1b[2J"])
    page = Page(render(split_document(split)))
    assert not [script for script in page.scripts if HOSTILE in script]
    assert "\x1b" not in text_of_split(split, console_width=140)
