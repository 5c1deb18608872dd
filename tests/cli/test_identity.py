"""`trimtab identity` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.conftest import Run
from tests.measure.checkpoints import llama_tensors, moved, save
from trimtab.masks.extract import extract_mask
from trimtab.masks.identity import identity


class Files(NamedTuple):
    """Paths of three checkpoints and a mask."""

    base: Path
    full: Path
    sub: Path
    mask: Path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """SUB is FULL in one layer, and BASE elsewhere."""
    base = llama_tensors()
    full = moved(base)
    sub = {name: full[name] if ".layers.0." in name else tensor for name, tensor in base.items()}
    mask = tmp_path / "m.safetensors"
    files = Files(
        save(tmp_path / "base", base),
        save(tmp_path / "full", full),
        save(tmp_path / "sub", sub),
        mask,
    )
    extract_mask(files.base, files.full).save(mask)
    return files


def arguments(files: Files) -> tuple[object, ...]:
    return ("identity", files.base, files.full, files.sub, "--mask", files.mask)


def test_a_table_is_printed_and_nothing_else(run: Run, files: Files) -> None:
    code, out, err = run(*arguments(files))
    assert (code, err) == (0, "")
    inside = identity(*files).total.inside
    assert f"of {inside.num_elements:,} weights inside the mask are bit-identical" in out
    assert f"mask  {files.mask}: {inside.num_elements:,} of" in out


def test_json_on_stdout_and_in_a_file(run: Run, files: Files, tmp_path: Path) -> None:
    code, out, err = run(*arguments(files), "--json")
    assert (code, err) == (0, "")
    target = tmp_path / "out" / "identity.json"
    assert run(*arguments(files), "-o", target) == (0, "", f"wrote {target}\n")
    saved = json.loads(target.read_text())
    assert saved["total"] == json.loads(out)["total"] == identity(*files).to_dict()["total"]
    typed = f"trimtab identity {files.base} {files.full} {files.sub} --mask {files.mask}"
    assert saved["provenance"]["command"] == f"{typed} -o {target}"
    assert saved["provenance"]["mask"]["id"] == str(files.mask)


def test_html_and_report_draw_the_same(run: Run, files: Files, tmp_path: Path) -> None:
    first, saved, again = tmp_path / "a.html", tmp_path / "i.json", tmp_path / "b.html"
    code, out, _ = run(*arguments(files), "-o", saved, "--html", first)
    assert (code, out) == (0, "")
    assert run("report", saved, "-o", again) == (0, "", f"wrote {again}\n")
    assert again.read_text() == first.read_text()
    assert run("report", saved).out == run(*arguments(files)).out


def test_outputs_are_not_overwritten(run: Run, files: Files, tmp_path: Path) -> None:
    target = tmp_path / "i.json"
    target.write_text("precious")
    code, _, err = run(*arguments(files), "-o", target)
    assert (code, err) == (1, f"trimtab: {target} exists already: add --force to replace it\n")
    assert target.read_text() == "precious"
    assert run(*arguments(files), "-o", target, "--force").code == 0
    assert json.loads(target.read_text())["format"] == "trimtab.identity"


def test_a_mask_of_another_base_is_one_sentence(run: Run, files: Files, tmp_path: Path) -> None:
    other = save(tmp_path / "other", llama_tensors(seed=3))
    target = tmp_path / "i.json"
    code, out, err = run(*arguments(files._replace(base=other)), "-o", target)
    assert (code, out) == (1, "")
    assert err.startswith("trimtab: the mask does not fit the model, in 12 of its 12 tensors: ")
    assert err.count("\n") == 1
    assert not target.exists()


def test_a_file_that_is_no_mask(run: Run, files: Files) -> None:
    code, out, err = run(*arguments(files._replace(mask=files.base / "model.safetensors")))
    assert (code, out) == (1, "")
    assert "not a mask" in err
    assert err.count("\n") == 1


def test_the_mask_is_required(run: Run, files: Files) -> None:
    code, out, err = run("identity", files.base, files.full, files.sub)
    assert (code, out) == (2, "")
    assert "--mask" in err


def test_a_saved_result_that_is_damaged(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "i.json"
    for text, words in (
        ('{"format": "trimtab.identity", "format_version": 99}', "format version 99"),
        ('{"format": "trimtab.identity", "format_version": 1}', "damaged identity result"),
    ):
        path.write_text(text)
        code, out, err = run("report", path)
        assert (code, out) == (1, "")
        assert words in err
        assert str(path) in err
