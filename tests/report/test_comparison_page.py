from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from typing import Any

import numpy as np
import pytest

from tests.report.factory import (
    make_comparison,
    make_counts,
    make_demo,
    make_tensor,
    wrap,
)
from tests.report.page import Page
from trimtab.elements.counts import ChangeCounts, percent
from trimtab.errors import MissingExtraError
from trimtab.measure.compare_result import Comparison, Coverage
from trimtab.report.comparison import comparison_document
from trimtab.report.demo import demo_document
from trimtab.report.html import _chart_library, render

MEGABYTE = 1_000_000
HOSTILE = "</script><script>document.documentElement.dataset.hacked='1'</script><img src=x>&amp;"


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return make_comparison(num_layers=4, analysed=True)


@pytest.fixture(scope="module")
def text(comparison: Comparison) -> str:
    return render(comparison_document(comparison))


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def number(cell: str) -> int:
    return int(cell.replace(",", ""))


def share(counts: ChangeCounts, key: str) -> str:
    return percent(counts.num_elements - counts.num_changed[key], counts.num_elements)


def test_sections_come_in_reading_order(page: Page) -> None:
    assert page.sections == [
        "Where the changes are",
        "How large a move counts",
        "How far the changed weights moved",
        "What precision alone predicts",
        "Largest movers",
        "Rank of the update",
        "Geometry of the update",
        "Coverage",
        "Provenance",
    ]


def test_sections_that_were_not_analysed_are_left_out() -> None:
    sections = Page(render(comparison_document(make_comparison(num_layers=1)))).sections
    assert {"Rank of the update", "What precision alone predicts"}.isdisjoint(sections)


def test_headline_states_the_criterion(page: Page, comparison: Comparison) -> None:
    words = " ".join(page.text.split())
    total = comparison.total
    headline = f"{share(total, 'bits')} of {total.num_elements:,} weights are bit-identical"
    assert headline in words
    assert f"{total.num_changed['bits']:,} changed (criterion: bits)" in words
    assert "A weight counts as changed if any of its stored bits differ" in words


def test_kinds_equal_the_comparison(page: Page, comparison: Comparison) -> None:
    rows = {row[0]: row for row in page.table("By kind").body}
    groups = comparison.by_kind()
    assert set(rows) == {*groups, "all"}
    for kind, counts in (*groups.items(), ("all", comparison.total)):
        tensors = [t for t in comparison.tensors if kind in (t.kind, "all")]
        section = comparison.analyses["precision"]
        row = section["total"] if kind == "all" else section["by_kind"][kind]
        mean = comparison.unweighted_mean_sparsity("bits", tensors)
        assert mean is not None
        assert rows[kind] == [
            kind,
            f"{len(tensors):,}",
            f"{counts.num_elements:,}",
            f"{counts.num_changed['bits']:,}",
            share(counts, "bits"),
            percent(row["num_elements"] - row["random_walk"], row["num_elements"]),
            percent(mean, 1),
        ]


def test_heat_map_and_its_table_hold_every_cell(page: Page, comparison: Comparison) -> None:
    rows = {(row[0], row[1]): row for row in page.table("Every layer and kind").body}
    cells = {(row["layer"], row["kind"]): row for row in page.specs[0]["data"]["values"]}
    groups = comparison.by_layer_kind()
    assert len(rows) == len(cells) == len(groups)
    for (layer, kind), counts in groups.items():
        changed = counts.num_changed["bits"]
        row = rows["–" if layer is None else str(layer), kind]
        assert [number(row[2]), number(row[3])] == [counts.num_elements, changed]
        cell = cells["out" if layer is None else str(layer), kind]
        assert cell["density"] == pytest.approx(100 * changed / counts.num_elements)
        exact = f"{changed:,} of {counts.num_elements:,} ({percent(changed, counts.num_elements)})"
        assert cell["tip_2"] == exact


def test_every_criterion_is_in_the_tolerance_table(page: Page, comparison: Comparison) -> None:
    rows = {row[0]: row for row in page.table("Under every criterion").body}
    total = comparison.total
    assert list(rows) == list(total.num_changed)
    for key, changed in total.num_changed.items():
        assert rows[key][2:] == [f"{changed:,}", share(total, key)]
    points = page.specs[1]["data"]["values"]
    assert [(row["tolerance"], row["label"]) for row in points] == [
        (float(key.partition("=")[2]), share(total, key))
        for key in total.num_changed
        if key.startswith("atol")
    ]


def test_ulp_histogram_equals_the_comparison(page: Page, comparison: Comparison) -> None:
    histogram = comparison.total.ulp_histogram
    rows = {row[0]: number(row[1]) for row in page.table("Elements by distance").body}
    assert rows == histogram
    assert list(rows) == sorted(rows, key=lambda label: int(label.split("..")[0]))
    values = page.specs[2]["data"]["values"]
    assert {row["distance"]: row["changed"] for row in values} == histogram


