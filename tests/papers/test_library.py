"""The papers of the project: figures as they were copied from the papers, and files that fit."""

from __future__ import annotations

import json
from math import floor
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import SettingsError
from trimtab.papers.library import Paper, Scale, paper_ids, papers_folder, read_paper
from trimtab.papers.measures import MEASURES

FOLDER = papers_folder()

TABLE_6 = """
tulu-3-8b-dpo                76.04 76.04 76.14 81.38
tulu-3-70b-dpo               87.58 87.59 87.79 95.24
deepseek-math-7b-rl          68.14 68.14 68.14 68.53
mistral-orpo-beta            73.16 73.18 73.23 76.94
mistral-orpo-alpha           50.40 50.41 50.48 53.23
eurus-7b-kto                 71.78 71.79 73.14 95.98
math-shepherd-mistral-7b-rl  52.45 52.47 53.21 80.77
eurus-2-7b-prime             75.26 75.27 75.36 77.04
llama-3-instruct-8b-simpo    71.00 71.00 71.10 76.42
llama-3-base-8b-sft-simpo    79.47 79.47 79.60 86.52
mistral-7b-instruct-simpo    59.37 59.40 60.31 89.07
mistral-7b-base-sft-simpo    62.58 62.60 63.56 91.44
"""
"""Copied from 2505.11711, appendix A, a second time: a typing error would have to be made twice."""

ELSEWHERE = {
    "deepseek-r1-zero": "86.0",
    "llama-3-base-8b-sft-kto": "81.2",
    "qwen2.5-math-7b-rft": "91.2",
    "qwen2.5-math-7b-raft++": "69.4",
    "llama-3.1-8b-sft": "6.8",
    "llama-3.1-8b-sft-dpo": "6.8",
    "zephyr-7b-beta": "7.7",
}
"""Tables 1 and 5 of the same."""

FIGURES: dict[str, dict[str, float]] = {
    "fig-1-rl-sparser": {
        "RL, least": 68.5,
        "RL, most": 96.0,
        "SFT, least": 6,
        "SFT, most": 15,
    },
    "table-1-dpo": {"Tulu-3-8B": 81.4, "Tulu-3-70B": 95.2},
    "table-1-grpo": {"deepseek-math-7b": 68.5, "R1-Zero": 86.0},
    "table-1-orpo": {"mistral-orpo-beta": 76.9},
    "table-1-kto": {"Eurus-7b": 96.0, "Llama-3-8B": 81.2},
    "table-1-ppo": {"math-shepherd-mistral-7b": 80.8},
    "table-1-simpo": {"Llama-3-8B": 86.5},
    "table-1-prime": {"Eurus-2-7B": 77.0},
    "fig-2-untouched": {"untouched": 72},
    "fig-2-cancelled": {"effective": 20, "cancelled": 8},
    "table-2-rank": {
        "Tulu-8B DPO": 99.8,
        "Eurus-7B PRIME": 99.5,
        "Llama-3-8B KTO": 99.2,
        "DeepSeek-Math-7B GRPO": 99.4,
    },
    "table-3-accuracy": {
        "DPO, average, all": 40.3,
        "DPO, average, subnetwork": 41.9,
        "PRIME, MATH500, all": 69.8,
        "PRIME, MATH500, subnetwork": 72.2,
    },
    "identity-1e-5": {"DPO": 94.0, "PRIME": 90.5},
    "identity-1e-4": {"DPO": 100, "PRIME": 100},
    "table-4-seed": {"o1": 60.5, "o2": 60.6, "random": 36.7},
    "table-4-data": {"o1": 26.7, "o2": 67.1, "random o1": 14.6, "random o2": 36.7},
    "table-4-algorithm": {"o1": 59.1, "o2": 33.2, "random o1": 23.0, "random o2": 12.9},
    "fig-6-outside": {"outside": 8.5},
    "fig-7-consecutive": {"mean": 7},
    "sec-6-kl": {"with KL": 69.8, "without": 68.8},
}
"""Other figures of 2505.11711, copied a second time."""


