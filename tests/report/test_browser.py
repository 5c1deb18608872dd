"""The page in a real browser: charts are drawn, hover is exact, hostile names stay text."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.report.factory import make_comparison, make_demo, with_masked
from tests.report.identity_factory import make_identity
from tests.report.page import Page
from tests.report.test_comparison_page import HOSTILE, hostile_comparison
from tests.report.trajectory_factory import make_trajectory
from trimtab.elements.counts import percent
from trimtab.report.comparison_page import render_demo_html, render_html
from trimtab.report.identity_page import render_identity_html
from trimtab.report.trajectory_page import render_trajectory_html

pytestmark = pytest.mark.browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

HOVER = """<script>
addEventListener("load", async () => {
  const page = document.documentElement.dataset;
  while (page.charts !== "done") await new Promise(requestAnimationFrame);
  const cell = document.querySelector(".chart .mark-rect path");
  const {left, top} = cell.getBoundingClientRect();
  const where = {bubbles: true, clientX: left + 3, clientY: top + 3};
  for (const type of ["over", "move"]) {
    cell.dispatchEvent(new PointerEvent(`pointer${type}`, where));
    cell.dispatchEvent(new MouseEvent(`mouse${type}`, where));
  }
});
</script>"""
"""Points at the first cell of the heat map."""

Browse = Callable[..., str]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Open a page in Chromium and return its document after all scripts have run."""
    if CHROMIUM is None:
        pytest.skip("chromium is not on PATH")

    def dump(text: str, *switches: str) -> str:
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        action = ("--virtual-time-budget=20000", "--dump-dom", path.as_uri())
        done = subprocess.run(
            [CHROMIUM, *SWITCHES, profile, *switches, *action],
            capture_output=True,
            encoding="utf-8",
            timeout=90,
            check=True,
        )
        return done.stdout

    return dump


def drawn(document: str) -> list[str]:
    """What became of each chart."""
    return re.findall(r'class="chart"[^>]*data-state="(\w+)"', document)


def test_every_chart_is_drawn_with_its_numbers(browse: Browse) -> None:
    comparison = make_comparison(num_layers=4, analysed=True)
    document = browse(render_html(comparison))
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
    assert drawn(browse(render_demo_html(make_demo(), comparisons))) == ["drawn"] * 10


def test_every_chart_of_a_demo_with_a_mask_is_drawn(browse: Browse) -> None:
    comparisons = {name: make_comparison(2, analysed=True) for name in ("grpo", "sft")}
    demo, checks = with_masked(make_demo(), "mask"), {"mask": make_identity()}
    assert drawn(browse(render_demo_html(demo, comparisons, checks))) == ["drawn"] * 11


def test_the_chart_of_an_identity_check_is_drawn(browse: Browse) -> None:
    identity = make_identity()
    document = browse(render_identity_html(identity))
    assert drawn(document) == ["drawn"]
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", document)
    assert {*identity.by_kind(), "all"} <= set(labels)


def test_every_chart_of_a_trajectory_is_drawn(browse: Browse) -> None:
    for trajectory in (make_trajectory(), make_trajectory(1), make_trajectory(100)):
        document = browse(render_trajectory_html(trajectory))
        assert drawn(document) == ["drawn"] * 5
        labels = re.findall(r"<text[^>]*>([^<]*)</text>", document)
        assert {*trajectory.final.by_kind, "all", "optimizer step"} <= set(labels)


def hovering(text: str) -> str:
    """The page with a script that hovers, and without the policy that would stop this script."""
    before, end, after = text.rpartition("</body>")
    policy = r'<meta http-equiv="Content-Security-Policy"[^>]*>'
    return re.sub(policy, "", before, count=1) + HOVER + end + after


def test_hover_shows_exact_counts(browse: Browse) -> None:
    comparison = make_comparison(num_layers=2)
    document = browse(hovering(render_html(comparison)))
    (tooltip,) = re.findall(r'<div id="vg-tooltip-element"[^>]*>(.*?)</div>', document, re.S)
    cell = Page(render_html(comparison)).specs[0]["data"]["values"][0]
    shown = re.findall(r'<td class="value">(.*?)</td>', tooltip)
    assert shown == [cell["tip_0"], cell["tip_1"], cell["tip_2"]]


def test_hostile_names_stay_text_even_without_the_policy(browse: Browse) -> None:
    document = browse(hovering(render_html(hostile_comparison())))
    assert drawn(document) == ["drawn"] * 3
    assert "data-hacked" not in re.findall(r"<html[^>]*>", document)[0]
    (tooltip,) = re.findall(r'<div id="vg-tooltip-element"[^>]*>(.*?)</div>', document, re.S)
    assert "&lt;/script&gt;" in tooltip
    assert "<img" not in document.split("<script>")[0]


def test_the_attack_works_on_a_page_that_does_not_escape(browse: Browse) -> None:
    document = browse(f"<!doctype html><html><body><script>var name = '{HOSTILE}';</script>")
    assert "data-hacked" in re.findall(r"<html[^>]*>", document)[0]


def test_the_policy_stops_a_script_that_was_not_escaped(browse: Browse) -> None:
    text = render_html(make_comparison(num_layers=1)).replace("</main>", f"{HOSTILE}</main>")
    document = browse(text)
    assert "data-hacked" not in re.findall(r"<html[^>]*>", document)[0]
    assert drawn(document) == ["drawn"] * 3
