"""The model's own samples: drawn as asked, kept, and drawn only once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny
from tests.training.runs.run_files import SAMPLES, after, content, train, write
from trimtab.errors import CheckpointError, OutputExistsError, SettingsError
from trimtab.training.folders import WEIGHTS, read_json
from trimtab.training.runs.algorithms import ALGORITHMS

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]

QUESTIONS = 9

END = 1
"""Id of the end token."""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_of(algorithm: str, base: Base, **changes: Any) -> dict[str, Any]:
    """A run on the samples of the questions that `write` puts beside it."""
    changes = {"samples": dict(SAMPLES), **changes}
    data, reward = {"file": "questions.jsonl"}, {"function": "reward.py:share_of_ones"}
    return content(algorithm, base[0], data=data, reward=reward, **changes)


@pytest.fixture(scope="module")
def finished(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of RFT."""
    folder = tmp_path_factory.mktemp("samples")
    train(write(folder, run_of("rft", base)))
    return folder / "out"


def test_every_prompt_is_sampled_and_judged(finished: Path) -> None:
    drawn = lines(finished / "samples.jsonl")
    assert len(drawn) == QUESTIONS * SAMPLES["num"]
    for sample in drawn:
        text = sample["completion"]
        assert sample["reward"] == text.count("1") + 0.1 * text.count("2") + len(text)
        tokens = sample["completion_ids"]
        assert len(tokens) <= SAMPLES["max_completion_length"]
        assert tiny.tokenizer().decode(tokens, skip_special_tokens=True) == text
        assert (tokens[-1] == END) == sample["has_ended"]
    assert 0 < sum(sample["has_ended"] for sample in drawn) < len(drawn)
    groups = [drawn[start : start + 8] for start in range(0, len(drawn), 8)]
    assert all(len({sample["completion"] for sample in group}) > 1 for group in groups)


def test_what_is_recorded_of_them(finished: Path) -> None:
    drawn = lines(finished / "samples.jsonl")
    resolved = read_json(finished / "resolved.json")
    result = resolved["samples"]
    good = [sample for sample in drawn if sample["has_ended"] and sample["reward"] >= 2]
    assert result["source"] == "samples.jsonl"
    assert 0 < result["num_rows"] <= len(good)
    assert result["columns"] == ["prompt", "completion", "completion_ids"]
    assert result["num_samples"] == len(drawn)
    assert result["num_not_ended"] == sum(not sample["has_ended"] for sample in drawn)
    assert result["mean_reward"] == pytest.approx(sum(s["reward"] for s in drawn) / len(drawn))
    assert result["settings"]["threshold"] == 2.0
    assert resolved["settings"]["samples"] == result["settings"]
    assert resolved["data"]["num_rows"] == QUESTIONS


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_run_stopped_while_it_samples_ends_in_the_same_weights(
    finished: Path, base: Base, tmp_path: Path, calls: int
) -> None:
    run = write(tmp_path, run_of("rft", base))
    with pytest.raises(KeyboardInterrupt):
        train(run, stop=after(calls))
    unfinished = tmp_path / "out" / "samples.partial.jsonl"
    assert len(lines(unfinished)) == (calls - 1) * 32
    with unfinished.open("a") as file:  # as if it had been killed while it wrote
        file.write('{"completion": "1", "rew')
    train(run)
    assert not unfinished.exists()
    for name in ("samples.jsonl", f"model/{WEIGHTS}"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / name).read_bytes()


