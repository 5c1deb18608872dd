"""Every run file in `examples/` passes all checks, with the tiny base in place of its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trimtab.training.runs.algorithms import ALGORITHMS
from trimtab.training.runs.prepare import prepare
from trimtab.training.runs.run_file import RunFile

pytestmark = pytest.mark.train

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_there_is_one_for_every_algorithm() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.toml")} == set(ALGORITHMS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_example(algorithm: str, base: tuple[Path, dict[str, Any]]) -> None:
    file = RunFile.read(EXAMPLES / f"{algorithm}.toml")
    assert file.algorithm == algorithm
    assert file.resolve(file.model) == EXAMPLES / ".." / "demo" / "base"
    run = prepare(replace(file, model=str(base[0])))
    assert run.args.max_steps == 20
    assert len(run.rows.rows) >= 12
