"""The pages on robustness and pruning say what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from docs import generated_pruning, generated_robustness
from tests.checkpoints.building import tensors_bytes
from tests.training.evaluation.results import make_evaluation
from tests.training.robustness.results import make_probe
from trimtab.cli.evaluate import NOISES
from trimtab.masks.pruning import prune
from trimtab.report.robustness import ARMS
from trimtab.report.robustness import NOISES as WORDS
from trimtab.training.perturbation.noise import ARMS as SETS

DOCS = Path(__file__).parents[3] / "docs"


def section(title: str) -> str:
    text = (DOCS / "formats.md").read_text("utf-8")
    return text.partition(f"## {title}")[2].partition("\n## ")[0]


def keys(data: Any) -> set[str]:
    """All keys of plain data but those below `provenance`, `questions` and `text`."""
    found: set[str] = set()
    if isinstance(data, dict):
        for key, value in data.items():
            found.add(key)
            found |= set() if key in ("provenance", "questions", "text") else keys(value)
    elif isinstance(data, list):
        for entry in data:
            found |= keys(entry)
    return found


def documented(title: str) -> set[str]:
    return set(re.findall(r"[\w]+", " ".join(re.findall(r"`([^`]+)`", section(title)))))


def test_every_key_of_a_probe() -> None:
    missing = keys(make_probe().to_dict()) - documented("The result of a robustness probe")
    assert not missing


def test_every_key_of_a_pruning(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    bits = {"model.layers.0.mlp.up_proj.weight": np.full((4, 4), 0x3F80, np.uint16)}
    (tmp_path / "base" / "model.safetensors").write_bytes(tensors_bytes(bits))
    data = prune(tmp_path / "base", tmp_path / "out", sparsity=0.5).to_dict()
    assert not keys(data) - documented("The record of a pruning")


def test_every_noise_and_set_has_words() -> None:
    page = (DOCS / "robustness.md").read_text("utf-8")
    assert set(WORDS) == set(NOISES)
    assert tuple(ARMS) == SETS
    for noise in NOISES:
        assert f"| `{noise}` |" in page
    for words in ARMS.values():
        assert f"| {words} |" in page


def test_a_probe_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    probe = make_probe().to_dict()
    probe["provenance"] |= {"versions": {"torch": "2.13"}, "device": {"num_threads": 1}}
    for draw in generated_robustness.__all__:
        getattr(generated_robustness, draw)({"probes": [json.loads(json.dumps(probe))]})
        getattr(generated_robustness, draw)(None)
    text = capsys.readouterr().out
    assert "| `sign` | 1 | 2.01 [1.98, 2.04]: more fragile | 1.01 [0.992, 1.02]: no di" in text
    assert "0.503 [0.496, 0.511]: less fragile |" in text
    assert "every set has 100 weights. 7 of 8 (87.50 %) held-out sums are right" in text


def test_an_evaluation_of_pruned_models_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("demo/base", "demo/pruned", "runs/pruned/model", "runs/pruned-random/model", "another")
    evaluation = make_evaluation(names=names).to_dict()
    evaluation["provenance"] |= {"versions": {"torch": "2.13"}}
    for draw in generated_pruning.__all__:
        getattr(generated_pruning, draw)(evaluation)
        getattr(generated_pruning, draw)(None)
    text = capsys.readouterr().out
    assert "| the base | 33.3 % [" in text
    assert "| 30 % pruned by Wanda | 83.3 % [" in text
    assert "another" not in text
    assert "- the same number of survivors of each tensor at random: +0.0 [" in text
    assert "6 held-out sums, greedily and 4 times by sampling" in text
