"""Every key of what is written here has its place in the documentation.

Comparison, trajectory, identity, structure and mask are in `tests/test_docs.py`; evaluation,
robustness and sweep beside the tests of theirs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import keys_of
from tests.docs.test_documented import quoted, section
from tests.training.runs.run_files import content, train, write
from trimtab.cli import main
from trimtab.papers.library import papers_folder
from trimtab.training.masked_checkpoint import RECORD_FILE
from trimtab.training.runs.execute import RESOLVED, RESULT

pytestmark = pytest.mark.train

NAMED_BY_DATA = {"by_layer", "by_kind", "cells", "failed", "verdicts", "expected", "values"}
NAMED_BY_DATA |= {"other_values", "lifts", "nulls", "versions", "master", "expected_by_null"}
"""Objects whose own keys are layers, kinds, runs, seeds, nulls, packages or dtypes."""

ELSEWHERE = {"base", "mask", "masks", "overlap", "settings", "devices"}
"""What is documented with another format, or is settings under the names of others."""


def run(*words: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words)])
    assert stop.value.code == 0, words


def undocumented(data: Any, title: str, page: str = "docs/formats.md") -> set[str]:
    keys = keys_of(data, named_by_data=NAMED_BY_DATA, elsewhere=ELSEWHERE)
    return {*keys} - quoted(section(page, title))


@pytest.fixture
def masks(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two masks, in the folder where the tests of this module write."""
    monkeypatch.chdir(tmp_path)
    run("mask", "extract", shelf / "base", shelf / "other/model", "-o", "other.safetensors")
    return shelf / "mask.safetensors", Path("other.safetensors")


def read(path: Path | str) -> Any:
    return json.loads(Path(path).read_text("utf-8"))


def test_an_overlap(shelf: Path, masks: tuple[Path, Path]) -> None:
    run("mask", "complement", masks[0], "-o", "third.safetensors")
    for more in ([], ["third.safetensors"]):
        run("mask", "overlap", *masks, *more, "--base", shelf / "base", "-o", "o.json", "--force")
        assert not undocumented(read("o.json"), "The result of an overlap")


def test_a_prediction(shelf: Path, masks: tuple[Path, Path]) -> None:
    like = ("--base", shelf / "base", "--like", masks[0])
    run("mask", "make", "low-magnitude", *like, "-o", "p.safetensors", "--scores", "s.safetensors")
    scores = ("--scores", "s.safetensors", "--base", shelf / "base", "-o", "p.json")
    run("mask", "score", "p.safetensors", masks[0], *scores)
    data = read("p.json")
    assert data["ranking"] is not None
    for opaque in (data, data["ranking"]):  # by name of a tensor; as the file of the scores says
        opaque["num_low"] = opaque["provenance"] = None
    assert not undocumented(data, "The result of a prediction")


def test_a_split(shelf: Path, masks: tuple[Path, Path]) -> None:
    run("mask", "share", *masks, "--base", shelf / "base", "-o", "parts")
    assert not undocumented(read("parts/split.json"), "The result of a split")


def test_a_paper() -> None:
    for path in papers_folder().glob("*/results/*.json"):
        assert not undocumented(read(path), "The result of a paper"), path


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_a_pruning(method: str, shelf: Path, masks: tuple[Path, Path]) -> None:
    run("prune", shelf / "base", "-o", "pruned", "--sparsity", "0.3", "--method", method)
    data = read("pruned/pruning.json")
    assert data.pop("provenance").keys() == {"trimtab_version", "command", "date", "base"}
    assert (data.pop("norms") is None) == (method == "magnitude")
    assert not undocumented(data, "The record of a pruning")


def test_a_run(tmp_path: Path, shelf: Path) -> None:
    train(write(tmp_path, content("sft", shelf / "base", mask="random:0.1", output="out")))
    for name in (RESOLVED, RESULT):
        keys = read(tmp_path / "out" / name).keys()
        assert not keys - quoted(section("docs/run-files.md", "Output"))
    record = read(tmp_path / "out" / "model" / RECORD_FILE)
    record["mask"]["provenance"] = None  # that of the mask's file
    for part in (record, record["mask"], record["settings"], record["optimizer"]):
        assert not undocumented(part, "The record of trained weights")
