"""The verbs of `trimtab mask` that make masks from masks, as a person meets them."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Run
from tests.measure.checkpoints import llama_tensors, moved, save
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.masks.transfer import transfer


@pytest.fixture
def saved(pair: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A mask and a random one of its counts."""
    mask = extract_mask(*pair)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    mask.save(first)
    mask.random_like(1).save(second)
    return first, second


@pytest.mark.parametrize(
    ("verb", "function"),
    [
        ("and", operator.and_),
        ("or", operator.or_),
        ("xor", operator.xor),
        ("minus", operator.sub),
    ],
)
def test_two_masks_to_one(
    run: Run,
    saved: tuple[Path, Path],
    tmp_path: Path,
    verb: str,
    function: Callable[[Mask, Mask], Mask],
) -> None:
    path = tmp_path / "new" / "made.safetensors"
    code, out, err = run("mask", verb, *saved, "-o", path)
    made = Mask.load(path)
    assert (code, out) == (0, "")
    assert made == function(*map(Mask.load, saved))
    assert err == (
        f"wrote {path}: {made.num_selected():,} of {made.num_elements():,} elements "
        f"({100 * made.density:.2f} %) selected\n"
    )
    assert made.provenance["command"] == f"trimtab mask {verb} {saved[0]} {saved[1]} -o {path}"
    out = run("mask", "info", path).out
    assert f"  mask 1: {Mask.load(saved[0]).digest}\n  - extract: changed from " in out
    assert f"  mask 2: {Mask.load(saved[1]).digest}\n  - extract: changed from " in out
    assert out.splitlines()[-1].startswith("  - random: the same number in each tensor as ")


def test_bases_that_differ_are_told(run: Run, saved: tuple[Path, Path], tmp_path: Path) -> None:
    other = llama_tensors(seed=5)
    pair = save(tmp_path / "other", other), save(tmp_path / "other tuned", moved(other))
    mask = extract_mask(*pair)
    mask.save(tmp_path / "other.safetensors")
    path = tmp_path / "made.safetensors"
    code, _, err = run("mask", "or", saved[0], tmp_path / "other.safetensors", "-o", path)
    differ = [name for name in mask if mask.base[name] != Mask.load(saved[0]).base[name]]
    assert code == 0
    assert f"made against different bases in {len(differ)} of the tensors: {differ[0]}, " in err
    assert set(Mask.load(path).base) == set(mask) - set(differ)


def test_restrict(run: Run, saved: tuple[Path, Path], tmp_path: Path) -> None:
    mask, path = Mask.load(saved[0]), tmp_path / "made.safetensors"
    arguments = ["--kinds", "q_proj, k_proj", "--layers", "0-1,1"]
    code, _, err = run("mask", "restrict", saved[0], *arguments, "-o", path)
    expected = mask.restrict(kinds=["q_proj", "k_proj"], layers=[0, 1])
    assert code == 0
    assert Mask.load(path) == expected
    assert f"{expected.num_selected():,} of {expected.num_elements():,} elements" in err
    words = f"the tensors of {mask.digest} with kinds q_proj k_proj, layers 0 1 1"
    assert f"- restrict: {words}" in run("mask", "info", path).out
    patterns = ["--tensors", "*.norm.weight", "--tensors", "*up_proj*", "--force"]
    assert run("mask", "restrict", saved[0], *patterns, "-o", path).code == 0
    assert Mask.load(path) == mask.restrict(tensors=["*.norm.weight", "*up_proj*"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "give at least one of --kinds, --layers and --tensors"),
        (["--layers", "3-1"], 2, "'3-1' is no layer"),
        (["--layers", "-1"], 2, "'-1' is no layer"),
        (["--layers", "0-999999999"], 2, "no layer"),
        (["--layers", "1,,2"], 2, "'' is no layer"),
        (["--layers", "77"], 1, "the mask has no layers 77; it has 0 to"),
        (["--kinds", "w1"], 1, "the mask has no kinds w1; it has down_proj, embed"),
    ],
)
def test_restrict_to_nothing(
    run: Run, saved: tuple[Path, Path], arguments: list[str], code: int, words: str
) -> None:
    found = run("mask", "restrict", saved[0], *arguments, "-o", "never")
    assert found.code == code
    assert words in found.err
    assert not Path("never").exists()


def test_transfer(run: Run, saved: tuple[Path, Path], pair: tuple[Path, Path]) -> None:
    mask, path = Mask.load(saved[0]), saved[0].with_name("made.safetensors")
    code, out, err = run("mask", "transfer", saved[0], "--to", pair[1], "-o", path)
    assert (code, out) == (0, "")
    assert err.startswith(f"wrote {path}: ")
    made = Mask.load(path)
    assert made == mask
    assert made.base == Mask.of(transfer(mask, pair[1])).base != mask.base
    last = run("mask", "info", path).out.splitlines()[-1]
    assert last == f"- transfer: {mask.digest} on the tensors of {pair[1]}"