def test_samples_are_not_drawn_again_for_other_settings(base: Base, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(write(tmp_path, run_of("rft", base)), stop=after(2))
    other = run_of("rft", base, samples={**SAMPLES, "num": 4})
    with pytest.raises(OutputExistsError, match=r"samples\.num=8 \(now 4\)"):
        train(write(tmp_path, other))


def test_the_seed_decides_what_is_drawn(finished: Path, base: Base, tmp_path: Path) -> None:
    train(write(tmp_path, run_of("rft", base, seed=1)))
    drawn = [lines(out / "samples.jsonl") for out in (finished, tmp_path / "out")]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("algorithm", ["dpo", "orpo", "simpo", "kto"])
def test_preferences_of_its_own(algorithm: str, finished: Path, base: Base, tmp_path: Path) -> None:
    train(write(tmp_path, run_of(algorithm, base)))
    assert lines(tmp_path / "out" / "samples.jsonl") == lines(finished / "samples.jsonl")
    result = read_json(tmp_path / "out" / "resolved.json")["samples"]
    columns = ["completion", "label"] if algorithm == "kto" else ["chosen", "rejected"]
    assert result["columns"] == ["prompt", *columns]
    assert result["num_rows"] > 1


def test_a_text_that_ends_a_sample(base: Base, tmp_path: Path) -> None:
    samples = {**SAMPLES, "stop": "1", "max_completion_length": 12}
    train(write(tmp_path, run_of("rft", base, samples=samples)))
    drawn = lines(tmp_path / "out" / "samples.jsonl")
    stopped = [sample["completion"] for sample in drawn if "1" in sample["completion"]]
    assert stopped
    assert all(text.index("1") == len(text) - 1 for text in stopped)
    assert all(sample["has_ended"] for sample in drawn if "1" in sample["completion"])


def test_a_stop_of_several_tokens_cuts_what_comes_after(base: Base, tmp_path: Path) -> None:
    samples = {**SAMPLES, "stop": "11", "max_completion_length": 40, "threshold": 0.0}
    train(write(tmp_path, run_of("rft", base, samples=samples)))
    drawn = [sample["completion"] for sample in lines(tmp_path / "out" / "samples.jsonl")]
    stopped = [text for text in drawn if "11" in text]
    assert stopped
    assert all(text.index("11") == len(text) - 2 for text in stopped)


def test_rft_learns_the_tokens_that_were_drawn_and_no_others() -> None:
    rows = [{"prompt": "1+1=", "completion": "2", "completion_ids": [4, 13]}]
    (row,) = ALGORITHMS["rft"].dataset(rows, tiny.tokenizer(), 0)
    assert row["input_ids"] == [3, 12, 3, 13, 4, 13]
    assert row["labels"] == [-100, -100, -100, -100, 4, 13]


@pytest.mark.gym
def test_a_task_of_its_own_rewards_its_samples(base: Base, tmp_path: Path) -> None:
    task = {"task": "reasoning_gym:chain_sum", "size": 6, "config": {"max_terms": 2}}
    values = content("rft", base[0], data=task, reward=None, samples={**SAMPLES, "threshold": 0.0})
    train(write(tmp_path, values))
    assert len(lines(tmp_path / "out" / "samples.jsonl")) == 6 * SAMPLES["num"]
    resolved = read_json(tmp_path / "out" / "resolved.json")
    assert resolved["data"]["config"]["max_terms"] == 2
    assert resolved["settings"]["reward"]["task"] == "reasoning_gym:chain_sum"
    assert resolved["settings"]["reward"]["reasoning-gym"]


def test_nothing_to_train_on(base: Base, tmp_path: Path) -> None:
    values = run_of("rft", base, samples={**SAMPLES, "threshold": 99.0})
    with pytest.raises(SettingsError) as error:
        train(write(tmp_path, values))
    text = str(error.value)
    assert text.startswith("samples: no good sample among 72 of 9 prompts: rewards from ")
    assert "did not end within samples.max_completion_length" in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("reward", "rewards", 1), "cannot be read"),
        (lambda text: text[:100], "cannot be read"),
        (lambda text: text.partition("\n")[2], "has 71 samples, expected 72"),
    ],
)
def test_damaged_samples(base: Base, tmp_path: Path, damage: Any, message: str) -> None:
    run = write(tmp_path, run_of("rft", base))
    with pytest.raises(KeyboardInterrupt):
        train(run, stop=after(4))
    path = tmp_path / "out" / "samples.jsonl"
    path.write_text(damage(path.read_text()))
    with pytest.raises(CheckpointError, match=rf"{message}.*delete the folder to start again"):
        train(run)


def test_a_reward_that_fails_on_samples(base: Base, tmp_path: Path) -> None:
    run = write(tmp_path, run_of("dpo", base))
    (tmp_path / "reward.py").write_text("def share_of_ones(completions, **columns): return [1]\n")
    with pytest.raises(SettingsError, match="returned 1 rewards for 32 completions"):
        train(run)
