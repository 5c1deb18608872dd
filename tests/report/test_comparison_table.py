from __future__ import annotations

import re
from typing import Any

import numpy as np

from tests.report.factory import make_comparison, make_counts, make_tensor, wrap
from trimtab.elements.counts import ChangeCounts, percent
from trimtab.measure.compare_result import Comparison, Coverage
from trimtab.report.comparison import comparison_document
from trimtab.report.terminal import render_text


def text_of_comparison(comparison: Comparison, **how: Any) -> str:
    return render_text(comparison_document(comparison), **how)


def cells(line: str) -> list[str]:
    """Cells of a table's line, which stand at least two spaces apart."""
    return [cell for cell in line.split("  ") if cell]


def test_shows_the_counts_of_the_comparison() -> None:
    comparison = make_comparison(num_layers=2, analysed=True)
    lines = text_of_comparison(comparison, console_width=120).splitlines()
    total = comparison.total
    unchanged = total.num_elements - total.num_changed["bits"]
    assert lines[:2] == ["base   demo/base", "tuned  demo/grpo"]
    assert lines[3] == (
        f"{percent(unchanged, total.num_elements)} of {total.num_elements:,} weights are "
        "bit-identical to the base (criterion: bits)"
    )
    rows = {line.split()[0]: [cell.strip() for cell in cells(line)] for line in lines if line}
    headings = rows["kind"]
    for kind, counts in comparison.by_kind().items():
        row = dict(zip(headings, rows[kind], strict=True))
        assert row["elements"] == f"{counts.num_elements:,}"
        assert row["changed"] == f"{counts.num_changed['bits']:,}"
        assert row["unchanged"] == percent(
            counts.num_elements - counts.num_changed["bits"], counts.num_elements
        )
    expected = comparison.analyses["precision"]["total"]
    left = expected["num_elements"] - expected["random_walk"]
    assert dict(zip(headings, rows["all"], strict=True))["predicted"] == percent(
        left, expected["num_elements"]
    )


def test_incomplete_coverage_and_conversion_are_always_said() -> None:
    coverage = Coverage(
        num_base=30_000_000,
        num_tuned=28_000_000,
        num_compared=28_000_000,
        missing=({"name": "x", "shape": [2], "num_elements": 2_000_000},),
    )
    comparison = make_comparison(
        num_layers=1, coverage=coverage, conversion="F32 cast to BF16", criterion="atol=1e-05"
    )
    text = text_of_comparison(comparison, console_width=200)
    assert "Coverage INCOMPLETE: 28,000,000 elements were compared, 93.33 % of base" in text
    assert "Converted before comparing: F32 cast to BF16." in text
    assert "weights are within 1e-05 of the base (criterion: atol=1e-05)" in text


def test_a_prediction_is_not_set_beside_a_tolerance() -> None:
    text = text_of_comparison(
        make_comparison(num_layers=1, analysed=True, criterion="atol=1e-05"), console_width=120
    )
    assert "predicted" not in text


def test_rank_and_geometry_stand_beside_their_controls() -> None:
    comparison = make_comparison(num_layers=2, analysed=True)
    text = text_of_comparison(comparison, console_width=100)
    rank, geometry = (comparison.analyses[name]["summary"] for name in ("rank", "geometry"))
    of_rank, of_mask = rank["stable_rank"], geometry["low_magnitude_mask"]
    result = [percent(of_rank[key], 1) for key in ("mean", "random_mean", "min", "random_min")]
    (line,) = (line for line in text.splitlines() if line.startswith("stable rank"))
    assert re.findall(r"[<>]?\d[\d.]* %", line) == result
    (line,) = (line for line in text.splitlines() if line.startswith("changes on the smallest"))
    assert re.findall(r"[<>]?\d[\d.]* %", line) == [
        percent(of_mask["share"], 1),
        percent(of_mask["chance"], 1),
    ]
    assert line.endswith(f" {of_mask['lift']:.2f}")
    assert "Rank of" not in text_of_comparison(make_comparison(num_layers=2), console_width=100)


def test_names_cannot_steer_the_terminal() -> None:
    counts = ChangeCounts(num_elements=4, num_changed={"bits": 1, "atol=0": 1})
    tensor = make_tensor("a", 0, "\x1b]0;hi\x07\nkind", (4,), counts)
    text = text_of_comparison(wrap([tensor]), console_width=80)
    assert "\x1b" not in text
    assert "\\x1b]0;hi\\x07\\nkind" in text


def test_nothing_compared() -> None:
    text = text_of_comparison(wrap([]), console_width=80)
    assert "no weights were compared" in text


def test_all_or_nothing_changed_is_exact() -> None:
    rng = np.random.default_rng(0)
    for density, figure in ((0.0, "100 %"), (1.0, "0 %")):
        counts = make_counts(100, density, rng)
        text = text_of_comparison(wrap([make_tensor("a", 0, "q_proj", (10, 10), counts)]))
        assert f"{figure} of 100 weights" in text