def test_movers_are_those_that_changed_most(page: Page, comparison: Comparison) -> None:
    densest = sorted(comparison.tensors, key=lambda t: t.counts.density() or 0, reverse=True)
    rows = page.table("By share of changed elements").body
    assert [row[0] for row in rows] == [tensor.name for tensor in densest[:12]]
    longest = sorted(comparison.tensors, key=lambda t: t.counts.update_max_abs, reverse=True)
    rows = page.table("By largest |update| of one element").body
    assert [row[0] for row in rows] == [tensor.name for tensor in longest[:12]]


def test_rank_and_geometry_show_their_controls(page: Page, comparison: Comparison) -> None:
    rank = comparison.analyses["rank"]["summary"]["entropy_rank"]
    row = {
        row[0]: row for row in page.table("Rank as a share of the most that the shape allows").body
    }
    figures = ("mean", "random_mean", "min", "random_min")
    assert row["entropy rank"][1:] == [percent(rank[figure], 1) for figure in figures]
    both = comparison.analyses["geometry"]["summary"]["energy_both"]
    row = {row[0]: row for row in page.table("Shares and their chance").body}
    assert row["update in both"][1:3] == [percent(both["share"], 1), percent(both["chance"], 1)]


def test_provenance_is_shown(page: Page, comparison: Comparison) -> None:
    cells = {cell for table in page.tables[-2:] for row in table.body for cell in row}
    assert {
        comparison.base.id,
        comparison.tuned.id,
        comparison.base.content_hash,
        "LlamaForCausalLM",
        "BF16",
        "trimtab compare demo/base demo/grpo --html report.html",
        "2026-11-21T10:00:00+00:00",
        "bits",
    } <= cells


def test_0_and_100_percent_are_exact() -> None:
    rng = np.random.default_rng(0)
    num = 10**8
    one = make_counts(num, 0.0, rng)
    one = ChangeCounts(**{**one.__dict__, "num_changed": dict.fromkeys(one.num_changed, 1)})
    tensors = [
        make_tensor("none", 0, "q_proj", (num,), make_counts(num, 0.0, rng)),
        make_tensor("one", 1, "k_proj", (num,), one),
    ]
    rows = {
        row[0]: row
        for row in Page(render(comparison_document(wrap(tensors)))).table("By kind").body
    }
    assert [rows[kind][4] for kind in ("q_proj", "k_proj", "all")] == [
        "100 %",
        ">99.99 %",
        ">99.99 %",
    ]


def test_incomplete_coverage_is_loud_and_listed() -> None:
    gap = {"name": HOSTILE, "shape": [3, 4], "dtype": "BF16", "num_elements": 12, "hash": "ab"}
    coverage = Coverage(num_base=112, num_tuned=100, num_compared=100, missing=(gap,) * 100)
    page = Page(render(comparison_document(make_comparison(num_layers=1, coverage=coverage))))
    warnings = [value for _, name, value in page.attributes if name == "class"]
    assert warnings.count("notice warning") == 2
    assert "Coverage is INCOMPLETE: 100 elements were compared, 89.29 % of base" in page.text
    table = page.table("Only in base (100)")
    assert table.body[0] == [HOSTILE, "3 × 4", "BF16", "12"]
    assert len(table.body) == 40
    assert "60 more are not shown here" in page.text


def test_a_conversion_is_said_in_every_section() -> None:
    page = Page(
        render(comparison_document(make_comparison(num_layers=1, conversion="F32 cast to BF16")))
    )
    assert all("after conversion: F32 cast to BF16" in title for title in page.sections)


def test_nothing_compared_is_a_page_too() -> None:
    page = Page(render(comparison_document(wrap([]))))
    assert "no weights were compared" in page.text


def test_identical_checkpoints_have_no_movers() -> None:
    counts = make_counts(100, 0.0, np.random.default_rng(0))
    page = Page(
        render(comparison_document(wrap([make_tensor("a", 0, "q_proj", (10, 10), counts)])))
    )
    assert "100 % of 100 weights are bit-identical" in " ".join(page.text.split())
    assert "No tensor changed." in page.text
    assert "How far the changed weights moved" not in page.sections


def test_every_chart_has_a_table_and_a_caption(text: str) -> None:
    figures = re.findall(r"<figure>.*?</figure>", text, re.S)
    assert len(figures) == 6
    for figure in figures:
        assert figure.count("<figcaption") == figure.count("application/json") == 1
        assert "<table>" in figure


def all_pages() -> list[str]:
    comparison = make_comparison(num_layers=2, analysed=True)
    demo = render(demo_document(make_demo(), {"grpo": comparison, "sft": comparison}))
    return [render(comparison_document(comparison)), demo]


def test_nothing_is_fetched() -> None:
    for text in all_pages():
        page = Page(text)
        linked = [value for _, name, value in page.attributes if name in ("href", "src", "srcset")]
        assert all(value.startswith("#") for value in linked)
        assert not any(tag in ("link", "iframe", "base", "object") for tag, _, _ in page.attributes)
        (style,) = re.findall(r"<style>(.*?)</style>", text, re.S)
        assert "url(" not in style
        assert "@import" not in style
        assert "http" not in str(page.specs)
        assert "http" not in page.scripts[1]


