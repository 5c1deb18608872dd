"""A robustness probe in words, as a table and as a page."""

from __future__ import annotations

from dataclasses import replace

from tests.report.page import Page
from tests.report.test_comparison_page import HOSTILE
from tests.training.robustness.results import make_probe
from trimtab.report.html import render
from trimtab.report.robustness import (
    columns,
    robustness_document,
    rows_of,
    verdict,
    verdict_counts,
)
from trimtab.report.terminal import render_text
from trimtab.results.robustness import Robustness


def text_of(probe: Robustness, width: int = 120, *, styled: bool = False) -> str:
    return render_text(robustness_document(probe), console_width=width, styled=styled)


def page_of(probe: Robustness) -> Page:
    return Page(render(robustness_document(probe)))


def cells_of(probe: Robustness, noise: str) -> dict[str, list[str]]:
    """The table of one kind of noise: heading -> cells."""
    rows = list(rows_of(probe.summaries(), noise))
    found = {
        "level": [names[0] for names, _ in rows],
        "noise in": [names[1] for names, _ in rows],
    }
    for column in columns(has_questions=probe.questions is not None):
        found[column.heading] = [column.cell(arm) for _, arm in rows]
    return found


def test_the_sentences_come_first() -> None:
    lines = text_of(make_probe(), 300).splitlines()
    assert lines[:8] == [
        "checkpoint  tuned",
        "mask        m.safetensors: 100 of 1,000 (10.00 %) weights selected",
        "",
        "Compared with the same number of weights outside it, noise in the mask moves the model "
        "more in 4, less in 0 of 4 conditions.",
        "Compared with the same number of weights at random, noise in the mask moves the model "
        "more in 0, less in 0 of 4 conditions; 4 open.",
        "Compared with the same number of weights of the same magnitudes, noise in the mask moves "
        "the model more in 0, less in 4 of 4 conditions.",
        "addition: 8 questions, 7 of 8 (87.50 %) right before any noise. KL from the unperturbed "
        "model on 50 tokens of a text. 3 seeds, computed in bf16.",
        "",
    ]


def test_cells_of_a_table() -> None:
    columns = cells_of(make_probe(), "sign")
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    assert [row["noise in"] for row in rows[:4]] == [
        "the mask", "outside it", "at random", "magnitude-matched",
    ]  # fmt: skip
    assert [row["level"] for row in rows] == 4 * ["0.1"] + 4 * ["1"]
    # 0.4, 0.44 and 0.48 in three seeds: their mean, and 4.303 standard errors to either side.
    assert rows[7]["KL"] == "0.44 [0.341, 0.539]"
    # 0.5, 0.505 and 0.505 of the mask's, as a geometric mean
    assert rows[7]["mask ÷ it"] == "0.503 [0.496, 0.511]"
    assert rows[7]["correct"] == "33.33 % [15.4, 51.3]"
    assert rows[7]["correct, mask − it"] == "+12.5 [+12.5, +12.5]"
    assert (rows[4]["mask ÷ it"], rows[4]["in mask"], rows[5]["in mask"]) == ("", "100 %", "0 %")


def test_shares_do_not_leave_0_to_100_percent() -> None:
    cells = tuple(
        replace(cell, num_correct=8 - cell.seed) if cell.arm == "mask" else cell
        for cell in make_probe().cells
    )
    assert cells_of(make_probe(cells=cells), "sign")["correct"][0] == "87.50 % [56.4, 100.0]"


def test_a_divergence_is_never_negative() -> None:
    cells = tuple(
        replace(cell, kl=10.0 ** (3 * cell.seed)) if cell.arm == "random" else cell
        for cell in make_probe().cells
    )
    assert cells_of(make_probe(cells=cells), "sign")["KL"][2] == "3.34e+05 [0, 1.77e+06]"


def test_one_seed_leaves_all_open() -> None:
    probe = make_probe(num_seeds=1)
    assert verdict_counts(probe, "outside") == {"more": 0, "less": 0, "open": 4}
    assert "[" not in cells_of(probe, "sign")["KL"][0]
    assert verdict(probe.summaries()[0]["arms"][0]) == "open"


def test_without_questions() -> None:
    probe = make_probe(asked=False)
    text = text_of(probe, 200)
    assert "correct" not in text
    assert "KL from the unperturbed model on 50 tokens" in text
    assert "correct" not in page_of(probe).tables[0].headings


def test_a_page_has_every_figure_in_a_table() -> None:
    probe = make_probe()
    page = page_of(probe)
    assert page.sections == ["Noise", "Provenance"]
    columns = cells_of(probe, "gaussian")
    table = page.tables[0]
    assert table.headings == list(columns)
    assert table.body == [list(cells) for cells in zip(*columns.values(), strict=True)]
    assert len(page.specs) == 2
    points = page.specs[0]["data"]["values"]
    assert [row["tip_3"] for row in points] == columns["KL"]
    assert "Is the mask more fragile?" in page.text


def test_a_chart_leaves_out_what_no_logarithm_shows() -> None:
    cells = tuple(
        replace(cell, kl=0.0) if (cell.arm, cell.level) == ("mask", 0.1) else cell
        for cell in make_probe().cells
    )
    page = page_of(make_probe(cells=cells))
    assert len(page.specs[0]["data"]["values"]) == 7


def test_names_that_would_be_code() -> None:
    probe = make_probe()
    hostile = replace(probe, checkpoint=replace(probe.checkpoint, id=HOSTILE))
    page = page_of(hostile)
    assert len(page.scripts) == len(page_of(probe).scripts)
    assert HOSTILE in page.text
