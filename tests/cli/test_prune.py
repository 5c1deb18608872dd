"""`trimtab prune` and `trimtab mask survivors` as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Run
from tests.measure.checkpoints import llama_tensors, save
from trimtab.masks.mask import Mask
from trimtab.masks.pruning import survivors
from trimtab.masks.wanda import InputNorms

MATRICES = 2 * (32 * 32 + 16 * 32 + 48 * 32 + 32 * 48)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tmp_path / "base", llama_tensors())


def norms(path: Path) -> Path:
    names = {
        f"model.layers.{layer}.{name}.weight": inputs
        for layer in range(2)
        for name, inputs in (
            ("self_attn.q_proj", 32), ("self_attn.k_proj", 32), ("mlp.up_proj", 32),
            ("mlp.down_proj", 48),
        )
    }  # fmt: skip
    InputNorms({name: np.ones(size, np.float32) for name, size in names.items()}).save(path)
    return path


def test_by_magnitude(run: Run, base: Path, tmp_path: Path) -> None:
    out, alive = tmp_path / "out", tmp_path / "alive.safetensors"
    code, text, err = run("prune", base, "-o", out, "--sparsity", 0.5, "--survivors", alive)
    assert (code, text) == (0, "")
    wrote, mask = err.splitlines()
    assert wrote == (
        f"wrote {out}: zeros are {MATRICES // 2:,} of {MATRICES:,} (50.00 %) of 8 matrices, 0 of "
        f"{MATRICES:,} (0 %) before; 4,608 of 10,592 (43.50 %) of the checkpoint"
    )
    assert mask == f"wrote {alive}: 5,984 of 10,592 elements (56.50 %) selected"
    record = json.loads((out / "pruning.json").read_text())
    assert record["provenance"]["command"].startswith(f"trimtab prune {base} -o")
    again = tmp_path / "again.safetensors"
    assert run("mask", "survivors", out, "-o", again).code == 0
    assert Mask.load(again) == Mask.load(alive) == survivors(out)
    assert Mask.load(again).provenance["command"].startswith("trimtab mask survivors")


def test_a_mask_and_what_survives(run: Run, base: Path, tmp_path: Path) -> None:
    out, alive, both = (tmp_path / name for name in ("out", "alive.safetensors", "b.safetensors"))
    run("prune", base, "-o", out, "--sparsity", 0.5, "--survivors", alive)
    first = Mask.from_arrays(
        {name: np.random.default_rng(0).random(alive_.shape) < 0.3
         for name in Mask.load(alive) for alive_ in [Mask.load(alive).array(name)]}
    )  # fmt: skip
    first.save(tmp_path / "m.safetensors")
    assert run("mask", "and", tmp_path / "m.safetensors", alive, "-o", both).code == 0
    for name in first:
        expected = first.array(name) & survivors(out).array(name)
        assert np.array_equal(Mask.load(both).array(name), expected)


def test_wanda_from_a_file(run: Run, base: Path, tmp_path: Path) -> None:
    code, _, err = run(
        *("prune", base, "-o", tmp_path / "out", "--sparsity", 0.25, "--method", "wanda"),
        *("--statistics", norms(tmp_path / "n.safetensors"), "--kinds", "up_proj, down_proj"),
    )
    assert code == 0
    assert "1,536 of 6,144 (25.00 %) of 4 matrices" in err


def test_files_that_exist(run: Run, base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    code, _, err = run("prune", base, "-o", tmp_path / "out", "--sparsity", 0.5, "--force")
    assert (code, err) == (
        1,
        f"trimtab: {tmp_path / 'out'} exists already: choose another folder, or delete it first\n",
    )
    alive = norms(tmp_path / "n.safetensors")
    code, _, err = run("prune", base, "-o", tmp_path / "o", "--sparsity", 0.5, "--survivors", alive)
    assert (code, err) == (1, f"trimtab: {alive} exists already: add --force to replace it\n")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sparsity", 1.5), "1.5 is not in the range 0<=x<=1"),
        ((), "Missing option '--sparsity'"),
        (("--sparsity", 0.5, "--text", "x"), "--text is for --method wanda"),
        (("--sparsity", 0.5, "--save-statistics", "x"), "--save-statistics is for --method wanda"),
        (
            ("--sparsity", 0.5, "--method", "wanda", "--text", "x", "--prompts", "y"),
            "--text and --prompts: give one of them",
        ),
        (
            ("--sparsity", 0.5, "--method", "wanda", "--statistics", "x", "--save-statistics", "y"),
            "--save-statistics is for measured norms",
        ),
    ],
)
def test_wrong_usage(
    run: Run, base: Path, tmp_path: Path, options: tuple[object, ...], words: str
) -> None:
    code, _, err = run("prune", base, "-o", tmp_path / "out", *options)
    assert code == 2
    assert words in " ".join(err.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--kinds", "v_proj"), "has no matrices of kind v_proj: it has down_proj, embed, k_proj"),
        (("--method", "wanda", "--statistics", "none"), "none: no such file"),
    ],
)
def test_one_sentence(
    run: Run, base: Path, tmp_path: Path, options: tuple[object, ...], words: str
) -> None:
    code, _, err = run("prune", base, "-o", tmp_path / "out", "--sparsity", 0.5, *options)
    assert code == 1
    assert words in err
    assert err.startswith("trimtab: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.train
def test_wanda_measures(run: Run, tmp_path: Path) -> None:
    from string import printable

    from tests.training import tiny
    from trimtab.training import runtime

    runtime.start()
    tiny.make_base(tmp_path / "base", printable)
    kept, text = tmp_path / "n.safetensors", tmp_path / "text.txt"
    text.write_text("A sentence to read.\n\nAnother one.\n")
    common = ("prune", tmp_path / "base", "--sparsity", 0.5, "--method", "wanda")
    measured = ("--text", text, "--save-statistics", kept)
    code, _, err = run(*common, "-o", tmp_path / "one", *measured)
    assert code == 0
    assert err.startswith(f"wrote {kept}\nwrote {tmp_path / 'one'}: ")
    assert run(*common, "-o", tmp_path / "two", "--statistics", kept).code == 0
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    data = json.loads((tmp_path / "one" / "pruning.json").read_text())["norms"]["read"]
    assert (data["source"], data["num_passages"]) == (str(text), 2)
