"""Results of papers: verdicts follow from the stored numbers, also in the committed ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import ResultFormatError
from trimtab.papers.library import papers_folder, read_paper
from trimtab.papers.results import VERDICTS, PaperResult

COMMITTED = sorted(papers_folder().glob("*/results/*.json"))


def trial(**more: Any) -> dict[str, Any]:
    """The sparsity of three seeds."""
    return {
        "about": "sparsity of grpo",
        "measure": "sparsity",
        "settings": {},
        "arms": ["grpo"],
        "unit": "share",
        "bound": {"above": 0.5},
        "premise": False,
        "missing": [],
        "values": {"0": 0.9, "1": 0.91, "2": 0.92},
        **more,
    }


def result(*trials: dict[str, Any]) -> PaperResult:
    """A result with one claim."""
    claim = {
        "id": "a",
        "source": None,
        "place": "Table 1",
        "claim": "It is sparse.",
        "expected": {"RL": 68.5},
        "unit": "%",
        "note": None,
        "why": None,
        "trials": list(trials),
    }
    return PaperResult(
        {"id": "one", "title": "One", "arxiv": "1", "status": "v1"},
        {"name": "tiny", "base": "tiny", "seeds": [0, 1, 2], "cells": {}, "failed": {}},
        (claim,),
        {"date": "2026-11-21"},
    )


def test_shares_have_one_unit_whatever_an_older_result_called_them() -> None:
    share = trial(measure="overlap", settings={"figure": "explained"}, unit="factor")
    lift = trial(measure="overlap", settings={"figure": "lift"}, unit="factor")
    apart = {**share, "other_values": {"0": 0.5, "1": 0.5}}
    (claim,) = result(share, lift, apart).to_dict()["claims"]
    assert [one["unit"] for one in claim["trials"]] == ["share", "factor", "points"]


def test_figures_are_those_of_the_first_trial() -> None:
    (claim,) = result(trial(), trial(values={"0": 0.1}, bound={})).to_dict()["claims"]
    assert claim["measured"] == pytest.approx(0.91)
    assert claim["n"] == 3
    assert claim["interval"] == pytest.approx([0.885, 0.935], abs=1e-3)
    assert claim["verdict"] == "holds"
    assert claim["trials"][1]["verdict"] is None


def test_a_result_is_read_back() -> None:
    data = result(trial(), trial(other_values={"0": 0.1, "1": 0.2})).to_dict()
    assert PaperResult.from_dict(json.loads(json.dumps(data))).to_dict() == data


def test_a_verdict_in_the_file_is_not_believed() -> None:
    data = result(trial(values={"0": 0.1, "1": 0.11, "2": 0.12})).to_dict()
    data["claims"][0]["verdict"] = data["claims"][0]["trials"][0]["verdict"] = "holds"
    data["verdicts"]["holds"] = 1
    read = PaperResult.from_dict(data).to_dict()
    assert read["claims"][0]["verdict"] == "does not hold"
    assert read["verdicts"]["holds"] == 0


def test_verdicts_are_counted() -> None:
    assert result(trial()).num_by_verdict() == {**dict.fromkeys(VERDICTS, 0), "holds": 1}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.update(format="trimtab.sweep"),
        lambda data: data.update(format_version=2),
        lambda data: data.pop("claims"),
        lambda data: data["claims"][0].pop("place"),
        lambda data: data["claims"][0]["trials"][0].pop("bound"),
        lambda data: data["claims"][0]["trials"][0].update(values={"0": "high"}),
    ],
)
def test_a_damaged_file_is_refused(damage: Any, tmp_path: Path) -> None:
    data = result(trial()).to_dict()
    damage(data)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(data), "utf-8")
    with pytest.raises(ResultFormatError):
        PaperResult.load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResultFormatError, match=r"no\.json"):
        PaperResult.load(tmp_path / "no.json")


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_committed_verdicts_follow_from_their_numbers(path: Path) -> None:
    """What is derived is computed again, and is what the file says, to the last digit."""
    data = json.loads(path.read_text("utf-8"))
    assert PaperResult.load(path).to_dict() == data


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_committed_results_are_of_the_papers_as_they_are(path: Path) -> None:
    """Claims, figures, bounds and controls are those of the folder: none was changed since."""
    data = json.loads(path.read_text("utf-8"))
    paper = read_paper(path.parts[-3], papers_folder())
    scale = path.stem
    assert data["scale"]["name"] == scale
    result = {claim["id"]: claim for claim in data["claims"]}
    assert list(result) == [claim.id for claim in paper.claims] + [one.id for one in paper.public]
    for claim in paper.claims:
        one = result[claim.id]
        assert one["expected"] == claim.expected
        trials = [one for one in paper.trials_at(scale) if one.claim == claim.id]
        assert [(one["about"], one["bound"]) for one in one["trials"]] == [
            (trial.describe(), trial.bound) for trial in trials
        ]
    cells = {name for name, is_done in data["scale"]["cells"].items() if is_done}
    for claim in data["claims"]:
        for one in claim["trials"]:
            assert not cells & set(one["missing"])
