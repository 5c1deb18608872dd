"""Run files on the tiny base, written out as a person would."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trimtab.progress import progress_bars
from trimtab.training.runs.execute import execute
from trimtab.training.runs.prepare import prepare
from trimtab.training.runs.settings import Settings

USUAL = {"max_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 4}

ONLINE = {**USUAL, "num_generations": 4, "max_completion_length": 3}
"""Of those that sample while they train."""

TRAINER: Mapping[str, Mapping[str, Any]] = {
    "sft": USUAL,
    "rft": USUAL,
    "dpo": USUAL,
    "orpo": USUAL,
    "kto": USUAL,
    "simpo": USUAL,
    "grpo": ONLINE,
    "rloo": ONLINE,
    "ppo": {**USUAL, "num_ppo_epochs": 1, "max_completion_length": 3},
    "prime": ONLINE,
}

REWARDED: Mapping[str, str] = {
    **dict.fromkeys(("rft", "grpo", "rloo", "ppo"), "share_of_ones"),
    "prime": "how_right",
}
"""Those that need a reward -> its name."""

SAMPLES: Mapping[str, Any] = {"num": 8, "max_completion_length": 4, "threshold": 2.0}
"""About a third of the tiny base's samples end, and a third of those are good."""

REWARD = """
def share_of_ones(completions, **columns):
    return [text.count("1") + 0.1 * text.count("2") + len(text) for text in completions]

def how_right(completions, **columns):
    return [reward / 10 for reward in share_of_ones(completions)]
"""


def content(usual_of: str, base: Path, **changes: Any) -> dict[str, Any]:
    """A run of two steps; `trainer` is merged into the usual one, None takes a key away."""
    usual: dict[str, Any] = {
        "algorithm": usual_of,
        "model": str(base),
        "output": "out",
        "mask": "random:0.1",
        "data": {"task": "addition"},
        "trainer": dict(TRAINER[usual_of]),
    }
    if usual_of in REWARDED:
        usual["data"] = {"file": "questions.jsonl"}
        usual["reward"] = {"function": f"reward.py:{REWARDED[usual_of]}"}
    if usual_of == "rft":
        usual["samples"] = dict(SAMPLES)
    for key, value in changes.items():
        usual[key] = {**usual[key], **value} if key == "trainer" else value
    return {key: value for key, value in usual.items() if value is not None}


def write(folder: Path, values: Mapping[str, Any], name: str = "run.toml") -> Path:
    """Write a run file, with the data and the reward that it may name beside it."""
    folder.mkdir(exist_ok=True)
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if key not in tables]
    for table, entries in tables.items():
        lines += [f"[{table}]", *(f"{key} = {_toml(value)}" for key, value in entries.items())]
    (folder / "reward.py").write_text(REWARD)
    rows = [{"prompt": f"{a}+1=", "answer": str(a + 1)} for a in range(9)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def train(path: Path, **more: Any) -> dict[str, Any]:
    """Prepare and execute a run file without a display."""
    return train_settings(Settings.read(path), **more)


def train_settings(file: Settings, **more: Any) -> dict[str, Any]:
    """Prepare and execute a run without a display."""
    with progress_bars() as bars:
        return execute(prepare(file), bars, **more)


def after(calls: int) -> Callable[[], bool]:
    """Asked so often, says stop."""
    asked = iter(range(10**6))
    return lambda: next(asked) >= calls - 1


def _toml(value: Any) -> str:
    """JSON writes the strings, numbers, lists and truth values that TOML reads; not its tables."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_toml(entry)}' for key, entry in value.items())}}}"
    return json.dumps(value)