def test_transfer_by_maps(run: Run, tmp_path: Path) -> None:
    other = save(tmp_path / "other", llama_tensors())
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(5)]
    rng = np.random.default_rng(0)
    path = tmp_path / "m.safetensors"
    Mask.from_arrays({name: rng.random((24, 16)) < 0.3 for name in names}).save(path)
    code, _, err = run("mask", "transfer", path, "--to", other, "-o", tmp_path / "t")
    assert code == 1
    assert "it is of 5 layers, and " in err
    assert "--map layers=interpolate --map units=density" in err
    maps = ["--map", "layers=interpolate", "--map", "units=density", "--seed", 3]
    code, _, err = run("mask", "transfer", path, "--to", other, *maps, "-o", tmp_path / "t")
    assert code == 0
    assert "layers interpolated to " in err
    assert "the densities of rows, at random places, in " in err
    assert "(seed 3)" in err
    expected = transfer(
        Mask.load(path), other, maps=["layers=interpolate", "units=density"], seed=3
    )
    assert Mask.load(tmp_path / "t") == Mask.of(expected)
    assert "layers interpolated to " in run("mask", "info", tmp_path / "t").out


def test_share(run: Run, saved: tuple[Path, Path], pair: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = map(Mask.load, saved)
    folder = tmp_path / "parts"
    code, out, err = run("mask", "share", *saved, "-o", folder)
    assert code == 0
    written = ["core", "own-1-first", "own-2-second"]
    assert [line.split(":")[0] for line in err.splitlines()] == [
        *(f"wrote {folder / name}.safetensors" for name in written),
        f"wrote {folder / 'split.json'}",
    ]
    assert Mask.load(folder / "core.safetensors") == first & second
    assert Mask.load(folder / "own-1-first.safetensors") == first - second
    assert Mask.load(folder / "own-2-second.safetensors") == second - first
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines()[2:6]}
    core = (first & second).num_selected()
    assert rows["core"][1] == f"{core:,}"
    assert rows["core"][2] == f"{100 * core / first.num_selected():.2f}"
    assert rows["own of first.safetensors"][3] == f"{(first - second).num_selected():,}"
    chance = sum(
        first.num_selected(name) * second.num_selected(name) / first.num_elements(name)
        for name in first
    )
    assert rows["core"][4] == f"{chance:,.0f}"
    assert rows["core"][5] == f"{core / chance:.3g}"
    assert "matched" not in out
    assert run("report", folder / "split.json").out == out
    assert run("report", folder / "split.json", "-o", tmp_path / "split.html").code == 0
    assert "What do the masks share?" in (tmp_path / "split.html").read_text()
    matched = run("mask", "share", *saved, "--base", pair[0], "-o", folder, "--force")
    assert "  matched lift\n" in matched.out
    printed = run("mask", "share", *saved, "--base", pair[0], "-o", folder, "--force", "--json").out
    assert json.loads(printed) == json.loads((folder / "split.json").read_text())
    assert json.loads(printed)["masks"][0]["num_checked"] == len(first)
    again = run("mask", "share", *saved, "-o", folder)
    assert again.code == 1
    assert "split.json exists already: add --force" in again.err
    assert run("mask", "share", *saved, "-o", folder, "--force").code == 0
    assert run("mask", "share", saved[0], "-o", folder).code == 2
    out = run("mask", "info", folder / "own-2-second.safetensors").out
    assert "- own: what mask 2 selects and no other of these does" in out


@pytest.mark.parametrize("verb", ["and", "or", "xor", "minus"])
def test_nothing_is_overwritten_unasked(run: Run, saved: tuple[Path, Path], verb: str) -> None:
    before, other = saved[0].read_bytes(), saved[0].with_name("other.safetensors")
    other.write_bytes(b"old")
    code, _, err = run("mask", verb, *saved, "-o", other)
    assert (code, other.read_bytes()) == (1, b"old")
    assert err == f"trimtab: {other} exists already: add --force to replace it\n"
    assert run("mask", verb, *saved, "-o", other, "--force").code == 0
    assert Mask.load(other).provenance["steps"][0]["step"] == verb
    code, _, err = run("mask", verb, *saved, "-o", saved[0], "--force")
    assert (code, saved[0].read_bytes()) == (1, before)
    assert "the command reads that file, so it is never replaced" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["and", "GOOD", "BAD"],
        ["minus", "BAD", "GOOD"],
        ["restrict", "BAD", "--kinds", "norm"],
        ["transfer", "BAD", "--to", "nowhere"],
        ["share", "GOOD", "BAD"],
    ],
)
def test_bad_masks_are_one_sentence(
    run: Run, saved: tuple[Path, Path], tmp_path: Path, arguments: list[str]
) -> None:
    raw = bytearray(saved[0].read_bytes())
    raw[-3] ^= 1
    bad = tmp_path / "bad"
    bad.write_bytes(raw)
    paths = {"GOOD": saved[0], "BAD": bad}
    found = run("mask", *(paths.get(word, word) for word in arguments), "-o", tmp_path / "never")
    assert (found.code, found.out) == (1, "")
    assert found.err.startswith(f"trimtab: {bad}: damaged: ")
    assert found.err.count("\n") == 1
    assert not (tmp_path / "never").exists()