@pytest.fixture(params=paper_ids(FOLDER))
def paper(request: pytest.FixtureRequest) -> Paper:
    """Each paper."""
    return read_paper(request.param, FOLDER)


def test_the_papers_are_there() -> None:
    assert paper_ids(FOLDER) == ["balashov-2025", "critics", "mukherjee-2025"]


def test_figures_are_those_of_the_paper() -> None:
    one = read_paper("mukherjee-2025", FOLDER)
    rows = [line.split() for line in TABLE_6.strip().splitlines()]
    figures = {id: values for id, *values in rows}
    by_id = {pair.id: pair.sparsity for pair in one.public}
    tolerances = ["atol=1e-08", "atol=1e-07", "atol=1e-06", "atol=1e-05"]
    assert {id: list(by_id[id].values()) for id in figures} == figures
    assert all(list(by_id[id]) == tolerances for id in figures)
    assert {id: by_id[id] for id in ELSEWHERE} == {
        id: {"atol=1e-05": figure} for id, figure in ELSEWHERE.items()
    }
    assert by_id.keys() == figures.keys() | ELSEWHERE.keys()
    claims = {claim.id: claim.expected for claim in one.claims}
    assert {id: claims[id] for id in FIGURES} == FIGURES


def test_table_1_is_table_6_rounded() -> None:
    """But for SimPO, whose row has the figure of another model: the erratum."""
    one = read_paper("mukherjee-2025", FOLDER)
    at_1e_5 = {pair.id: float(pair.sparsity["atol=1e-05"]) for pair in one.public}
    claims = {claim.id: claim.expected for claim in one.claims}
    same = {
        ("table-1-dpo", "Tulu-3-8B"): "tulu-3-8b-dpo",
        ("table-1-dpo", "Tulu-3-70B"): "tulu-3-70b-dpo",
        ("table-1-grpo", "deepseek-math-7b"): "deepseek-math-7b-rl",
        ("table-1-orpo", "mistral-orpo-beta"): "mistral-orpo-beta",
        ("table-1-kto", "Eurus-7b"): "eurus-7b-kto",
        ("table-1-ppo", "math-shepherd-mistral-7b"): "math-shepherd-mistral-7b-rl",
        ("table-1-prime", "Eurus-2-7B"): "eurus-2-7b-prime",
        ("table-1-simpo", "Llama-3-8B"): "llama-3-base-8b-sft-simpo",
    }
    for (claim, label), pair in same.items():
        assert abs(float(claims[claim][label]) - at_1e_5[pair]) <= 0.05
    assert abs(float(claims["table-1-simpo"]["Llama-3-8B"]) - 76.42) > 10


def test_overlaps_of_table_4_agree_with_its_sparsities() -> None:
    """o1 (1 - s1) = o2 (1 - s2) is the same intersection, and chance the other's density."""
    one = {claim.id: claim.expected for claim in read_paper("mukherjee-2025", FOLDER).claims}
    data, algorithm = one["table-4-data"], one["table-4-algorithm"]
    for row, s1, s2 in ((data, 63.3, 85.4), (algorithm, 87.1, 77.0)):
        o1, o2 = float(row["o1"]), float(row["o2"])
        assert o1 * (100 - s1) == pytest.approx(o2 * (100 - s2), rel=0.005)
        assert float(row["random o1"]) == pytest.approx(100 - s2, abs=0.11)
        assert float(row["random o2"]) == pytest.approx(100 - s1, abs=0.11)


