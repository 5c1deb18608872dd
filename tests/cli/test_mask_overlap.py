"""`trimtab mask overlap` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.cli.conftest import Run
from tests.measure.checkpoints import llama_tensors, moved, save
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.masks.overlap import overlap


class Files(NamedTuple):
    """A base, and masks of what two runs changed in it."""

    base: Path
    first: Path
    second: Path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    base = llama_tensors()
    folder = save(tmp_path / "base", base)
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, path in zip((1, 2), paths, strict=True):
        tuned = save(tmp_path / f"tuned-{seed}", moved(base, seed=seed))
        extract_mask(folder, tuned).save(path)
    return Files(folder, *paths)


def test_a_table_is_printed_and_nothing_else(run: Run, files: Files) -> None:
    code, out, err = run("mask", "overlap", files.first, files.second, "--base", files.base)
    assert (code, err) == (0, "")
    total = overlap(files.first, files.second).total()
    assert f"{total.intersection:,} shared weights" in out
    assert f"A     {files.first}: " in out
    assert "\nmagnitude-matched " in out


def test_json_is_what_the_issue_names(run: Run, files: Files, tmp_path: Path) -> None:
    target = tmp_path / "overlap.json"
    command = ("mask", "overlap", files.first, files.second, "--base", files.base)
    code, out, err = run(*command, "--json")
    assert (code, err) == (0, "")
    assert run(*command, "-o", target) == (0, "", f"wrote {target}\n")
    saved, printed = json.loads(target.read_text()), json.loads(out)
    assert saved["format"] == "trimtab.overlap"
    expected = overlap(files.first, files.second, base=files.base).to_dict()
    for key in ("total", "by_layer", "by_kind", "by_layer_kind", "tensors", "coverage"):
        assert saved[key] == printed[key] == expected[key]
    assert saved["provenance"]["command"].startswith("trimtab mask overlap ")
    assert saved["total"]["chance"].keys() == {"o1", "o2", "jaccard"}


def test_html_and_report_draw_the_same(run: Run, files: Files, tmp_path: Path) -> None:
    first, saved, again = tmp_path / "a.html", tmp_path / "o.json", tmp_path / "b.html"
    third = tmp_path / "3.safetensors"
    Mask.load(files.first).random_like(5).save(third)
    masks = (files.first, files.second, third)
    for more in ((), ("--series",)):
        given = ("mask", "overlap", *masks, *more)
        assert run(*given, "-o", saved, "--html", first, "--force")[:2] == (0, "")
        assert run("report", saved, "-o", again, "--force").code == 0
        assert again.read_text() == first.read_text()
        assert run("report", saved).out == run(*given).out


def test_errors_are_one_sentence(run: Run, files: Files, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    Mask.from_arrays({"w": np.ones(3, np.bool_)}).save(other)
    strange = save(tmp_path / "strange", llama_tensors(seed=3))
    for arguments, words in (
        ((files.first,), "an overlap is of 2 to 26 masks, and 1 were given"),
        ((files.first, tmp_path / "none"), "no such file"),
        ((files.first, files.base / "model.safetensors"), "not a mask"),
        ((files.first, other), "no tensor is in all 2 masks"),
        ((files.first, files.second, "--base", strange), "made against other weights"),
    ):
        code, out, err = run("mask", "overlap", *arguments)
        assert (code, out) == (1, "")
        assert words in err
        assert err.count("\n") == 1


def test_masks_are_required(run: Run) -> None:
    code, out, err = run("mask", "overlap")
    assert (code, out) == (2, "")
    assert "Missing argument 'A B [C …]'" in err


def test_outputs_are_not_overwritten(run: Run, files: Files, tmp_path: Path) -> None:
    target = tmp_path / "o.json"
    target.write_text("precious")
    code, _, err = run("mask", "overlap", files.first, files.second, "-o", target)
    assert (code, err) == (1, f"trimtab: {target} exists already: add --force to replace it\n")
    assert target.read_text() == "precious"
