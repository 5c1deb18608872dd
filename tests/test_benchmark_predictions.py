"""The benchmark of predictions makes them by their commands, and its page shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks import predictions

from docs import generated_predictions
from tests.measure.checkpoints import llama_tensors, moved, save
from trimtab.cli import main
from trimtab.cli.mask_make import make
from trimtab.masks.extract import extract_mask
from trimtab.masks.prediction import score_prediction

TOLD = {
    "date": "2026-11-21",
    "trimtab_version": "0",
    "processor": "none",
    "processors": 1,
    "load_before": 0.0,
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("predictions")
    tensors = llama_tensors()
    base, tuned = save(folder / "base", tensors), save(folder / "tuned", moved(tensors))
    other = save(folder / "other", moved(tensors, seed=5))
    mask = extract_mask(base, tuned)
    true = folder / "true.safetensors"
    mask.save(true)
    makers = [maker for maker in predictions.MAKERS if maker.name in ("random", "low-magnitude")]
    made = [predictions.run(maker, str(base), true, folder, None) for maker in makers]
    rows = [row for one in made for row in one]
    rows.append(predictions.other_run("another", str(base), str(other), true))
    return {
        "benchmark": "predictions",
        "true": {"what": "x", "digest": mask.digest, "num_elements": 100, "num_selected": 20},
        "rows": [{**row, "provenance": TOLD} for row in rows],
    }


def test_predictions_are_made_and_scored(report: dict[str, Any]) -> None:
    random, low, other = report["rows"]
    assert low["command"] == ("trimtab mask make low-magnitude --base base --like mask.safetensors")
    assert (random["is_ranked"], low["is_ranked"]) == (False, True)
    assert low["recall"] == low["precision"] > 0
    assert low["lifts"]["low-magnitude"] == pytest.approx(1, abs=0.05)
    assert low["peak_mb"] > 20
    assert other["num_predicted"] != low["num_predicted"]
    assert str(Path.home()) not in str(report)


def test_the_same_scores_by_magnitude(tmp_path: Path) -> None:
    tensors = llama_tensors()
    base, tuned = save(tmp_path / "base", tensors), save(tmp_path / "tuned", moved(tensors))
    true = tmp_path / "true.safetensors"
    extract_mask(base, tuned).save(true)
    low = predictions.by_weights("low-magnitude")._replace(by_magnitude=True)
    by_tensor, by_magnitude = predictions.run(low, str(base), true, tmp_path, None)
    assert by_magnitude["name"] == by_tensor["name"] + predictions.BY_MAGNITUDE
    assert by_magnitude["command"] == by_tensor["command"] + " --match magnitude"
    assert "seconds" not in by_magnitude
    by_hand = tmp_path / "by-hand.safetensors"
    with pytest.raises(SystemExit):
        typed = ["mask", "make", "low-magnitude", "--base", str(base), "--like", str(true)]
        main([*typed, "--match", "magnitude", "-o", str(by_hand)])
    assert score_prediction(by_hand, true).total.recall == by_magnitude["recall"]


def test_every_maker_is_a_kind_or_a_control() -> None:
    for maker in predictions.MAKERS:
        assert maker.command[:2] == ("mask", "random") or maker.command[2] in make.commands


def test_a_row_replaces_that_of_its_name(report: dict[str, Any]) -> None:
    random, low, other = report["rows"]
    again = {**report, "rows": [{**random, "recall": 0.5}]}
    assert predictions.collected(report, again)["rows"] == [{**random, "recall": 0.5}, low, other]
    strange = {**again, "true": {"digest": "another"}}
    assert predictions.collected(report, strange) == strange
    assert predictions.collected(None, again) == again


def test_the_page_shows_them(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    generated_predictions.predictions(report)
    table = capsys.readouterr().out
    assert table.startswith("| PRED | recall | precision | AP |")
    assert "\n| low-magnitude | " in table
    assert " ¹ |" in table
    generated_predictions.by_kind(
        {"rows": [{"name": "x", "recall_by_kind": dict.fromkeys(generated_predictions.KINDS, 0.5)}]}
    )
    assert "| x | 50.0 % | 50.0 % |" in capsys.readouterr().out
    generated_predictions.measured(report)
    assert "TRUE: x; 20 of 100 weights (20.00 %)" in capsys.readouterr().out
    generated_predictions.reading(report)
    text = capsys.readouterr().out
    assert "use only the base, `low-magnitude` hits most" in text
    assert "What another training changed (another) has" in text
    reach = {**report["rows"][0], "name": generated_predictions.REACH, "recall": 1.0}
    generated_predictions.reading({**report, "rows": [reach]})
    assert "these include 100 % of what was changed" in capsys.readouterr().out
    by_data = {**report["rows"][1], "name": "snip", "needs": "the questions"}
    matched = {**by_data, "name": "snip" + predictions.BY_MAGNITUDE, "needs": "and more"}
    early = {**report["rows"][0], "name": "warm, 1 of 20 steps", "needs": "those steps"}
    generated_predictions.reading({**report, "rows": [by_data, matched, early]})
    text = capsys.readouterr().out
    assert "The lifts of the gradients of the base on the questions" in text
    assert " % (`snip`)." in text
    assert "the best is `snip` with " in text
    assert "What moved early (warm, 1 of 20 steps) is " in text
    for draw in (generated_predictions.predictions, generated_predictions.reading):
        draw(None)
    assert not capsys.readouterr().out
