"""The contestants of the training benchmark do the same work, in turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from benchmarks import runs
from benchmarks.training import compared
from benchmarks.turns import Played, Turn, in_turn

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore::FutureWarning")]

TINY = runs.FULL | {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
BOTH = [name for name in runs.NAMES if name not in ("ppo", "prime")]
"""The algorithms that TRL has, too."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, and what run files name beside them."""
    from trimtab.training import runtime

    runtime.start()
    folder = tmp_path_factory.mktemp("runs")
    with runtime.quiet():
        runs.write_folder(folder, {"base": TINY, "small": TINY})
    return folder


@pytest.fixture(autouse=True)
def few_words(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Steps that bf16 shows, and nothing said."""
    from trimtab.training import runtime

    monkeypatch.setattr("benchmarks.runs.LEARNING_RATE", 0.01)
    with runtime.quiet():
        yield


def moved(trainer: Any, base: Path) -> Any:
    """Trained weights in one vector, and which of them moved."""
    import torch
    from transformers import AutoModelForCausalLM

    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    trainer.train()
    old, new = (
        torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        for model in (before, trainer.model)
    )
    return new, new != old


@pytest.mark.parametrize("name", runs.NAMES)
def test_who_trains(name: str) -> None:
    assert runs.contestants_of(name) == [*(["bare TRL"] * (name in BOTH)), *runs.MASKS]


@pytest.mark.parametrize("name", runs.NAMES)
def test_sequences_have_the_same_length(name: str, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    for row in runs.rows_of(name):
        row.pop("label", None)
        prompt = row.pop("prompt")
        assert len(tokenizer(prompt).input_ids) == runs.PROMPT
        for completion in row.values():
            ids = tokenizer(prompt + completion + tokenizer.eos_token).input_ids
            assert len(ids) == runs.PROMPT + runs.COMPLETION
            assert tokenizer.pad_token_id not in ids


@pytest.mark.parametrize("name", BOTH)
def test_bare_trainers_have_the_same_settings(name: str, folder: Path) -> None:
    from trimtab.training.runs.prepare import WITHOUT_EFFECT, prepare

    ours = prepare(runs.run_file(name, "none", folder / "base", 2)).args.to_dict()
    theirs = runs.bare_arguments(name, folder / "base", 2).to_dict()
    without_effect = WITHOUT_EFFECT | {"save_total_limit"}  # nothing is saved
    assert {key for key in ours if ours[key] != theirs[key]} <= without_effect


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_bare_trainers_take_the_same_steps(name: str, folder: Path) -> None:
    base = folder / "base"
    (ours, has_moved), (theirs, _) = (
        moved(runs.make_trainer(name, contestant, base, 2), base)
        for contestant in (runs.WHOLE, runs.BARE)
    )
    assert has_moved.any()
    assert ours.equal(theirs)


def test_masks_hold(folder: Path) -> None:
    from trimtab.training.runs.prepare import prepare

    base = folder / "base"
    mask = prepare(runs.run_file("orpo", runs.MASKS["5%"], base, 2)).mask
    assert mask is not None
    _, has_moved = moved(runs.make_trainer("orpo", "5%", base, 2), base)
    assert 0 < has_moved.sum() <= mask.num_selected()
    assert abs(mask.num_selected() - 0.05 * has_moved.numel()) < len(mask)


class Noted(Turn):
    """Turns that are taken at once."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def wait(self) -> None:
        self.calls.append("wait")

    def over(self) -> None:
        self.calls.append("over")


def test_a_contestant_trains_by_turns(folder: Path) -> None:
    turn = Noted()
    assert runs.contest(turn, "kto", "20%", folder, 2, 1) > 0
    assert turn.calls == ["wait", "over"] * 2


def take_turns(turn: Turn, number: int) -> list[tuple[float, int]]:
    times = []
    for _ in range(number):
        turn.wait()
        times.append((monotonic(), 1))
        times.append((monotonic(), -1))
        turn.over()
    return times


def test_turns_do_not_overlap() -> None:
    played = in_turn(take_turns, {"a": (3,), "b": (3,)}, rounds=2)
    assert [len(one.seconds) for one in played.values()] == [2, 2]
    events = sorted((*event, name) for name, one in played.items() for event in one.result)
    assert [event[1:] for event in events] == [(1, "a"), (-1, "a"), (1, "b"), (-1, "b")] * 3


def test_a_contestant_that_ends_early_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="b ended before its last turn"):
        in_turn(take_turns, {"a": (2,), "b": ("not a number",)}, rounds=1)
    assert "TypeError" in capfd.readouterr().err


def test_ratios_are_within_rounds() -> None:
    played = {
        "bare TRL": Played([1.0, 8.0, 2.0], 100),
        "whole model": Played([2.0, 4.0, 2.0], 120),
        "5%": Played([0.5, 2.0, 4.0], 50),
    }
    result = compared(played, 64)
    assert result["5%"] == {
        "peak": 50,
        "tokens per second": 32.0,
        "speed / bare TRL": 2.0,
        "peak / bare TRL": 0.5,
        "speed / whole model": 2.0,
        "peak / whole model": 50 / 120,
    }
    assert result["whole model"]["speed / bare TRL"] == 1.0
    assert "speed / bare TRL" not in compared({"whole model": Played([1.0], 1)}, 1)["whole model"]
