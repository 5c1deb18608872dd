"""`trimtab mask` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Run
from tests.measure.checkpoints import llama_tensors, moved, save
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask, summarise


@pytest.fixture
def saved(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    extract_mask(*pair).save(path)
    return path


def test_extract_writes_the_mask(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.safetensors"
    code, out, err = run("mask", "extract", *pair, "-o", path, "--changed", "value")
    mask = Mask.load(path)
    assert (code, out) == (0, "")
    assert mask == extract_mask(*pair, changed="value")
    share = f"{100 * mask.density:.2f} %"
    assert err == (
        f"wrote {path}: {mask.num_selected():,} of {mask.num_elements():,} elements ({share}) "
        "selected\n"
    )
    typed = f"trimtab mask extract {pair[0]} {pair[1]} -o {path} --changed value"
    assert mask.provenance["command"] == typed
    assert mask.provenance["steps"][0]["criterion"] == "value"


def test_extract_tells_of_what_it_could_not_compare(run: Run, tmp_path: Path) -> None:
    base = llama_tensors()
    tuned = moved(base)
    base["only.base"] = torch.zeros(3)
    tuned |= {"only.tuned": torch.zeros(3), "more": torch.zeros(2)}
    sides = save(tmp_path / "base", base), save(tmp_path / "tuned", tuned)
    path = tmp_path / "m.safetensors"
    _, _, err = run("mask", "extract", *sides, "-o", path)
    words = "not compared in full: 1 tensor only in base, 2 tensors only in tuned"
    assert words in err.splitlines()[0]
    assert words in run("mask", "info", path).out


def test_extract_casts_only_when_asked(run: Run, tmp_path: Path) -> None:
    base = llama_tensors()
    before, after = save(tmp_path / "b", base), tmp_path / "a"
    save(after, {name: tensor.float() for name, tensor in moved(base).items()})
    out = tmp_path / "m.safetensors"
    code, _, err = run("mask", "extract", before, after, "-o", out)
    assert code == 1
    assert "cast" in err
    assert run("mask", "extract", before, after, "--cast", "fp32", "-o", out).code == 0
    assert Mask.load(out) == extract_mask(before, after, cast="fp32")
    assert "F32" in Mask.load(out).provenance["steps"][0]["conversion"]


def test_controls_have_the_same_counts(run: Run, saved: Path, tmp_path: Path) -> None:
    mask = Mask.load(saved)
    control, rest = tmp_path / "r.safetensors", tmp_path / "c.safetensors"
    assert run("mask", "random", saved, "--seed", 3, "-o", control).code == 0
    assert Mask.load(control) == mask.random_like(3)
    assert run("mask", "complement", control, "-o", rest).code == 0
    assert Mask.load(rest) == mask.random_like(3).complement()
    steps = Mask.load(rest).provenance["steps"]
    assert [step["step"] for step in steps] == ["extract", "random", "complement"]
    assert Mask.load(rest).provenance["command"].startswith("trimtab mask complement")


def test_info(run: Run, saved: Path) -> None:
    mask = Mask.load(saved)
    code, out, err = run("mask", "info", saved)
    assert (code, err) == (0, "")
    assert f"{mask.num_selected():,} of {mask.num_elements():,} elements" in out
    assert mask.digest in out
    assert "\nq_proj " in out
    assert "criterion: bits" in out
    code, out, err = run("mask", "info", saved, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == summarise(mask)


@pytest.mark.parametrize("verb", ["random", "complement"])
def test_nothing_is_overwritten_unasked(run: Run, saved: Path, verb: str) -> None:
    before = saved.read_bytes()
    other = saved.with_name("other.safetensors")
    other.write_bytes(b"old")
    code, _, err = run("mask", verb, saved, "-o", other)
    assert code == 1
    assert err == f"trimtab: {other} exists already: add --force to replace it\n"
    assert other.read_bytes() == b"old"
    assert run("mask", verb, saved, "-o", other, "--force").code == 0
    assert Mask.load(other).provenance["steps"][1]["step"] == verb
    for force in ((), ("--force",)):
        code, _, err = run("mask", verb, saved, "-o", saved, *force)
        assert code == 1
        assert err == (
            f"trimtab: -o {saved}: the command reads that file, so it is never replaced: give "
            "another name\n"
        )
    assert saved.read_bytes() == before


def test_a_target_in_the_way_stops_before_the_work(run: Run, saved: Path) -> None:
    code, _, err = run("mask", "extract", "no-such-base", "no-such-tuned", "-o", saved)
    assert code == 1
    assert "exists already" in err


def test_bad_masks_are_one_sentence(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\xff" * 64)
    for path in (garbage, tmp_path / "none", pair[0], pair[0] / "model.safetensors"):
        for arguments in (("info",), ("random", "-o", tmp_path / "r"), ("complement", "-o", "c")):
            code, out, err = run("mask", arguments[0], path, *arguments[1:])
            assert (code, out) == (1, "")
            assert err.startswith(f"trimtab: {path}: ")
            assert err.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["extract", "a", "b"], "Missing option '-o'"),
        (["extract", "a", "-o", "m"], "Missing argument 'TUNED'"),
        (["extract", "a", "b", "-o", "m", "--changed", "exact"], "unknown criterion 'exact'"),
        (["random", "m", "-o", "r", "--seed", "x"], "'--seed'"),
        (["extrakt"], "No such command 'extrakt'"),
    ],
)
def test_wrong_usage_is_code_2(run: Run, arguments: list[str], words: str) -> None:
    code, out, err = run("mask", *arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_help_lists_the_commands_in_the_order_of_the_work(run: Run) -> None:
    lines = run("mask", "--help").out.partition("Commands:\n")[2].splitlines()
    verbs = [line.split()[0] for line in lines if line.strip()][:3]
    assert verbs == ["extract", "random", "complement"]
