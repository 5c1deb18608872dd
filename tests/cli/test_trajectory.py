"""`trimtab trajectory` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import trimtab
from tests.cli.conftest import Run
from tests.measure.checkpoints import llama_tensors, moved, save


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tmp_path / "base", llama_tensors())


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    """Three checkpoints of a run."""
    tensors, folders = llama_tensors(), []
    for at in (1, 2, 3):
        tensors = moved(tensors, 0.1, seed=at)
        folders.append(save(tmp_path / "run" / f"checkpoint-{50 * at}", tensors))
    return folders


def test_a_table_is_printed_and_nothing_else(run: Run, base: Path, series: list[Path]) -> None:
    code, out, err = run("trajectory", base, *series)
    assert (code, err) == (0, "")
    total = trimtab.trajectory(base, series).final.total
    assert f"of {total.num_elements:,} weights are untouched" in out
    steps = [line.split()[0] for line in out.partition("step ")[2].splitlines()[1:4]]
    assert steps == ["50", "100", "150"]
    assert run("trajectory", base, series[0].parent).out == out


def test_json_on_stdout_and_in_a_file(
    run: Run, base: Path, series: list[Path], tmp_path: Path
) -> None:
    code, out, err = run("trajectory", base, *series, "--json")
    assert (code, err) == (0, "")
    target = tmp_path / "out" / "t.json"
    assert run("trajectory", base, *series, "-o", target) == (0, "", f"wrote {target}\n")
    saved = trimtab.Trajectory.load(target)
    assert json.loads(out)["points"] == saved.to_dict()["points"]
    assert saved.points == trimtab.trajectory(base, series).points
    typed = f"trimtab trajectory {base} {' '.join(map(str, series))} -o {target}"
    assert saved.provenance["command"] == typed


def test_html_and_report_draw_the_same(
    run: Run, base: Path, series: list[Path], tmp_path: Path
) -> None:
    first, saved, again = tmp_path / "a.html", tmp_path / "t.json", tmp_path / "b.html"
    code, out, _ = run("trajectory", base, *series, "-o", saved, "--html", first)
    assert (code, out) == (0, "")
    assert run("report", saved, "-o", again) == (0, "", f"wrote {again}\n")
    assert again.read_text() == first.read_text()
    assert run("report", saved).out == run("trajectory", base, *series).out


def test_outputs_are_not_overwritten(
    run: Run, base: Path, series: list[Path], tmp_path: Path
) -> None:
    target = tmp_path / "t.json"
    target.write_text("precious")
    code, _, err = run("trajectory", base, *series, "-o", target)
    assert (code, err) == (1, f"trimtab: {target} exists already: add --force to replace it\n")
    assert target.read_text() == "precious"
    assert run("trajectory", base, *series, "-o", target, "--force").code == 0
    assert json.loads(target.read_text())["format"] == "trimtab.trajectory"


def test_a_base_alone(run: Run, base: Path, tmp_path: Path) -> None:
    for path in (base, tmp_path / "nowhere"):
        code, out, err = run("trajectory", path)
        assert (code, out) == (2, "")
        assert "expected a BASE and at least one CKPT, or the file of a tracker" in err


def test_a_file_alone_that_no_tracker_wrote(run: Run, base: Path) -> None:
    code, out, err = run("trajectory", base / "model.safetensors")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "model.safetensors" in err


def test_checkpoints_out_of_order_are_one_sentence(
    run: Run, base: Path, series: list[Path]
) -> None:
    """As a shell sorts them: checkpoint-100 before checkpoint-50."""
    code, out, err = run("trajectory", base, *sorted(series))
    assert (code, out) == (1, "")
    assert "checkpoint-50 comes after" in err
    assert err.count("\n") == 1


def test_other_dtypes_are_one_sentence(run: Run, base: Path, tmp_path: Path) -> None:
    wide = {name: tensor.float() for name, tensor in moved(llama_tensors()).items()}
    other = save(tmp_path / "wide", wide)
    code, out, err = run("trajectory", base, other)
    assert (code, out) == (1, "")
    assert "--cast bf16" in err
    code, out, _ = run("trajectory", base, other, "--cast", "bf16")
    assert code == 0
    assert "rounded to BF16" in out


def test_a_saved_result_that_is_damaged(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    for text, words in (
        ('{"format": "trimtab.trajectory", "format_version": 99}', "format version 99"),
        ('{"format": "trimtab.trajectory", "format_version": 1}', "damaged trajectory"),
    ):
        path.write_text(text)
        code, out, err = run("report", path)
        assert (code, out) == (1, "")
        assert words in err
        assert str(path) in err


@pytest.mark.train
def test_a_tracked_run_shows_what_its_checkpoints_show(run: Run, tmp_path: Path) -> None:
    """A tracker in a real Trainer, and the checkpoints that it saved after each step."""
    import torch
    from transformers import Trainer, TrainingArguments

    from tests.training import tiny
    from trimtab.training.tracker.callback import UpdateTracker

    model = tiny.model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, 10, (24, 8), generator=generator)
    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=6,
            per_device_train_batch_size=4,
            learning_rate=1e-4,
            save_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        callbacks=[UpdateTracker(tmp_path / "updates.trimtab")],
    ).train()
    results = []
    for name, words in {
        "tracked": [tmp_path / "updates.trimtab"],
        "saved": [tmp_path / "base", tmp_path / "run"],
    }.items():
        target = tmp_path / f"{name}.json"
        assert (
            run("trajectory", *words, "-o", target, "--html", tmp_path / f"{name}.html").code == 0
        )
        results.append(trimtab.Trajectory.load(target))
    tracked, saved = results
    assert (tracked.observed, saved.observed) == ("steps", "checkpoints")
    assert tracked.every == saved.every == 1
    assert tracked.steps == saved.steps == (1, 2, 3, 4, 5, 6)
    assert [dict(p.by_kind) for p in tracked.points] == [dict(p.by_kind) for p in saved.points]
    assert saved.final.total.returned > 0
    assert "that of the tracker" in (tmp_path / "tracked.html").read_text()
