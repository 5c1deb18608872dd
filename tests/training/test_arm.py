"""Both algorithms through TRL on a tiny model: what is saved, counted, resumed and refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import CheckpointError, OutputExistsError
from trimtab.training import arm
from trimtab.training.arm import train_arm
from trimtab.training.folders import WEIGHTS
from trimtab.training.recipe import Recipe

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]
RECIPE = Recipe(steps=3)
PROMPT_TOKENS = len("3+4=7\n2+9=11\n6+1=")


def run(algorithm: str, base: Base, out: Path, recipe: Recipe = RECIPE, **more: Any) -> Any:
    return train_arm(algorithm, recipe, *base, out / algorithm, out / "work" / algorithm, **more)


def interrupt_at(step: int) -> arm.OnStep:
    def on_step(done: int, metrics: Mapping[str, Any]) -> None:
        if done == step:
            raise KeyboardInterrupt

    return on_step


@pytest.fixture(scope="module", params=["grpo", "sft"])
def trained(
    request: pytest.FixtureRequest, base: Base, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Any], list[int]]:
    """An arm trained without interruption: algorithm, output folder, record, steps reported."""
    out = tmp_path_factory.mktemp(request.param)
    steps: list[int] = []
    record = run(request.param, base, out, on_step=lambda done, metrics: steps.append(done))
    return request.param, out, record, steps


def test_saved_checkpoint_is_the_base_with_other_weights(trained: Any, base: Base) -> None:
    from safetensors.torch import load_file

    algorithm, out, record, _ = trained
    before, after = load_file(base[0] / WEIGHTS), load_file(out / algorithm / WEIGHTS)
    assert {name: (t.shape, t.dtype) for name, t in before.items()} == {
        name: (t.shape, t.dtype) for name, t in after.items()
    }
    assert any(bool((before[name] != after[name]).any()) for name in before)
    same = {path.name for path in base[0].iterdir()} - {WEIGHTS, "origin.json"}
    assert same | {WEIGHTS, "run.json"} == {path.name for path in (out / algorithm).iterdir()}
    for name in same:
        assert (base[0] / name).read_bytes() == (out / algorithm / name).read_bytes()
    assert json.loads((out / algorithm / "run.json").read_text()) == record
    assert not (out / "work" / algorithm).exists()


def test_record_states_precision_settings_and_device(trained: Any, base: Base) -> None:
    algorithm, _, record, steps = trained
    assert record["precision"] == {
        "base": "bfloat16",
        "weights": "float32",
        "compute": "bfloat16 autocast",
        "optimizer_state": "float32",
        "saved": "bfloat16",
    }
    assert record["settings"]["algorithm"] == algorithm
    assert record["settings"]["learning_rate"] == 1e-5
    assert record["settings"]["base"] == base[1]["weights"]["xxh3_128"]
    assert record["resumed_from_step"] is None
    assert record["device"]["type"] == "cpu"
    assert set(record["versions"]) >= {"trimtab", "torch", "transformers", "trl"}
    assert [row["step"] for row in record["history"]] == steps == [1, 2, 3]


def test_tokens_are_counted_exactly(trained: Any) -> None:
    algorithm, _, record, _ = trained
    tokens = record["tokens"]
    assert tokens["num_sequences"] == 96
    assert tokens["num_prompt_tokens_each"] == PROMPT_TOKENS
    assert tokens["num_forward"] == tokens["num_loss"] + 96 * PROMPT_TOKENS
    if algorithm == "grpo":
        means = [row["mean_completion_tokens"] for row in record["history"]]
        assert tokens["num_loss"] == round(32 * sum(means))


def test_sft_sees_every_question_once_an_epoch(base: Base, tmp_path: Path) -> None:
    from trimtab.training.addition import split_questions

    record = run("sft", base, tmp_path, Recipe(steps=2))
    gold = [question.gold for question in split_questions(0).train]
    assert record["tokens"]["num_loss"] == sum(map(len, gold))


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_interrupted_run_ends_in_the_same_weights(
    trained: Any, base: Base, tmp_path: Path, stop: int
) -> None:
    algorithm, _, record, _ = trained
    with pytest.raises(KeyboardInterrupt):
        run(algorithm, base, tmp_path, on_step=interrupt_at(stop), checkpoint_every=1)
    assert not (tmp_path / algorithm).exists()
    resumed = run(algorithm, base, tmp_path, checkpoint_every=1)
    assert resumed["resumed_from_step"] == (stop - 1 or None)
    for same in ("weights", "tokens", "history", "settings"):
        assert resumed[same] == record[same]


def test_half_written_checkpoint_is_not_resumed_from(
    trained: Any, base: Base, tmp_path: Path
) -> None:
    algorithm, _, record, _ = trained
    with pytest.raises(KeyboardInterrupt):
        run(algorithm, base, tmp_path, on_step=interrupt_at(3), checkpoint_every=1)
    (tmp_path / "work" / algorithm / "checkpoint-2" / "trainer_state.json").write_text("{")
    resumed = run(algorithm, base, tmp_path)
    assert resumed["resumed_from_step"] is None
    assert resumed["weights"] == record["weights"]


def test_finished_arm_is_not_trained_again(
    trained: Any, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm, out, record, _ = trained
    monkeypatch.setattr(arm, "_trainer", None)
    leftover = out / "work" / algorithm / "checkpoint-2"  # stopped between its last two acts
    leftover.mkdir(parents=True)
    assert run(algorithm, base, out) == record
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("recipe", "difference"),
    [
        (Recipe(steps=4), r"steps=3 \(now 4\)"),
        (Recipe(steps=3, seed=1), r"seed=0 \(now 1\)"),
        (Recipe(steps=3, learning_rate=2e-5), r"learning_rate=1e-05 \(now 2e-05\)"),
    ],
)
def test_finished_arm_with_other_settings_is_refused(
    trained: Any, base: Base, recipe: Recipe, difference: str
) -> None:
    algorithm, out, _, _ = trained
    with pytest.raises(OutputExistsError, match=difference):
        run(algorithm, base, out, recipe)


def test_partly_trained_arm_with_other_settings_is_refused(base: Base, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run("sft", base, tmp_path, on_step=interrupt_at(2), checkpoint_every=1)
    with pytest.raises(OutputExistsError, match=r"seed=0 \(now 7\)"):
        run("sft", base, tmp_path, Recipe(steps=3, seed=7))


def test_arm_stopped_before_its_first_checkpoint_can_start_anew(base: Base, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run("sft", base, tmp_path, on_step=interrupt_at(1))
    record = run("sft", base, tmp_path, Recipe(steps=1, seed=7))
    assert record["settings"]["seed"] == 7
    assert [row["step"] for row in record["history"]] == [1]


def test_other_base_is_refused(trained: Any, base: Base) -> None:
    algorithm, out, _, _ = trained
    other = {"weights": {"xxh3_128": "0" * 32}}
    with pytest.raises(OutputExistsError, match=r"base=.* \(now '0{32}'\)"):
        run(algorithm, (base[0], other), out)


def test_prompts_of_unequal_length_are_refused() -> None:
    from trimtab.training.addition import Question, Split

    def merged(text: str) -> dict[str, list[int]]:
        return {"input_ids": [0] * (len(text) - ("9+9=" in text))}

    with pytest.raises(CheckpointError, match="16 to 17 tokens"):
        arm._num_prompt_tokens(merged, Split((Question(1, 1), Question(9, 9)), ()))
