"""Everything a run file names is checked before training, and all problems are told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.runs.run_files import content, write
from trimtab.errors import CheckpointNotFoundError, MaskError, SettingsError
from trimtab.training.runs.algorithms import ALGORITHMS
from trimtab.training.runs.prepare import Run, prepare
from trimtab.training.runs.settings import Settings

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]


def prepared(tmp_path: Path, base: Base, usual: str = "sft", **changes: Any) -> Run:
    return prepare(Settings.read(write(tmp_path, content(usual, base[0], **changes))))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_where_our_defaults_differ_from_those_of_trl(
    tmp_path: Path, base: Base, algorithm: str
) -> None:
    args = prepared(tmp_path, base, algorithm, seed=5).args
    assert type(args).__name__ == ALGORITHMS[algorithm].config.rpartition(":")[2]
    # TRL would turn on both, and report to whatever is installed.
    assert (args.bf16, args.activation_checkpointing, args.gradient_checkpointing) == (False,) * 3
    assert args.report_to == []
    assert (args.logging_steps, args.save_steps, args.save_total_limit) == (1, 50, 1)
    assert (args.seed, args.optim.value) == (5, "adamw_torch_fused")
    assert args.output_dir == str(tmp_path / "out" / "checkpoints")
    assert args.learning_rate == 1e-2


def test_trainer_overrides_the_defaults(tmp_path: Path, base: Base) -> None:
    trainer = {"bf16": True, "gradient_checkpointing": True, "logging_steps": 3, "save_steps": 7}
    run = prepared(tmp_path, base, trainer=trainer, dtype="fp32", optimizer={"name": "sgd"})
    args = run.args
    assert (args.bf16, args.activation_checkpointing) == (True, True)
    assert (args.logging_steps, args.save_steps, args.save_total_limit) == (3, 7, None)
    assert args.optim.value == "sgd"
    assert run.keeps_checkpoints
    assert run.dtype == "fp32"


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (
            {"learnin_rate": 1e-5},
            "no key trainer.learnin_rate: did you mean trainer.learning_rate?",
        ),
        ({"learning_rate": "1e-5"}, 'trainer.learning_rate is "1e-5", expected a number'),
        ({"max_steps": 1.5}, "trainer.max_steps is 1.5, expected a whole number"),
        ({"output_dir": "x"}, "trainer.output_dir is set by output"),
        ({"save_only_model": True}, "could not resume from its checkpoints"),
        ({"optim": "adafactor"}, r"trainer.optim is set by name in \[optimizer\]"),
        ({"num_generations": 4}, "no key trainer.num_generations"),
        ({"lr_scheduler_type": "liner"}, "trainer: liner is not a valid SchedulerType"),
        ({"save_strategy": "sometimes"}, "trainer: sometimes is not a valid"),
    ],
)
def test_problems_of_the_trainer(
    tmp_path: Path, base: Base, trainer: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        prepared(tmp_path, base, trainer=trainer)


def test_what_trl_itself_refuses(tmp_path: Path, base: Base) -> None:
    with pytest.raises(SettingsError, match=r"trainer: .*num_generations"):
        prepared(tmp_path, base, "grpo", trainer={"num_generations": 3})


def test_what_makes_it_simpo_cannot_be_changed(tmp_path: Path, base: Base) -> None:
    trainer = {"cpo_alpha": 1.0, "loss_type": "hinge", "alpha": 0.0}
    with pytest.raises(SettingsError) as error:
        prepared(tmp_path, base, "simpo", trainer=trainer)
    text = str(error.value)
    assert "trainer.cpo_alpha is 1.0, and simpo is CPOTrainer with 0.0: leave the key out" in text
    assert 'trainer.loss_type is "hinge", and simpo is CPOTrainer with "simpo"' in text
    assert "trainer.alpha" not in text
    args = prepared(tmp_path, base, "simpo").args
    assert (args.loss_type, args.cpo_alpha, args.alpha) == ("simpo", 0.0, 0.0)
    assert (args.beta, args.simpo_gamma) == (2.0, 1.0)


def test_kto_needs_neighbours(tmp_path: Path, base: Base) -> None:
    with pytest.raises(SettingsError, match="per_device_train_batch_size is 1, and KTO compares"):
        prepared(tmp_path, base, "kto", trainer={"per_device_train_batch_size": 1})


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_vllm_that_is_not_there(tmp_path: Path, base: Base, algorithm: str) -> None:
    with pytest.raises(SettingsError, match=r"trainer\.use_vllm: vllm is not installed"):
        prepared(tmp_path, base, algorithm, trainer={"use_vllm": True})


@pytest.mark.parametrize(
    ("algorithm", "changes", "message"),
    [
        ("grpo", {"trainer": {"max_completion_length": 2047}}, "with 2047 for the completion"),
        ("rft", {"samples": {"max_completion_length": 2046}}, "with 2046 for the completion"),
        ("sft", {"trainer": {"max_length": 4}}, "and trainer.max_length is 4, with 1 for"),
    ],
)
def test_prompts_longer_than_the_context(
    tmp_path: Path, base: Base, algorithm: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=r"data: .* have too many tokens") as error:
        prepared(tmp_path, base, algorithm, **changes)
    assert message in str(error.value)


@pytest.mark.gym
def test_a_task_that_cannot_be_made_is_told_with_the_rest(tmp_path: Path, base: Base) -> None:
    task = {"task": "reasoning_gym:chain_sums"}
    with pytest.raises(SettingsError) as error:
        prepared(tmp_path, base, "grpo", data=task, reward=None, mask="none.safetensors")
    assert "no task chain_sums: did you mean chain_sum?" in str(error.value)
    assert "none.safetensors" in str(error.value)


@pytest.mark.gym
@pytest.mark.parametrize("algorithm", ["sft", "grpo"])
def test_a_gym_task(tmp_path: Path, base: Base, algorithm: str) -> None:
    task = {"task": "reasoning_gym:chain_sum", "size": 7, "config": {"max_terms": 2}}
    run = prepared(tmp_path, base, algorithm, data=task, reward=None)
    assert len(run.data.rows) == 7
    columns = ["prompt", "completion"] if algorithm == "sft" else ["prompt", "item"]
    assert list(run.data.rows[0]) == columns
    assert (run.reward is None) == (algorithm == "sft")


def test_problems_of_all_parts_at_once(tmp_path: Path, base: Base) -> None:
    with pytest.raises(SettingsError) as error:
        prepared(
            tmp_path,
            base,
            "grpo",
            trainer={"max_step": 3},
            mask="none.safetensors",
            data={"file": "none.jsonl"},
            reward={"kind": "regex"},
        )
    for part in ("max_steps?", "none.safetensors", "none.jsonl: no such file", "needs a pattern"):
        assert part in str(error.value)


def test_a_single_problem_keeps_its_class(tmp_path: Path, base: Base) -> None:
    with pytest.raises(MaskError):
        prepared(tmp_path, base, mask="none.safetensors")
    with pytest.raises(CheckpointNotFoundError):
        prepared(tmp_path, (tmp_path / "none", {}))


def test_column_that_the_reward_needs(tmp_path: Path, base: Base) -> None:
    with pytest.raises(SettingsError, match="line 1 lacks right"):
        prepared(tmp_path, base, "grpo", reward={"kind": "exact", "column": "right"})
    assert prepared(tmp_path, base, "grpo", reward={"kind": "exact"}).reward is not None


def test_messages_need_a_chat_template(tmp_path: Path, base: Base) -> None:
    path = write(tmp_path, content("sft", base[0], data={"file": "chat.jsonl"}))
    message = [{"role": "user", "content": "1"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"prompt": message, "completion": message}))
    with pytest.raises(SettingsError, match=r"messages, and the tokenizer of .* has no chat"):
        prepare(Settings.read(path))


def test_one_process_only(tmp_path: Path, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="one process, and WORLD_SIZE is 2"):
        prepared(tmp_path, base)


@pytest.mark.parametrize(
    ("trainer", "save_steps"),
    [
        ({}, 50),
        ({"num_iterations": 4}, 52),
        ({"steps_per_generation": 6, "gradient_accumulation_steps": 2}, 51),
        ({"steps_per_generation": 4, "gradient_accumulation_steps": 6}, 50),
        ({"num_iterations": 4, "save_steps": 8}, 8),
    ],
)
def test_checkpoints_lie_between_two_samplings(
    tmp_path: Path, base: Base, trainer: dict[str, Any], save_steps: int
) -> None:
    assert prepared(tmp_path, base, "grpo", trainer=trainer).args.save_steps == save_steps


def test_checkpoints_between_samplings_are_refused(tmp_path: Path, base: Base) -> None:
    with pytest.raises(SettingsError, match="save_steps is 6, and samples are used for 4 steps"):
        prepared(tmp_path, base, "grpo", trainer={"num_iterations": 4, "save_steps": 6})


def test_settings_are_plain_and_without_paths(tmp_path: Path, base: Base) -> None:
    run = prepared(tmp_path, base)
    settings = run.settings()
    assert json.loads(json.dumps(settings)) == settings
    assert str(tmp_path) not in json.dumps(settings)
    assert settings["model"] == run.base.record.content_hash
    assert run.mask is not None
    assert settings["mask"] == run.mask.digest
    assert settings["trainer"]["learning_rate"] == 1e-2
    assert settings["optimizer"] == {
        "name": "adamw",
        "master": None,
        "state_dtype": "fp32",
        "clip_by": "masked",
        "nonfinite": "raise",
    }
    elsewhere = prepared(tmp_path / "elsewhere", base)
    assert elsewhere.settings() == settings


def test_description(tmp_path: Path, base: Base) -> None:
    result = prepared(tmp_path, base, "grpo").describe()
    assert result["mask"]["density"] == pytest.approx(0.1, abs=1e-3)
    assert result["mask"]["source"] == "random:0.1"
    assert result["data"]["columns"] == ["prompt", "answer"]
    assert result["settings"]["reward"]["function"] == "reward.py:share_of_ones"
    assert set(result["versions"]) >= {"trimtab", "torch", "transformers", "trl"}
    assert prepared(tmp_path, base, mask="none").describe()["mask"] == {"source": "none"}
