"""A prediction in words, as a table and as a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.measure.checkpoints import save
from tests.report.page import Page
from tests.report.test_comparison_page import HOSTILE
from trimtab.masks.mask import Mask
from trimtab.masks.prediction import PredictionScore, score_prediction
from trimtab.masks.selection.scores import ArrayScores
from trimtab.report.html import render
from trimtab.report.prediction import prediction_document
from trimtab.report.terminal import render_text

NAMES = ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight")


def text_of_score(score: PredictionScore, **how: Any) -> str:
    return render_text(prediction_document(score), **how)


def words(text: str) -> str:
    return " ".join(text.split())


def masks() -> tuple[Mask, Mask]:
    """Two of the four elements of each tensor predicted; one of those two came true, alone."""
    pred = {name: np.array([[1, 1], [0, 0]], dtype=np.bool_) for name in NAMES}
    true = {name: np.array([[1, 0], [0, 0]], dtype=np.bool_) for name in NAMES}
    return Mask.from_arrays(pred), Mask.from_arrays(true)


@pytest.fixture
def score(tmp_path: Path) -> PredictionScore:
    weights = {name: torch.tensor([[1.0, 1.0], [4.0, 0.25]]) for name in NAMES}
    base = save(tmp_path / "base", weights)
    scores = ArrayScores({name: np.array([[3.0, 2.0], [1.001, 1.0]]) for name in NAMES})
    return score_prediction(*masks(), base=base, scores=scores)


def test_the_table(score: PredictionScore) -> None:
    text = text_of_score(score, console_width=140)
    printed = words(text)
    assert "100 % of TRUE is predicted, and 50.00 % of PRED came true: 2 weights." in printed
    # Of two of four elements at random one is hit in two: 1 × 1/2 in each tensor. By magnitude
    # both predictions are all of their bin. The two smallest are 0.25 and one of two of 1.
    assert "This is 2 × what the same number of random weights would hit, 2 × that with" in printed
    assert "1 × that with the same number in each tensor at each magnitude" in printed
    assert "and 2 × what the same number of the smallest weights of each tensor would." in printed
    assert "Average precision 100 %, of the ranking by scores, told apart by the first" in printed
    assert "a random ranking has 25.00 %" in printed
    found, lifts = (text.partition(title)[2] for title in ("By kind\n", "each guess\n"))
    rows = [words(line) for line in found.splitlines()[:4]]
    assert rows[0] == "kind elements density precision recall AP"
    assert rows[1] == "q_proj 4 25.00 % 50.00 % 100 % 100 %"
    assert rows[3] == "all 8 25.00 % 50.00 % 100 % 100 %"
    rows = [words(line) for line in lifts.splitlines()[:4]]
    assert rows[0] == "kind hits random per tensor magnitude smallest"
    assert rows[1] == "q_proj 1 2 2 1 2"
    assert rows[3] == "all 2 2 2 1 2"


def test_without_base_and_scores() -> None:
    text = words(text_of_score(score_prediction(*masks()), console_width=140))
    assert "Average precision 50.00 %, of PRED alone, which ranks in two steps" in text
    assert "No base was given" in text
    assert "magnitude smallest" not in text


def test_nothing_to_predict() -> None:
    pred, _ = masks()
    empty = Mask.from_arrays({name: np.zeros((2, 2), dtype=np.bool_) for name in NAMES})
    for sides, side in (((pred, empty), "TRUE"), ((empty, pred), "PRED")):
        text = words(text_of_score(score_prediction(*sides), console_width=140))
        assert f"Nothing that was compared is selected in {side}" in text
        page = Page(render(prediction_document(score_prediction(*sides))))
        assert f"{side} selects nothing" in page.text


def test_the_page(score: PredictionScore) -> None:
    page = Page(render(prediction_document(score)))
    assert "Which weights will move?" in page.text
    table = page.table("By kind")
    assert [row[0] for row in table.body] == ["q_proj", "up_proj", "all"]
    assert table.body[0] == [
        *("q_proj", "4", "25.00 %", "50.00 %", "100 %", "100 %", "1", "2", "2", "1", "2")
    ]
    assert [row[0] for row in page.table("By layer").body] == ["0", "1"]
    (spec,) = page.specs
    lifts = {(row["name"], row["arm"]): row["lift"] for row in spec["data"]["values"]}
    assert lifts["all", "low-magnitude"] == 2
    assert lifts["q_proj", "magnitude-matched"] == 1


def test_names_from_files_stay_text(score: PredictionScore) -> None:
    hostile = [replace(mask, id=HOSTILE) for mask in score.overlap.masks]
    result = replace(score, overlap=replace(score.overlap, masks=tuple(hostile)))
    page = Page(render(prediction_document(result)))
    assert not [script for script in page.scripts if HOSTILE in script]
    assert "\x1b" not in text_of_score(result, console_width=140)
