"""The part of a demo on training only a mask, on the page and in the terminal."""

from __future__ import annotations

from typing import Any

import pytest

from tests.report.factory import make_comparison, make_demo, with_masked
from tests.report.identity_factory import make_identity
from tests.report.page import Page
from trimtab.elements.counts import percent
from trimtab.masks.identity import Identity
from trimtab.measure.compare_result import Comparison
from trimtab.report.demo import demo_document
from trimtab.report.html import render
from trimtab.report.identity import sub_share
from trimtab.report.terminal import render_text

SECTIONS = ["Training only the mask", "Did the subnetwork give the same model?"]


def text_of_demo(*parts: Any, **how: Any) -> str:
    return render_text(demo_document(*parts), **how)


def arms(*labels: str) -> dict[str, Comparison]:
    return {label: make_comparison(num_layers=2, seed=seed) for seed, label in enumerate(labels)}


def test_page_sets_a_masked_run_beside_the_full_one() -> None:
    demo, comparisons, check = (
        with_masked(make_demo(), "mask"),
        arms("grpo", "sft"),
        make_identity(),
    )
    page = Page(render(demo_document(demo, comparisons, {"mask": check})))
    assert page.sections[:4] == ["Did they learn?", *SECTIONS, "Where the changes are"]
    table = page.table("Compared with grpo")
    full, mask = (dict(zip(table.headings, row, strict=True)) for row in table.body)
    num_changed = comparisons["grpo"].total.num_changed["bits"]
    assert full == {
        "run": "grpo",
        "greedy": "81.0 % [60.0, 92.3]",
        "trained": "1,000,000",
        "changed": f"{num_changed:,}",
        **dict.fromkeys(("SUB = FULL", "BASE = FULL", "cosine", "same answers"), "–"),
        "optimizer": "8.00 MB",
    }
    inside = check.total.inside
    assert mask["greedy"] == "71.4 % [50.0, 86.2]"
    assert mask["trained"] == "100,000"
    assert mask["changed"] == f"{inside.num_sub_moved:,}"
    assert mask["SUB = FULL"] == percent(inside.num_sub_equal["bits"], inside.num_elements)
    assert mask["BASE = FULL"] == "0 %"
    assert mask["same answers"] == "18 of 21"
    assert mask["optimizer"] == "1.20 MB"
    for sentence in ("mask: mask again.", "Samples differ.", "FULL is grpo"):
        assert sentence in page.text
    assert ["after mask", "71.4 % (15 of 21)"] in [
        row[:2] for row in page.table("Accuracy on the held-out questions").body
    ]
    assert page.table("The runs").headings == ["", "grpo", "sft", "mask"]
    assert (
        "mask" not in page.table("Unchanged elements by kind (bit-identical to the base)").headings
    )


def test_another_full_run_is_no_subnetwork() -> None:
    demo = with_masked(make_demo(), "seed 1", "mask")
    stray = make_identity(num_strays=1)
    checks = {"seed 1": stray, "mask": make_identity()}
    page = Page(render(demo_document(demo, arms("grpo", "sft", "seed 1"), checks)))
    assert [row[0] for row in page.table("Compared with grpo").body] == ["grpo", "seed 1", "mask"]
    regions = page.table("Inside the mask, outside it, and all")
    assert {row[0] for row in regions.body} == {"mask"}
    assert "OUTSIDE" not in page.text
    text = text_of_demo(demo, arms("grpo", "sft", "seed 1"), checks, console_width=120)
    assert "OUTSIDE" not in text


def test_moves_outside_a_mask_are_an_alarm() -> None:
    demo, checks = with_masked(make_demo(), "mask"), {"mask": make_identity(num_strays=1)}
    assert "OUTSIDE the mask" in Page(render(demo_document(demo, arms("grpo", "sft"), checks))).text
    assert "OUTSIDE" in text_of_demo(demo, arms("grpo", "sft"), checks, console_width=120)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_terminal_has_the_same_figures_as_far_as_they_fit(width: int) -> None:
    demo, check = with_masked(make_demo(), "mask"), make_identity()
    text = text_of_demo(demo, arms("grpo", "sft"), {"mask": check}, console_width=width)
    assert all(len(line) <= width for line in text.splitlines())
    _, _, block = text.partition("Training only the mask: ")
    title, table = block.split("\nrun ", 1)
    heading, full, mask, *notes = table.splitlines()
    assert title.startswith(f"{check.mask.num_selected:,} of {check.mask.num_elements:,}")
    assert full.split()[0] == "grpo"
    assert mask.split()[0] == "mask"
    assert sub_share(check.total.inside) in mask
    assert "18 of 21" in mask
    assert ("1.20 MB" in mask) == ("optimizer" in heading)
    assert "changed" in heading or width < 120
    assert ("“cosine”" in " ".join(notes)) == ("cosine" in heading)


def test_without_checks_nothing_is_said_of_masks() -> None:
    text = text_of_demo(make_demo(), arms("grpo", "sft"), console_width=100)
    page = Page(render(demo_document(make_demo(), arms("grpo", "sft"))))
    assert "mask" not in text
    assert not set(SECTIONS) & set(page.sections)


def test_every_run_keeps_its_colour() -> None:
    demo = with_masked(make_demo(), "mask", "random", "complement", "more")
    checks: dict[str, Identity] = {
        label: make_identity(seed=seed)
        for seed, label in enumerate(("mask", "random", "complement", "more"))
    }
    page = Page(render(demo_document(demo, arms("grpo", "sft"), checks)))
    found = set()
    for spec in page.specs:
        for layer in spec.get("layer", ()):
            colour = layer["encoding"].get("color", {}).get("scale")
            if colour and colour["domain"][-1] == "more":
                pairs = dict(zip(colour["domain"], colour["range"], strict=True))
                found.add(tuple(pairs[label] for label in demo["arms"]))
    assert found == {tuple(f"var(--arm-{place})" for place in range(6))}


def test_a_run_that_trained_nothing_told_has_dashes() -> None:
    demo = make_demo()
    demo["full"] = "grpo"
    page = Page(render(demo_document(demo, arms("grpo"), {"sft": make_identity()})))
    table = page.table("Compared with grpo")
    for heading in ("optimizer", "trained", "same answers"):
        place = table.headings.index(heading)
        assert [row[place] for row in table.body] == ["–", "–"]