def test_the_withdrawn_table_copies_the_first_paper() -> None:
    """Each figure is one of Table 6, rounded or cut off, under the row that we say."""
    first = {pair.id: pair.sparsity for pair in read_paper("mukherjee-2025", FOLDER).public}
    copied = [claim for claim in read_paper("balashov-2025", FOLDER).claims if claim.same_as]
    assert len(copied) == 7
    for claim in copied:
        assert claim.same_as is not None
        printed = first[claim.same_as["pair"]][claim.same_as["criterion"]]
        figure = float(printed)
        assert claim.expected["RL"] in (round(figure, 1), floor(figure * 10) / 10)
        assert printed in (claim.note or "")


def test_every_claim_is_tried_or_says_why_not(paper: Paper) -> None:
    tried = {trial.claim for trial in paper.trials if trial.bound}
    for claim in paper.claims:
        assert (claim.id in tried) != (claim.untestable is not None), claim.id


def test_every_arm_of_a_trial_exists(paper: Paper) -> None:
    for scale in paper.seeds:
        runs = paper.scale(scale)
        assert paper.trials_at(scale)
        assert set(paper.arms_at(scale)) <= runs.arms.keys()


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_every_arm_of_a_scale_is_tried(name: str) -> None:
    papers = [read_paper(id, FOLDER) for id in paper_ids(FOLDER)]
    tried = {arm for paper in papers for arm in paper.arms_at(name)}
    assert tried == Scale.read(FOLDER / "scales" / name).arms.keys()


def test_masks_are_shown_beside_controls(paper: Paper) -> None:
    """Accuracy or identity in a mask never stands without a random one, or what nothing scores."""
    for claim in paper.claims:
        trials = [trial for trial in paper.trials if trial.claim == claim.id]
        if any(trial.arm == "grpo-own" and trial.measure == "equal" for trial in trials):
            assert any(trial.settings.get("to") == "base" for trial in trials), claim.id
        if any(trial.measure == "overlap" for trial in trials):
            nulls = {trial.settings.get("null") for trial in trials}
            figures = {trial.settings.get("figure") for trial in trials}
            assert "magnitude-matched" in nulls or "explained" in figures, claim.id


def test_every_measure_is_used() -> None:
    papers = [read_paper(id, FOLDER) for id in paper_ids(FOLDER)]
    assert {trial.measure for paper in papers for trial in paper.trials} == set(MEASURES)


def test_each_paper_tells_its_claims(paper: Paper) -> None:
    readme = (paper.folder / "README.md").read_text("utf-8")
    assert paper.arxiv in readme or paper.arxiv == "several"
    assert f"trimtab paper run {paper.id}" in readme


def write(folder: Path, config: str, expected: dict[str, Any]) -> None:
    """A folder of papers with one paper in it."""
    (folder / "one").mkdir(parents=True)
    (folder / "one" / "config.toml").write_text(config, "utf-8")
    (folder / "one" / "expected.json").write_text(json.dumps(expected), "utf-8")


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    claim = {"id": "a", "place": "Table 1", "claim": "It is so.", "colour": "red"}
    about = {"title": "One", "arxiv": "1", "status": "", "claims": [claim], "public": []}
    config = """
    [scale.tiny]
    seeds = [0]
    [[trial]]
    claim = "b"
    measure = "sparsity"
    settings = { criterium = "bits" }
    arm = "grpo"
    [[trial]]
    claim = "a"
    measure = "beauty"
    arm = "grpo"
    above = 1
    below = 2
    """
    write(tmp_path, config, about)
    with pytest.raises(SettingsError) as caught:
        read_paper("one", tmp_path)
    message = str(caught.value)
    for part in ("colour", "criterium", "beauty", "above and below", "the claim b"):
        assert part in message


def test_an_unknown_paper_is_told_with_those_that_there_are() -> None:
    with pytest.raises(SettingsError, match="no paper x, only balashov-2025, critics"):
        read_paper("x", FOLDER)


def test_a_paper_without_such_a_scale() -> None:
    with pytest.raises(SettingsError, match="critics has no scale huge, only small"):
        read_paper("critics", FOLDER).scale("huge")
