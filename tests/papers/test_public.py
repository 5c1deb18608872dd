"""Claims about published checkpoints: two local ones stand in for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.measure.checkpoints import llama_tensors, moved, save
from trimtab import compare
from trimtab.cli import main
from trimtab.errors import SettingsError
from trimtab.papers.library import PublicPair
from trimtab.papers.public import public_claims, read_checkpoints
from trimtab.papers.results import PaperResult


def told(claims: list[dict[str, object]]) -> dict[str, object]:
    """The only claim of a result, with its verdict."""
    scale = {"name": "tiny", "cells": {}, "failed": {}}
    (claim,) = PaperResult({}, scale, tuple(claims)).to_dict()["claims"]
    return claim


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and a tuned checkpoint."""
    tensors = llama_tensors()
    return save(tmp_path / "base", tensors), save(tmp_path / "tuned", moved(tensors))


def public(percent: str, criterion: str = "atol=1e-05") -> PublicPair:
    """A published figure of the pair."""
    return PublicPair("pair", "Table 1", "org/base", "org/tuned", {criterion: percent})


def test_a_pair_that_is_not_given_cannot_be_tested() -> None:
    claim = told(public_claims([public("81.4")], {}, Path("nowhere"), print))
    assert claim["verdict"] == "not testable here"
    assert "--checkpoints" in str(claim["why"])


def test_the_figure_that_was_printed_is_found_again(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """A map with paths relative to it, as `--checkpoints` reads it."""
    (tmp_path / "map.toml").write_text('[pair]\nbase = "base"\ntuned = "tuned"\n', "utf-8")
    places = read_checkpoints(tmp_path / "map.toml", ["pair"])
    total = compare(*pair).total
    share = 1 - total.num_changed["atol=1e-05"] / total.num_elements
    claim = told(public_claims([public(f"{100 * share:.2f}")], places, tmp_path / "public", print))
    assert claim["verdict"] == "holds"
    assert claim["measured"] == pytest.approx(share)
    wrong = told(
        public_claims([public(f"{100 * share + 0.02:.2f}")], places, tmp_path / "public", print)
    )
    assert wrong["verdict"] == "does not hold"
    coarse = told(
        public_claims([public(f"{100 * share:.0f}.0")], places, tmp_path / "public", print)
    )
    assert coarse["verdict"] == "does not hold"
    assert "base" in claim["trials"][0]["about"]  # type: ignore[index]


def test_a_checkpoint_that_cannot_be_read_is_said_to_be_so(tmp_path: Path) -> None:
    places = {"pair": {"base": str(tmp_path / "no"), "tuned": str(tmp_path / "no")}}
    claim = told(public_claims([public("81.4")], places, tmp_path / "public", print))
    assert claim["verdict"] == "not testable here"
    assert str(tmp_path) in str(claim["why"])


def test_a_comparison_is_kept_for_the_same_two_only(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, tuned = map(str, pair)
    first = told(
        public_claims([public("81.4")], {"pair": {"base": base, "tuned": tuned}}, tmp_path, print)
    )
    (tmp_path / "tuned" / "model.safetensors").unlink()
    again = told(
        public_claims([public("81.4")], {"pair": {"base": base, "tuned": tuned}}, tmp_path, print)
    )
    assert again == first
    other = told(
        public_claims([public("81.4")], {"pair": {"base": base, "tuned": base}}, tmp_path, print)
    )
    assert other["measured"] == 1.0


def test_hub_ids_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text('[pair]\nbase = "a/b@main"\ntuned = "a/c"\n', "utf-8")
    places = read_checkpoints(tmp_path / "map.toml", ["pair"])
    assert places == {"pair": {"base": "a/b@main", "tuned": "a/c"}}


def test_what_a_map_gets_wrong_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text('[odd]\nbase = "a"\n', "utf-8")
    with pytest.raises(SettingsError, match=r"only pair; \[odd\] does not have exactly"):
        read_checkpoints(tmp_path / "map.toml", ["pair"])


def test_from_the_command_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Nothing is trained, and the pair is measured under each criterion of its row."""
    (tmp_path / "map.toml").write_text('[tulu-3-8b-dpo]\nbase = "base"\ntuned = "tuned"\n', "utf-8")
    output = tmp_path / "result.json"
    with pytest.raises(SystemExit) as stop:
        main(
            [
                *(
                    "paper",
                    "run",
                    "mukherjee-2025",
                    "--no-training",
                    "--out",
                    str(tmp_path / "out"),
                ),
                *("--checkpoints", str(tmp_path / "map.toml"), "-o", str(output)),
            ]
        )
    assert stop.value.code == 0
    data = json.loads(output.read_text("utf-8"))
    (claim,) = (claim for claim in data["claims"] if claim["id"] == "tulu-3-8b-dpo")
    total = compare(*pair).total
    assert [trial["value"] for trial in claim["trials"]] == [
        pytest.approx(1 - total.num_changed[criterion] / total.num_elements)
        for criterion in ("atol=1e-08", "atol=1e-07", "atol=1e-06", "atol=1e-05")
    ]
    assert claim["verdict"] == "does not hold"
    assert data["verdicts"]["not yet run"] > 0
