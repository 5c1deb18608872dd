"""The training half of the demo from base to answers, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training import tiny
from trimtab.errors import CheckpointError, OutputExistsError, SettingsError
from trimtab.results.evaluation import majority_baseline
from trimtab.training import demo
from trimtab.training.addition import split_questions
from trimtab.training.arm import train_arm
from trimtab.training.demo import DemoRun, train_demo

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    return train_demo(tmp_path_factory.mktemp("demo"), steps=2, make_base=tiny.make_base)


def test_run_carries_all_that_a_report_needs(finished: DemoRun) -> None:
    heldout = split_questions(0).heldout
    assert list(finished.arms) == ["grpo", "sft", "grpo-mask"]
    assert finished.heldout == heldout
    assert finished.majority == majority_baseline(question.answer for question in heldout)
    assert finished.before.num_samples == 8
    assert finished.num_train_questions == 64
    assert set(finished.seconds) == {
        "base",
        "base: evaluation",
        "grpo",
        "grpo: evaluation",
        "sft",
        "sft: evaluation",
        "masks",
        "grpo-mask",
        "grpo-mask: evaluation",
    }
    for name, arm in finished.arms.items():
        assert arm.folder == finished.base.parent / name
        assert arm.answers.num_questions == 32
        assert arm.num_forward_tokens > arm.num_loss_tokens > 0
    data = json.loads(json.dumps(finished.to_dict()))
    assert data["arms"]["grpo"]["record"]["settings"]["steps"] == 2
    assert data["before"]["greedy_accuracy"] == finished.before.greedy_accuracy


def test_nothing_is_left_of_the_work(finished: DemoRun) -> None:
    names = {path.name for path in finished.base.parent.iterdir()}
    arms = {"grpo", "sft", "grpo-mask"}
    assert names == {"base", *arms, "mask.safetensors", "evaluation.json"}


def test_second_call_does_no_work(finished: DemoRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ask", None)
    monkeypatch.setattr("trimtab.training.arm._trainer", None)
    again = train_demo(finished.base.parent, steps=2, make_base=tiny.make_base)
    first, second = finished.to_dict(), again.to_dict()
    first.pop("seconds")
    second.pop("seconds")
    assert second == first


def test_other_settings_are_refused_before_any_work(
    finished: DemoRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "ask", None)
    for steps, seed in ((3, 0), (2, 1)):
        with pytest.raises(OutputExistsError, match="another output folder"):
            train_demo(finished.base.parent, steps=steps, seed=seed, make_base=tiny.make_base)


def test_arms_of_two_runs_are_not_mixed(tmp_path: Path) -> None:
    train_demo(tmp_path, arms=("sft",), steps=1, make_base=tiny.make_base)
    with pytest.raises(OutputExistsError, match=r"seed=0 \(now 1\)"):
        train_demo(tmp_path, arms=("grpo",), steps=1, seed=1, make_base=tiny.make_base)
    both = train_demo(tmp_path, arms=("sft", "grpo"), steps=1, make_base=tiny.make_base)
    assert list(both.arms) == ["grpo", "sft"]


def test_unreadable_evaluation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"evaluation\.json is not JSON"):
        train_demo(tmp_path, steps=1, make_base=tiny.make_base)


def test_interrupt_between_stages_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_grpo(algorithm: str, *arguments: object, **more: object) -> object:
        if algorithm == "sft":
            raise KeyboardInterrupt
        return train_arm(algorithm, *arguments, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(demo, "train_arm", only_grpo)
        train_demo(tmp_path, steps=2, make_base=tiny.make_base)
    kept = (tmp_path / "grpo" / "run.json").read_bytes()
    run = train_demo(tmp_path, steps=2, make_base=tiny.make_base)
    assert list(run.arms) == ["grpo", "sft", "grpo-mask"]
    assert (tmp_path / "grpo" / "run.json").read_bytes() == kept


def test_damaged_base_is_refused(tmp_path: Path) -> None:
    tiny.make_base(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="has 0 bytes"):
        train_demo(tmp_path, steps=1, make_base=tiny.make_base)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ((), "expected some of"),
        (("ppo",), "expected some of"),
        (("grpo", "ppo"), "expected some of"),
        (("grpo-mask",), "without it"),
    ],
)
def test_impossible_arms(tmp_path: Path, arms: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        train_demo(tmp_path / "out", arms=arms)
    assert not (tmp_path / "out").exists()


def test_silent_where_stderr_is_no_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_demo(tmp_path, arms=("sft",), steps=1, make_base=tiny.make_base)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