def test_the_page_allows_only_its_own_scripts(page: Page) -> None:
    (policy,) = [
        value for tag, name, value in page.attributes if tag == "meta" and "default-src" in value
    ]
    assert policy.startswith("default-src 'none'; ")
    allowed = re.search(r"script-src ([^;]+)$", policy)
    assert allowed is not None
    hashes = [
        f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"
        for script in page.scripts
    ]
    assert allowed[1].split() == hashes


def hostile_comparison() -> Comparison:
    """Names, kinds and ids that try to leave the text they stand in."""
    rng = np.random.default_rng(0)
    tensors = [
        make_tensor(f"{HOSTILE}.{layer}", layer, f"{kind}{HOSTILE}", (50, 20), counts)
        for layer in range(2)
        for kind in ("a", "b")
        for counts in [make_counts(1000, 0.3, rng)]
    ]
    comparison = wrap(tensors, conversion=HOSTILE, provenance={"command": HOSTILE, HOSTILE: 1})
    for record in (comparison.base, comparison.tuned):
        record.__dict__["id"] = HOSTILE
    return comparison


def test_names_from_files_stay_text() -> None:
    text = render(comparison_document(hostile_comparison()))
    page = Page(text)
    assert len(page.scripts) == 2
    assert not any(tag == "img" for tag, _, _ in page.attributes)
    assert f"{HOSTILE}.0" in {row[0] for row in page.table("By share of changed elements").body}
    kinds = {row["kind"] for row in page.specs[0]["data"]["values"]}
    assert kinds == {f"a{HOSTILE}", f"b{HOSTILE}"}
    assert all("<" not in spec for spec in re.findall(r'tion/json">(.*?)</script>', text, re.S))


def test_a_7b_model_stays_below_3_megabytes() -> None:
    comparison = make_comparison(32, hidden=4096, ffn=11008, kv=1024, analysed=True)
    assert len(render(comparison_document(comparison)).encode()) < 3 * MEGABYTE
    demo = render(demo_document(make_demo(), {"grpo": comparison, "sft": comparison}))
    assert len(demo.encode()) < 3 * MEGABYTE


def test_a_mixture_of_experts_is_aggregated() -> None:
    comparison = make_comparison(61, experts=256, hidden=2048, ffn=768)
    assert len(comparison.tensors) > 46_000
    text = render(comparison_document(comparison))
    assert len(text.encode()) < 3 * MEGABYTE
    rows = {row[0]: row for row in Page(text).table("By kind").body}
    assert number(rows["expert.up_proj"][1]) == 61 * 256
    assert max(len(table.rows) for table in Page(text).tables) < 700


def test_a_demo_page_sets_the_runs_side_by_side() -> None:
    grpo, sft = make_comparison(2, analysed=True), make_comparison(2, seed=1, analysed=True)
    demo = make_demo()
    page = Page(render(demo_document(demo, {"grpo": grpo, "sft": sft})))
    assert page.sections[:2] == ["Did they learn?", "Where the changes are"]
    assert "What the runs took" in page.sections
    assert demo["model_note"] in page.text
    assert page.table("Accuracy on the held-out questions").body == [
        ["base", "14.3 % (3 of 21)", "5.0, 34.6", "10.7 % (9 of 84)", "5.7, 19.1"],
        ["after grpo", "81.0 % (17 of 21)", "60.0, 92.3", "54.8 % (46 of 84)", "44.1, 65.0"],
        ["after sft", "100 % (21 of 21)", "84.5, 100.0", "63.1 % (53 of 84)", "52.4, 72.6"],
        ["always “9”", "14.3 % (3 of 21)", "–", "–", "–"],
    ]
    (table,) = [table for table in page.tables if table.title.startswith("Unchanged elements by")]
    everything = table.body[-1]
    assert everything[2] == share(grpo.total, "bits")
    assert everything[4] == share(sft.total, "bits")
    costs = {row[0]: row[1:] for row in page.table("The runs").body}
    assert costs["tokens with a loss"] == ["2,412", "960"]
    assert costs["completions"] == ["32", "–"]
    shared = dict(page.table("The same in every run").body)
    assert shared == {"lr": "1e-05", "steps": "20", "betas": "0.9, 0.999"}
    assert len(page.table("Mean reward of the batch, step by step").body) == 20


def test_a_loss_that_is_not_finite_does_not_break_the_page() -> None:
    demo: Any = make_demo()
    demo["arms"]["sft"]["history"][3]["loss"] = float("nan")
    comparison = make_comparison(1)
    page = Page(render(demo_document(demo, {"grpo": comparison, "sft": comparison})))
    assert len(page.table("Loss of the batch, step by step").body) == 19


def test_without_the_chart_library_the_cure_is_named(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    _chart_library.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'trimtab\[report\]'"):
        render(comparison_document(comparison))


def test_every_colour_is_defined_for_light_and_dark() -> None:
    for text in all_pages():
        defined = re.findall(r"(--[\w-]+):", text)
        used = set(re.findall(r"var\((--[\w-]+)\)", text))
        once = {"--own", "--line"}
        assert all(defined.count(name) >= 2 for name in used - once), used
        assert used <= set(defined)
