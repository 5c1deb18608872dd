"""`trimtab mask make` and `trimtab mask score` as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Run
from tests.measure.checkpoints import llama_tensors, moved, save
from trimtab.cli.mask_make import make
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.masks.prediction import score_prediction
from trimtab.masks.selection.scores import ScoreFile

BY_WEIGHTS = (
    "random",
    "low-magnitude",
    "high-magnitude",
    "principal",
    "off-principal",
    "safe",
    "absorption",
)


@pytest.fixture
def base(pair: tuple[Path, Path]) -> Path:
    return pair[0]


@pytest.fixture
def saved(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    extract_mask(*pair).save(path)
    return path


@pytest.mark.parametrize("kind", BY_WEIGHTS)
def test_every_kind_selects_as_many(run: Run, base: Path, saved: Path, kind: str) -> None:
    path, scores = saved.with_name("p.safetensors"), saved.with_name("s.safetensors")
    like = "--base", base, "--like", saved
    code, out, err = run("mask", "make", kind, *like, "-o", path, "--scores", scores)
    assert (code, out) == (0, "")
    assert err.startswith(f"wrote {scores}\nwrote {path}: ")
    mask, made = Mask.load(saved), Mask.load(path)
    assert [made.num_selected(name) for name in mask] == [mask.num_selected(n) for n in mask]
    assert made.base == mask.base
    (step,) = made.provenance["steps"]
    assert (step["step"], step["match"], step["seed"]) == (kind, "tensor", 0)
    assert step["base"] == {"id": str(base), "revision": None}
    assert made.provenance["command"].startswith(f"trimtab mask make {kind} --base")
    with ScoreFile(scores) as file:
        assert file.shapes == {name: mask.shape(name) for name in mask}
        assert file.provenance["step"] == kind
    assert run("mask", "make", kind, *like, "-o", path, "--force").code == 0
    assert Mask.load(path) == made


def test_kinds_by_total_and_magnitude(run: Run, base: Path, tmp_path: Path) -> None:
    for match in ("total", "magnitude"):
        path = tmp_path / f"{match}.safetensors"
        options = "--base", base, "--density", 0.1, "--match", match
        assert run("mask", "make", "low-magnitude", *options, "-o", path).code == 0
        made = Mask.load(path)
        assert abs(made.density - 0.1) < 0.001
        assert made.provenance["steps"][0]["match"] == match


def test_a_seed_decides_ties(run: Run, base: Path, saved: Path) -> None:
    masks = []
    for seed in (0, 1):
        path = saved.with_name(f"r{seed}.safetensors")
        options = "--base", base, "--like", saved, "--seed", seed
        assert run("mask", "make", "random", *options, "-o", path).code == 0
        masks.append(Mask.load(path))
    assert masks == [Mask.load(saved).random_like(seed) for seed in (0, 1)]


def test_absorption_by_learning_rate(run: Run, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    code, _, _ = run("mask", "make", "absorption", "--base", base, "--lr", 1e-5, "-o", path)
    made = Mask.load(path)
    assert code == 0
    assert made.provenance["steps"][0]["lr"] == 1e-5
    weight = llama_tensors()["model.layers.0.mlp.up_proj.weight"]
    exact = weight.double()
    moves = [(exact + step).to(weight.dtype) != weight for step in (-1e-5, 1e-5)]
    found = made.array("model.layers.0.mlp.up_proj.weight")
    assert np.array_equal(found, (moves[0] | moves[1]).numpy())
    assert 0 < made.density < 1


def test_consensus(run: Run, saved: Path) -> None:
    masks = []
    for seed in range(3):
        masks.append(saved.with_name(f"c{seed}.safetensors"))
        Mask.load(saved).random_like(seed).save(masks[-1])
    path = saved.with_name("c.safetensors")
    assert run("mask", "make", "consensus", *masks, "--at-least", 2, "-o", path).code == 0
    name = "model.layers.0.mlp.up_proj.weight"
    counts = np.sum([Mask.load(mask).array(name) for mask in masks], axis=0)
    assert np.array_equal(Mask.load(path).array(name), counts >= 2)
    sized = saved.with_name("sized.safetensors")
    assert run("mask", "make", "consensus", *masks, "--like", saved, "-o", sized).code == 0
    chosen = Mask.load(sized).array(name)
    assert chosen.sum() == Mask.load(saved).num_selected(name)
    assert counts[chosen].min() >= counts[~chosen].max()
    for made in (path, sized):  # and of what they were made is told
        words = run("mask", "info", made).out
        assert (
            words.count(f"- random: the same number in each tensor as {Mask.load(saved).digest}")
            == 3
        )


def test_complement_is_the_same_command(run: Run, saved: Path) -> None:
    path = saved.with_name("c.safetensors")
    assert run("mask", "make", "complement", saved, "-o", path).code == 0
    assert Mask.load(path) == Mask.load(saved).complement()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["low-magnitude"], "give --density D or --like MASK"),
        (["low-magnitude", "--density", 0.1, "--like", "SAVED"], "give one"),
        (["absorption"], "either --lr, or --density or --like"),
        (["absorption", "--lr", 1e-6, "--density", 0.1], "either --lr, or --density or --like"),
    ],
)
def test_wrong_usage(
    run: Run, base: Path, saved: Path, options: list[object], message: str
) -> None:
    options = [saved if option == "SAVED" else option for option in options]
    code, _, err = run("mask", "make", *options, "--base", base, "-o", saved.with_name("x"))
    assert code == 2
    assert message in err


def test_consensus_needs_one_size(run: Run, saved: Path) -> None:
    code, _, err = run("mask", "make", "consensus", saved, "-o", saved.with_name("x"))
    assert code == 2
    assert "either --at-least, or --density or --like" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--density", 1.5], "density 1.5: expected a number from 0 to 1"),
        (["--density", "nan"], "density nan: expected a number from 0 to 1"),
    ],
)
def test_one_sentence_for_a_bad_size(
    run: Run, base: Path, tmp_path: Path, options: list[object], message: str
) -> None:
    args = "mask", "make", "low-magnitude", "--base", base, *options
    code, _, err = run(*args, "-o", tmp_path / "x")
    assert (code, err) == (1, f"trimtab: {message}\n")


def test_one_sentence_for_nan_weights(run: Run, tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["model.norm.weight"][0] = float("nan")
    bad = save(tmp_path / "bad", tensors)
    args = "mask", "make", "low-magnitude", "--base", bad, "--density", 0.1
    code, _, err = run(*args, "-o", tmp_path / "x")
    assert code == 1
    assert err.startswith(f"trimtab: {bad}: weights that are NaN have no place in an order")


def test_nothing_is_overwritten_unasked(run: Run, base: Path, saved: Path) -> None:
    before = saved.read_bytes()
    args = "mask", "make", "low-magnitude", "--base", base, "--density", 0.1
    for output, scores in ((saved, saved.with_name("s")), (saved.with_name("p"), saved)):
        code, _, err = run(*args, "-o", output, "--scores", scores)
        assert code == 1
        assert f"{saved} exists already" in err
    assert saved.read_bytes() == before


def test_every_kind_has_a_command(run: Run) -> None:
    out = run("mask", "make", "--help").out
    for kind in make.commands:
        assert f"  {kind} " in out
        code, text, _ = run("mask", "make", kind, "--help")
        assert code == 0
        assert "Example: trimtab mask" in text


def test_random_matched(run: Run, base: Path, saved: Path) -> None:
    path = saved.with_name("r.safetensors")
    args = "mask", "random", saved, "-o", path
    code, _, err = run(*args, "--match", "magnitude")
    assert code == 2
    assert "--match magnitude and --base BASE go together" in err
    assert run(*args, "--match", "magnitude", "--base", base, "--seed", 2).code == 0
    total = score_prediction(path, saved, base=base).total
    assert total.lifts["magnitude-matched"] == pytest.approx(1, abs=0.3)
    assert total.shared.num_first == total.shared.num_second


def test_score(run: Run, base: Path, saved: Path) -> None:
    pred, scores = saved.with_name("p.safetensors"), saved.with_name("s.safetensors")
    like = "--base", base, "--like", saved
    run("mask", "make", "low-magnitude", *like, "-o", pred, "--scores", scores)
    args = "mask", "score", pred, saved, "--scores", scores, "--base", base
    code, out, err = run(*args)
    assert (code, err) == (0, "")
    assert "of TRUE is predicted" in out
    assert "of the ranking by" in out
    assert "\nq_proj " in out
    code, out, err = run(*args, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    expected = score_prediction(pred, saved, scores=scores, base=base)
    assert found["total"] == expected.total.to_dict()
    assert found["provenance"]["command"].startswith("trimtab mask score ")
    saved_json, page = saved.with_name("x.json"), saved.with_name("x.html")
    assert run(*args, "-o", saved_json, "--html", page).code == 0
    assert "Which weights will move?" in page.read_text(encoding="utf-8")
    again = saved.with_name("y.html")
    assert run("report", saved_json, "-o", again).code == 0
    assert run("mask", "score", pred, saved).out.count("No base was given") == 1


def test_score_of_another_model(run: Run, saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    tensors = llama_tensors(vocab=44)
    sides = save(tmp_path / "b", tensors), save(tmp_path / "t", moved(tensors))
    extract_mask(*sides).save(other)
    code, _, err = run("mask", "score", other, saved)
    assert code == 1
    assert "embed_tokens.weight is (44, 32), and (40, 32) in mask 2" in err
