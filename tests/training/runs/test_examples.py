"""Every run file in `examples/` runs, with a tiny base in place of its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from string import printable

import pytest

from tests.training import tiny
from trimtab.progress import progress_bars
from trimtab.training.runs.algorithms import ALGORITHMS
from trimtab.training.runs.execute import execute
from trimtab.training.runs.prepare import Run, prepare
from trimtab.training.runs.settings import Settings

pytestmark = pytest.mark.train

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base that can read English."""
    from trimtab.training import runtime

    runtime.start()
    folder = tmp_path_factory.mktemp("reader") / "base"
    tiny.make_base(folder, printable)
    return folder


def prepared(algorithm: str, reader: Path, output: Path, steps: int | None = None) -> Run:
    file = Settings.read(EXAMPLES / f"{algorithm}.toml")
    assert file.algorithm == algorithm
    assert file.resolve(file.model) == EXAMPLES / ".." / "demo" / "base"
    trainer = {**file.trainer, **({} if steps is None else {"max_steps": steps})}
    return prepare(replace(file, model=str(reader), output=str(output), trainer=trainer))


def test_there_is_one_for_every_algorithm() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.toml")} == {
        *ALGORITHMS,
        "pruned",
        "sweep",
        "tensorboard",
    }


def test_the_example_of_an_engine(reader: Path, tmp_path: Path) -> None:
    """What it does with an engine: tests/training/sync/test_rollouts.py."""
    file = Settings.read(EXAMPLES / "engine" / "grpo.toml")
    assert file.rollouts is not None and file.publish is not None
    run = prepare(replace(file, model=str(reader), output=str(tmp_path / "out")))
    assert len(run.data.rows) >= 12


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_example_passes_all_checks(algorithm: str, reader: Path, tmp_path: Path) -> None:
    run = prepared(algorithm, reader, tmp_path / "out")
    assert run.args.max_steps == 20
    assert len(run.data.rows) >= 12


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_example_trains(algorithm: str, reader: Path, tmp_path: Path) -> None:
    run = prepared(algorithm, reader, tmp_path / "out", steps=12 if algorithm == "dpo" else 1)
    if run.file.samples is not None:  # a random model says nothing right: any answer will do
        right = iter(range(10**6))
        assert run.reward is not None
        any_answer = replace(
            run.reward,
            function=lambda completions, **_: [float(next(right) % 2) for _ in completions],
        )
        samples = replace(run.file.samples, max_completion_length=32)
        run = replace(run, reward=any_answer, file=replace(run.file, samples=samples))
    with progress_bars() as bars:
        result = execute(run, bars)
    assert result["steps"] == run.args.max_steps
    assert result["update"]["num_changed_outside_mask"] == 0


def test_example_of_a_pruned_model(base: tuple[Path, object], tmp_path: Path) -> None:
    from trimtab.masks.mask import Mask
    from trimtab.masks.pruning import prune, survivors

    file = Settings.read(EXAMPLES / "pruned.toml")
    demo = EXAMPLES / ".." / "demo"
    assert file.resolve(file.model) == demo / "pruned"
    assert file.resolve(file.mask) == demo / "mask-alive.safetensors"
    prune(base[0], tmp_path / "pruned", sparsity=0.3)
    alive = survivors(tmp_path / "pruned")
    changed = Mask.from_arrays({name: alive.array(name) for name in alive}).random_like(0)
    (alive & changed).save(tmp_path / "mask-alive.safetensors")
    run = prepare(
        replace(
            file,
            model=str(tmp_path / "pruned"),
            mask=str(tmp_path / "mask-alive.safetensors"),
            output=str(tmp_path / "out"),
            trainer={**file.trainer, "max_steps": 1},
        )
    )
    with progress_bars() as bars:
        result = execute(run, bars)
    assert result["update"]["num_changed"] > 0
    assert result["update"]["num_changed_outside_mask"] == 0
    after = survivors(tmp_path / "out" / "model")
    for name in alive:
        assert not (after.array(name) & ~alive.array(name)).any()
