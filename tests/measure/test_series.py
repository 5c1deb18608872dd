"""What checkpoints are by their names, and how a run's folder becomes a series."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.measure.checkpoints import llama_tensors, save
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.errors import AnalysisError
from trimtab.measure.trajectory import check_order, expand, spacing, step_of


@pytest.mark.parametrize(
    ("id", "step"),
    [
        ("runs/grpo/checkpoint-120", 120),
        ("runs/grpo/checkpoint-120/", 120),
        ("runs/grpo/checkpoint-120/model.safetensors", 120),
        ("verl/global_step_40", 40),
        ("org/model@step-7", 7),
        ("org/model@stage1-step1000-tokens5B", 1000),
        ("step_0005", 5),
        ("runs/step-9/final", None),
        ("org/model@main", None),
        ("mybackstep-3", None),
        ("runs/sft-2", None),
    ],
)
def test_step_of(id: str, step: int | None) -> None:
    assert step_of(id) == step


def test_a_run_is_expanded_in_the_order_of_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-3", "checkpoint-x", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-7").write_text("a file, not a folder")
    expected = [str(tmp_path / f"checkpoint-{step}") for step in (3, 20, 100)]
    for given in (tmp_path, str(tmp_path), [tmp_path], (str(tmp_path),)):
        assert expand(given) == expected


def test_what_is_given_in_full_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    refs = [str(tmp_path), "org/model@step-2"]
    assert expand(refs) == refs
    assert expand("org/model") == ["org/model"]
    with open_checkpoint(save(tmp_path / "c", llama_tensors())) as checkpoint:
        assert expand(checkpoint) == [checkpoint]
        assert expand([checkpoint]) == [checkpoint]


def test_no_checkpoints() -> None:
    with pytest.raises(AnalysisError, match="give at least one"):
        expand([])


@pytest.mark.parametrize(
    "ids",
    [
        ["r/checkpoint-100", "r/checkpoint-20"],
        ["r/checkpoint-100", "r/checkpoint-100"],
        ["r/checkpoint-1", "r/checkpoint-3", "r/checkpoint-2"],
    ],
)
def test_checkpoints_out_of_order(ids: list[str]) -> None:
    with pytest.raises(AnalysisError, match=rf"{ids[-1]} comes after {ids[-2]}: expected"):
        check_order(ids)


@pytest.mark.parametrize(
    "ids",
    [
        ["r/checkpoint-20", "r/checkpoint-100"],
        ["sft/checkpoint-500", "rl/checkpoint-20"],
        ["r/checkpoint-20", "r/final"],
        ["org/model@step-9", "org/model@step-2"],
    ],
)
def test_checkpoints_in_order_or_of_unknown_order(ids: list[str]) -> None:
    check_order(ids)


@pytest.mark.parametrize(
    ("base", "steps", "every"),
    [
        ("base", [10, 20, 30], 10),
        ("base", [7], 7),
        ("base", [20, 30, 40], None),
        ("r/checkpoint-10", [20, 30, 40], 10),
        ("org/pretrained@step-9000", [20, 40], 20),
        ("base", [10, None, 30], None),
        ("base", [10, 20, 15], None),
        ("base", [0, 0], None),
        ("base", [0], None),
    ],
)
def test_spacing(base: str, steps: list[int | None], every: int | None) -> None:
    assert spacing(base, steps) == every
