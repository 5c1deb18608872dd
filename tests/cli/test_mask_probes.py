"""`trimtab mask make fisher | sign-consistency | snip | warm` as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import Run
from tests.measure.checkpoints import llama_tensors, moved, save
from tests.training import tiny, tiny_trainers
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.masks.selection.scores import ScoreFile

pytestmark = pytest.mark.train

KINDS: dict[str, tuple[object, ...]] = {
    "fisher": ("--num-prompts", 2, "--samples", 2),
    "sign-consistency": ("--loss", "sft", "--batches", 2, "--batch-size", 3),
    "snip": ("--loss", "sft", "--batches", 2, "--batch-size", 3),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trimtab.training import runtime

    runtime.start()
    folder = tmp_path_factory.mktemp("tiny") / "base"
    tiny.make_base(folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    made = [{"prompt": f"{a}+1=", "completion": f"{a + 1}", "answer": str(a)} for a in range(6)]
    path.write_text("\n".join(map(json.dumps, made)))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_by_gradients(run: Run, base: Path, tmp_path: Path, kind: str) -> None:
    path, scores = tmp_path / "new" / "p.safetensors", tmp_path / "s.safetensors"
    asked = "--base", base, "--task", "addition", *KINDS[kind]
    args = "mask", "make", kind, *asked, "--density", 0.1, "--seed", 3, "--scores", scores
    code, out, err = run(*args, "-o", path)
    assert (code, out) == (0, "")
    cost, *wrote = err.splitlines()
    assert cost.startswith("read ")
    assert " completions with " in cost
    assert cost.endswith(" MB above the model")
    assert wrote[0] == f"wrote {scores}"
    assert wrote[1].startswith(f"wrote {path}: ")
    mask = Mask.load(path)
    for name in mask:
        assert mask.num_selected(name) == pytest.approx(0.1 * mask.num_elements(name), abs=0.5)
    (step,) = mask.provenance["steps"]
    assert (step["step"], step["match"], step["seed"], step["dtype"]) == (kind, "tensor", 3, "fp32")
    assert {"seconds", "peak_memory", "data", "num_tokens"} <= step.keys()
    with ScoreFile(scores) as file:
        assert file.provenance["step"] == kind
        for name in mask:
            one = np.concatenate([*file.chunks(name)])
            chosen = mask.array(name).reshape(-1)
            if chosen.any():
                assert one[chosen].min() >= one[~chosen].max()
    like = tmp_path / "like.safetensors"
    assert run("mask", "make", kind, *asked, "--like", path, "--seed", 3, "-o", like).code == 0
    assert Mask.load(like) == mask
    text = run("mask", "info", like).out
    assert f"- {kind}: gradients of {base} on addition" in text


def test_rows_of_a_file(run: Run, base: Path, rows: Path, tmp_path: Path) -> None:
    function = tmp_path / "mine.py"
    function.write_text(
        "def by_length(completions, **_):\n    return [float(len(text)) for text in completions]\n"
    )
    asked = "--base", base, "--prompts", rows, "--density", 0.1
    sizes = "--batches", 2, "--batch-size", 4, "--samples", 2, "--max-tokens", 5
    judge = "--loss", "reward", "--reward", f"{function}:by_length"
    path = tmp_path / "p.safetensors"
    code, _, err = run("mask", "make", "snip", *asked, *judge, *sizes, "-o", path)
    assert code == 0, err
    assert "of 4 prompts with a signal" in err
    (step,) = Mask.load(path).provenance["steps"]
    assert step["data"]["source"] == str(rows)
    assert step["data"]["reward"]["function"] == f"{function}:by_length"
    assert (step["loss"], step["num_samples"], step["num_groups"]) == ("reward", 2, 4)
    fisher = "--samples", 1, "--max-tokens", 2, "--stop", "="
    code, _, err = run("mask", "make", "fisher", *asked, *fisher, "-o", path, "--force")
    assert code == 0, err
    assert "read 6 completions" in err


FILE = ("--prompts", "ROWS")
SFT = ("--loss", "sft")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["fisher", "--density", 0.1], "either --prompts FILE or --task NAME"),
        (["fisher", *FILE, "--task", "addition", "--density", 0.1], "either --prompts FILE or"),
        (["fisher", *FILE], "give --density D or --like MASK"),
        (["fisher", *FILE, "--chat", "--density", 0.1], "--config and --chat are for --task"),
        (["snip", *FILE, "--density", 0.1], "Missing option '--loss'"),
        (["snip", *FILE, *SFT, "--samples", 4, "--density", 0.1], "--samples is for --loss reward"),
        (["snip", *FILE, *SFT, "--pattern", "x", "--density", 0.1], "are for --loss reward and"),
        (
            ["snip", "--task", "addition", "--loss", "reward", "--column", "a", "--density", 0.1],
            "are for --loss reward and --prompts",
        ),
        (["snip", "--task", "addition", *SFT, "--config", "a", "--density", 0.1], "KEY=VALUE"),
    ],
)
def test_wrong_usage(run: Run, base: Path, rows: Path, options: list[object], message: str) -> None:
    options = [rows if option == "ROWS" else option for option in options]
    output = rows.with_name("p.safetensors")
    code, _, err = run("mask", "make", *options, "--base", base, "-o", output)
    assert code == 2
    assert message in err
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "additoin"], 'there is no task "additoin": expected addition or'),
        (["--task", "addition", "--density", 2], "density 2.0: expected a number from 0 to 1"),
        (["--prompts", "/not/there.jsonl"], "data.file: /not/there.jsonl: no such file"),
        (["--task", "addition", "--max-tokens", 9999], "too many tokens"),
    ],
)
def test_one_sentence(
    run: Run, base: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    size = [] if "--density" in options else ["--density", 0.1]
    output = tmp_path / "p.safetensors"
    code, _, err = run("mask", "make", "fisher", "--base", base, *options, *size, "-o", output)
    assert code == 1
    assert err.startswith("trimtab: ")
    assert message in err
    assert err.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_an_interrupt_leaves_nothing(
    run: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trimtab.training.probes.losses.token_log_probs", interrupt)
    asked = "--base", base, "--task", "addition", "--density", 0.1
    outputs = "-o", tmp_path / "p.safetensors", "--scores", tmp_path / "s.safetensors"
    code, _, err = run("mask", "make", "fisher", *asked, *outputs)
    assert (code, err.strip()) == (130, "trimtab: interrupted")
    assert [*tmp_path.iterdir()] == []


@pytest.fixture
def tracked(base: Path, tmp_path: Path) -> Path:
    """Three tracked steps of a real trainer, with a checkpoint after each."""
    from trimtab.training import runtime
    from trimtab.training.tracker.callback import UpdateTracker

    path = tmp_path / "updates.trimtab"
    with runtime.quiet():
        model = tiny_trainers.model(base)
        trainer = tiny_trainers.plain(
            model, base, tmp_path / "out", save_strategy="steps", save_steps=1, learning_rate=1e-3
        )
        UpdateTracker(path).attach(trainer)
        trainer.train()
    return path


def test_warm_from_a_tracker_and_from_checkpoints(
    run: Run, base: Path, tracked: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / "out" / f"checkpoint-{step}" for step in (1, 2, 3)]
    each = [extract_mask(base, folder) for folder in folders]
    by_file, by_folders = tmp_path / "f.safetensors", tmp_path / "c.safetensors"
    warm = "mask", "make", "warm", "--base", base
    for num in (1, 2, 3):
        output = "-o", by_file, "--force"
        code, _, err = run(*warm, tracked, "--steps", num, *output)
        assert code == 0, err
        assert run(*warm, *folders[:num], "-o", by_folders, "--force").code == 0
        mask = Mask.load(by_file)
        assert mask == Mask.load(by_folders)
        for name in mask:
            seen = [one.array(name) for one in each[:num]]
            assert np.array_equal(mask.array(name), np.any(seen, axis=0))
        assert mask.provenance["steps"][0]["after_steps"] == num
    ratio = "--density", 0.2, "--scores", tmp_path / "s.safetensors"
    assert run(*warm, tracked, *ratio, "-o", by_file, "--force").code == 0
    sized = Mask.load(by_file)
    for name in sized:
        times = np.sum([one.array(name) for one in each], axis=0)
        chosen = sized.array(name)
        assert chosen.sum() == pytest.approx(0.2 * chosen.size, abs=0.5)
        if chosen.any():
            assert times[chosen].min() >= times[~chosen].max()
    text = run("mask", "info", by_file).out
    assert f"- warm: what the first 3 steps of {tracked} moved" in text


def test_warm_of_another_base(run: Run, tracked: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other", moved(llama_tensors()))
    code, _, err = run("mask", "make", "warm", tracked, "--base", other, "-o", tmp_path / "x")
    assert code == 1
    assert f"does not track the whole tensors of {other}: " in err
    code, _, err = run(
        "mask", "make", "warm", other, "--base", other, "--steps", 3, "-o", tmp_path / "x"
    )
    assert code == 2
    assert "--steps is for a file of tracked updates" in err
