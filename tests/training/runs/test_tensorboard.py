"""`report_to = "tensorboard"`: what a run logs, read back from the files of TensorBoard."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.runs.run_files import after, content, train, train_settings, write
from trimtab.training.folders import read_json
from trimtab.training.runs.settings import Settings

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]

EXAMPLE = Path(__file__).parents[3] / "examples" / "tensorboard.toml"


def logged(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars(folder: Path) -> dict[str, Any]:
    """Tag -> steps and values, without those that are times."""
    events = logged(folder)
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not any(word in tag for word in ("runtime", "per_second", "step_time"))
    }


def test_the_example(base: Base, tmp_path: Path) -> None:
    """Each figure of the history, the evaluations, and the tracker's figures."""
    file = replace(Settings.read(EXAMPLE), model=str(base[0]), output=str(tmp_path / "out"))
    trainer = {**file.trainer, "max_steps": 6, "per_device_train_batch_size": 4}
    result = train_settings(replace(file, trainer=trainer))
    found = scalars(tmp_path / "out/tensorboard")
    for name in ("loss", "grad_norm", "learning_rate", "trimtab/changed", "trimtab/absorbed"):
        values = [(log["step"], pytest.approx(log[name], rel=1e-6)) for log in result["history"]]
        assert found[f"train/{name}"] == values
    assert len({value for _, value in found["train/grad_norm"]}) == 6
    assert found["eval/accuracy"] == [
        (one["step"], pytest.approx(one["accuracy"])) for one in result["evaluations"]
    ]
    assert [one["step"] for one in result["evaluations"]] == [0, 5, 6]


def test_the_record_of_the_run_is_logged_as_text(base: Base, tmp_path: Path) -> None:
    train(write(tmp_path, content("sft", base[0], trainer={"report_to": "tensorboard"})))
    (text,) = logged(tmp_path / "out/tensorboard").Tensors("trimtab/text_summary")
    record = json.loads(text.tensor_proto.string_val[0])
    resolved = read_json(tmp_path / "out/resolved.json")
    assert record == {key: resolved[key] for key in record}
    assert record["mask"]["density"] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("algorithm", ["sft", "grpo"])
def test_a_resumed_run_has_each_step_once(base: Base, tmp_path: Path, algorithm: str) -> None:
    table = {"every": 1, "task": "addition"}
    trainer = {"report_to": "tensorboard", "max_steps": 4, "save_steps": 2}
    values = content(algorithm, base[0], evaluate=table, trainer=trainer)
    whole, halves = (write(tmp_path / name, values) for name in ("whole", "halves"))
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(halves, stop=after(3))
    for file in (tmp_path / "halves/out/checkpoints/checkpoint-3").iterdir():
        file.unlink()  # as if it was killed after step 3: it resumes from step 2
    assert train(halves)["resumed_from_step"] == 2
    found, resumed = (scalars(run.parent / "out/tensorboard") for run in (whole, halves))
    # TRL counts the tokens of SFT from 0 again.
    of_the_end = {"train/total_flos", "train/train_loss", "train/num_tokens"}
    assert found.keys() == resumed.keys()
    for tag in found.keys() - of_the_end:
        assert resumed[tag] == found[tag], tag


def test_another_folder(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    train(write(tmp_path, content("sft", base[0], trainer={"report_to": "tensorboard"})))
    assert not (tmp_path / "out/tensorboard").exists()
    assert [step for step, _ in scalars(tmp_path / "logs")["train/loss"]] == [1, 2]
