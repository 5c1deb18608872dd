"""The page in a real browser: charts are drawn, hover is exact, hostile names stay text."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from playwright.sync_api import Page as Tab

from tests.report.conftest import DRAWN
from tests.report.factory import make_comparison, make_demo, with_masked
from tests.report.identity_factory import make_identity
from tests.report.overlap_factory import make_overlap
from tests.report.page import Page
from tests.report.structure_factory import make_structure
from tests.report.test_comparison_page import HOSTILE, hostile_comparison
from tests.report.trajectory_factory import make_trajectory
from tests.training.evaluation.results import make_evaluation
from tests.training.robustness.results import make_probe
from trimtab.elements.counts import percent
from trimtab.papers.library import papers_folder
from trimtab.papers.results import PaperResult
from trimtab.report.comparison import comparison_document
from trimtab.report.demo import demo_document
from trimtab.report.document import Document as ReportPage
from trimtab.report.document import Figure
from trimtab.report.evaluation import evaluation_document
from trimtab.report.html import render
from trimtab.report.identity import identity_document
from trimtab.report.overlap import overlap_document
from trimtab.report.paper import paper_document
from trimtab.report.robustness import robustness_document
from trimtab.report.structure import structure_document
from trimtab.report.trajectory import trajectory_document

pytestmark = pytest.mark.browser

Browse = Callable[[str], str]
OpenPage = Callable[..., Tab]

NARROW = 400
"""The window of a telephone, in pixels."""


def drawn(document: str) -> list[str]:
    """What became of each chart."""
    return re.findall(r'class="chart"[^>]*data-state="(\w+)"', document)


def test_every_chart_is_drawn_with_its_numbers(browse: Browse) -> None:
    comparison = make_comparison(num_layers=4, analysed=True)
    document = browse(render(comparison_document(comparison)))
    assert drawn(document) == ["drawn"] * 6
    assert len(Page(document).specs) == 6
    cells = re.findall(r'aria-roledescription="rect mark"', document)
    assert len(cells) == len(comparison.by_layer_kind())
    total = comparison.total
    unchanged = total.num_elements - total.num_changed["atol=1e-05"]
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", document)
    assert percent(unchanged, total.num_elements) in labels
    assert "q_proj" in labels


def test_every_chart_of_a_demo_is_drawn(browse: Browse) -> None:
    comparisons = {
        name: make_comparison(2, seed, analysed=True) for seed, name in enumerate(("grpo", "sft"))
    }
    assert drawn(browse(render(demo_document(make_demo(), comparisons)))) == ["drawn"] * 10


def test_every_chart_of_a_demo_with_a_mask_is_drawn(browse: Browse) -> None:
    comparisons = {name: make_comparison(2, analysed=True) for name in ("grpo", "sft")}
    demo, checks = with_masked(make_demo(), "mask"), {"mask": make_identity()}
    assert drawn(browse(render(demo_document(demo, comparisons, checks)))) == ["drawn"] * 11


def test_the_chart_of_an_identity_check_is_drawn(browse: Browse) -> None:
    identity = make_identity()
    document = browse(render(identity_document(identity)))
    assert drawn(document) == ["drawn"]
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", document)
    assert {*identity.by_kind(), "all"} <= set(labels)


def test_every_chart_of_a_trajectory_is_drawn(browse: Browse) -> None:
    for trajectory in (make_trajectory(), make_trajectory(1), make_trajectory(100)):
        document = browse(render(trajectory_document(trajectory)))
        assert drawn(document) == ["drawn"] * 5
        labels = re.findall(r"<text[^>]*>([^<]*)</text>", document)
        assert {*trajectory.final.by_kind, "all", "optimizer step"} <= set(labels)


def test_every_chart_of_a_paper_is_drawn(open_page: OpenPage) -> None:
    path = papers_folder() / "critics" / "results" / "small.json"
    page = paper_document(PaperResult.load(path))
    tab = open_page(render(page))
    assert drawn(tab.content()) == ["drawn"] * 4
    labels = tab.locator(".chart text").all_text_contents()
    assert {"grpo", "sft-lr-1e-6", "unchanged by bits (grpo-sgd − grpo)"} <= set(labels)
    tab.locator(".chart .mark-symbol path").first.hover()
    name, unchanged, gained, _ = tab.locator("#vg-tooltip-element td.value").all_inner_texts()
    result = {row[0]: row[1:3] for row in page.shown[1].blocks[0].table.rows}  # type: ignore[union-attr]
    assert result[name] == (unchanged, gained)


def test_hover_shows_exact_counts(open_page: OpenPage) -> None:
    text = render(comparison_document(make_comparison(num_layers=2)))
    tab = open_page(text)
    tab.locator(".chart .mark-rect path").first.hover()
    shown = tab.locator("#vg-tooltip-element td.value").all_inner_texts()
    cell = Page(text).specs[0]["data"]["values"][0]
    assert shown == [cell["tip_0"], cell["tip_1"], cell["tip_2"]]


def test_the_filter_of_a_long_table(open_page: OpenPage) -> None:
    comparison = make_comparison(num_layers=8)
    tab = open_page(render(comparison_document(comparison)))
    table = tab.locator("details", has_text="Every layer and kind").first
    table.locator("summary").click()
    rows = table.locator("tbody tr:visible")
    assert rows.count() == len(comparison.by_layer_kind())
    field = table.get_by_role("searchbox", name="Show rows with")
    field.fill("Q_PROJ 3")
    wanted = [row for row in table.locator("tbody tr").all() if row.is_visible()]
    assert wanted
    assert all("q_proj" in row.inner_text() and "3" in row.inner_text() for row in wanted)
    assert len(wanted) < len(comparison.by_layer_kind())
    result = table.locator("output").inner_text()
    assert result == f"{len(wanted)} of {len(comparison.by_layer_kind())} rows"
    field.fill("")
    assert rows.count() == len(comparison.by_layer_kind())
    assert table.locator("output").inner_text() == ""


def test_the_keyboard_reaches_the_result_and_every_table(open_page: OpenPage) -> None:
    tab = open_page(render(comparison_document(make_comparison(num_layers=2))))
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the result"
    reached = set()
    for _ in range(60):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.getAttribute('aria-label')"))
    # Where a table scrolls by itself, the keyboard has to be able to scroll it.
    assert "By kind" in reached
    tab.locator("summary").first.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("details").first.get_attribute("open") is not None


def test_several_results_on_one_page(open_page: OpenPage) -> None:
    pages = [comparison_document(make_comparison(num_layers=2)), identity_document(make_identity())]
    tab = open_page(render(*pages))
    assert drawn(tab.content()) == ["drawn"] * 4
    ids = re.findall(r' id="([^"]*)"', tab.content().split("<script>")[0])
    assert len(ids) == len(set(ids))
    links = tab.locator("nav a[href^='#']").all()
    assert len(links) == 2 + sum(len(page.shown) for page in pages)
    assert {(link.get_attribute("href") or "")[1:] for link in links} <= set(ids)


def test_dark_light_and_paper(open_page: OpenPage) -> None:
    tab = open_page(render(comparison_document(make_comparison(num_layers=2))))
    ground = "getComputedStyle(document.body).backgroundColor"
    seen = []
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        seen.append(tab.evaluate(ground))
    assert seen == ["rgb(255, 255, 255)", "rgb(20, 24, 27)"]
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate(ground) == "rgb(255, 255, 255)"
    assert not tab.locator(".contents").first.is_visible()


def test_every_chart_fits_a_narrow_screen(open_page: OpenPage, tmp_path: Path) -> None:
    """No mark, no name of an axis and no part of a legend is out of sight."""
    demo, checks = with_masked(make_demo(), "mask"), {"mask": make_identity()}
    paper = PaperResult.load(papers_folder() / "critics" / "results" / "small.json")
    pages = [
        comparison_document(make_comparison(30)),
        demo_document(demo, {"grpo": make_comparison(1), "sft": make_comparison(1)}, checks),
        trajectory_document(make_trajectory()),
        overlap_document(make_overlap(12)),
        structure_document(make_structure(tmp_path)),
        evaluation_document(make_evaluation()),
        robustness_document(make_probe()),
        paper_document(paper),
    ]
    tab = open_page(render(*pages), width=NARROW)
    assert tab.evaluate("document.documentElement.scrollWidth") == NARROW
    assert {*drawn(tab.content())} == {"drawn"}
    parts = "[...document.querySelectorAll('.chart svg, .chart .mark-symbol path, .chart text')]"
    boxes = tab.evaluate(f"{parts}.map(part => part.getBoundingClientRect().toJSON())")
    assert len(boxes) > 500
    for box in boxes:
        assert box["left"] >= 0 and box["right"] <= NARROW
    keys = "[...document.querySelectorAll('.keys')]"
    assert tab.evaluate(f"{keys}.every(node => node.scrollWidth <= node.clientWidth)")


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (evaluation_document(make_evaluation()), "95 % interval"),
        (demo_document(make_demo(), {"grpo": make_comparison(1)}), "95 % interval"),
        (robustness_document(make_probe()), "least to most of the seeds"),
    ],
)
def test_error_bars_are_in_the_legend_and_in_the_caption(page: ReportPage, message: str) -> None:
    """The same words for the same thing on every page."""
    figures = [one for section in page.shown for one in section.blocks if isinstance(one, Figure)]
    barred = [one for one in figures if any(key.symbol == "whisker" for key in one.keys)]
    assert barred
    for figure in barred:
        assert message in {key.text for key in figure.keys}
        assert "hiskers" in figure.reading


def test_a_chart_is_drawn_again_for_another_width(open_page: OpenPage) -> None:
    tab = open_page(render(comparison_document(make_comparison(30))))

    def widths() -> list[float]:
        return [float(svg.get_attribute("width") or 0) for svg in tab.locator(".chart svg").all()]

    wide = widths()
    assert max(wide) > NARROW
    for width in (NARROW, 1000):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.wait_for_selector(f"html[data-width='{width}']", state="attached")
        assert max(widths()) < width
    assert widths() == wide


def test_a_table_that_is_wider_than_the_screen_says_so(open_page: OpenPage) -> None:
    tab = open_page(render(comparison_document(make_comparison(2, analysed=True))), width=NARROW)
    for details in tab.locator("details").all():
        details.evaluate("node => { node.open = true }")
    frame = tab.locator(".frame", has=tab.get_by_role("region", name="By kind", exact=True))
    frame.get_by_text("it scrolls sideways").wait_for()
    for region in tab.get_by_role("region").all():
        is_cut = region.evaluate("node => node.scrollWidth > node.clientWidth + 1")
        assert is_cut == ("wide" in (region.get_attribute("class") or ""))
    region = frame.get_by_role("region")
    assert "gradient" in region.evaluate("node => getComputedStyle(node).backgroundImage")
    before = region.locator("td").first.bounding_box()
    region.focus()
    tab.keyboard.press("End")
    tab.keyboard.press("ArrowRight")
    expect(region.locator("td").first).not_to_be_in_viewport(ratio=1)
    assert before is not None and before["x"] >= 0
    tab.set_viewport_size({"width": 1000, "height": 900})
    frame.get_by_text("it scrolls sideways").wait_for(state="hidden")


def test_hostile_names_stay_text_even_without_the_policy(open_page: OpenPage) -> None:
    policy = r'<meta http-equiv="Content-Security-Policy"[^>]*>'
    text = re.sub(policy, "", render(comparison_document(hostile_comparison())), count=1)
    tab = open_page(text)
    tab.locator(".chart .mark-rect path").first.hover()
    assert "</script>" in tab.locator("#vg-tooltip-element").inner_text()
    assert drawn(tab.content()) == ["drawn"] * 3
    assert tab.evaluate("'hacked' in document.documentElement.dataset") is False
    assert tab.locator("img").count() == 0


def test_the_attack_works_on_a_page_that_does_not_escape(browser: Browser) -> None:
    tab = browser.new_page()
    tab.set_content(f"<!doctype html><html><body><script>var name = '{HOSTILE}';</script>")
    tab.wait_for_function("'hacked' in document.documentElement.dataset")
    tab.close()


def test_the_policy_stops_a_script_that_was_not_escaped(browser: Browser, tmp_path: Path) -> None:
    text = render(comparison_document(make_comparison(num_layers=1)))
    path = tmp_path / "page.html"
    path.write_text(text.replace("</main>", f"{HOSTILE}</main>"), "utf-8")
    tab = browser.new_page()
    refused: list[str] = []
    tab.on("console", lambda message: refused.append(message.text))
    tab.goto(path.as_uri())
    tab.wait_for_function(DRAWN)
    assert tab.evaluate("'hacked' in document.documentElement.dataset") is False
    assert any("Content Security Policy" in text for text in refused)
    assert drawn(tab.content()) == ["drawn"] * 3
    tab.close()
