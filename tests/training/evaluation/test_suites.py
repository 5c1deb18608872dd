"""The bridge to lm-evaluation-harness: with the package if it is installed, and with a stand-in.

The stand-in returns what version 0.4.13 of the package did for the same task.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.training import tiny
from trimtab.errors import SettingsError
from trimtab.training.evaluation.answering import load_model, load_tokenizer
from trimtab.training.evaluation.suites import Suites

pytestmark = pytest.mark.train

FOUND = {
    "results": {
        "sums": {
            "name": "sums",
            "alias": "sums",
            "sample_len": 6,
            "acc,none": 0.5,
            "acc_stderr,none": 0.2,
            "exact_match,strict": 0.25,
            "exact_match_stderr,strict": "N/A",
        }
    },
    "versions": {"sums": "Yaml"},
    "n-shot": {"sums": 0},
    "n-samples": {"sums": {"original": 6, "effective": 4}},
}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules with what is used of them; returns what they were called with."""
    called: dict[str, Any] = {}

    def simple_evaluate(**settings: Any) -> Any:
        called.update(settings)
        if settings["tasks"] == ["broken"]:
            raise OSError("no\nnetwork")
        return FOUND

    def manager(include_path: str | None = None) -> Any:
        called["include_path"] = include_path
        return SimpleNamespace(all_tasks=["sums", "broken"])

    modules: dict[str, Any] = {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.tasks": {"TaskManager": manager},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": lambda **given: given},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return called


def test_the_loaded_model_is_passed_on(stand_in: dict[str, Any], tmp_path: Path) -> None:
    suites = Suites(("sums",), tmp_path, num_questions=4)
    suites.check()
    result = suites.run("model", "tokenizer", batch_size=3, seed=7)
    assert stand_in["model"] == {"pretrained": "model", "tokenizer": "tokenizer", "batch_size": 3}
    assert stand_in["tasks"] == ["sums"]
    assert stand_in["limit"] == 4
    assert stand_in["include_path"] == str(tmp_path)
    assert {stand_in[f"{one}_seed"] for one in ("random", "numpy_random", "torch_random")} == {7}
    assert result == {
        "sums": {
            "num_questions": 4,
            "num_shots": 0,
            "version": "Yaml",
            "metrics": {
                "acc": {"value": 0.5, "standard_error": 0.2},
                "exact_match (strict)": {"value": 0.25, "standard_error": None},
            },
        }
    }


@pytest.mark.usefixtures("stand_in")
def test_what_is_not_there_is_told_before(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="has no task summs, sumz: `lm_eval ls tasks`"):
        Suites(("summs", "sums", "sumz")).check()
    with pytest.raises(SettingsError, match="none: no such folder"):
        Suites(("sums",), tmp_path / "none").check()


@pytest.mark.usefixtures("stand_in")
def test_a_task_that_fails_is_one_sentence() -> None:
    with pytest.raises(SettingsError, match=r"^suites: no network$"):
        Suites(("broken",)).run(None, None, batch_size=1, seed=0)


TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: ["1", "2", "3"]
doc_to_target: "{{a}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed")
@pytest.mark.filterwarnings("default")
def test_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of the user's own; its accuracy against the log-probabilities of the three choices."""
    import torch

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"q": f"{a}+{b}=", "a": (a + b) % 3} for a in range(3) for b in range(2)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "sums.yaml").write_text(TASK % (tmp_path / "sums.jsonl"))
    tiny.make_base(tmp_path / "base")
    model = load_model(tmp_path / "base", "fp32", "cpu")
    tokenizer = load_tokenizer(tmp_path / "base")
    suites = Suites(("sums",), tmp_path)
    suites.check()
    result = suites.run(model, tokenizer, batch_size=2, seed=0)
    right = 0
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(row["q"])["input_ids"]])).logits[0, -1]
        choices = [logits[tokenizer(choice)["input_ids"][0]].item() for choice in "123"]
        right += choices.index(max(choices)) == row["a"]
    assert result["sums"]["metrics"]["acc"]["value"] == pytest.approx(right / 6)
    assert result["sums"]["num_questions"] == 6
