"""Papers use what anybody can use: names that the documentation lists, and the command line."""

from __future__ import annotations

import ast
from pathlib import Path

import trimtab
from trimtab import papers

LAYER = Path(papers.__file__).parent
DOCUMENTED = Path(trimtab.__file__).parents[2] / "docs" / "api.md"

BESIDE = {
    "trimtab.errors": "messages of a command",
    "trimtab.inputs": "files of strangers",
    "trimtab.outputs": "folders that are whole or absent",
    "trimtab.processes": "Ctrl-C",
    "trimtab.words": "counted nouns, and what Python shows",
    "trimtab.results.records.made_now": "the provenance that every result has",
    "trimtab.results.result": "what every result can do",
    "trimtab.results.schema": "reading and writing results",
    "trimtab.results.statistics": "the intervals of sweeps",
    "trimtab.results.tables": "reading TOML",
    "trimtab.training.evaluation.questions.reward_of": "as `evaluate --verifier`",
    "trimtab.training.folders": "JSON of runs",
    "trimtab.training.runs.base_model.BaseModel": "models that are opened once",
    "trimtab.training.runs.settings.RewardTable": "as `evaluate --verifier`",
    "trimtab.training.runtime": "torch, started quietly",
    "trimtab.training.smollm2.write_base": "the base of the demo",
    "trimtab.training.sweeps": "papers are sweeps",
}
"""What is used beside the documented names, and why."""


def imported(path: Path) -> set[str]:
    """Names of trimtab that a module imports from outside the layer."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    inside = ("trimtab.papers.", "trimtab.papers")
    return {name for name in found if name.startswith("trimtab") and not name.startswith(inside)}


def test_papers_use_what_is_documented() -> None:
    public = {f"trimtab.{name}" for name in trimtab.__all__} | {"trimtab"}
    lines = DOCUMENTED.read_text("utf-8").splitlines()
    public |= {line.removeprefix("::: ").strip() for line in lines if line.startswith("::: ")}
    allowed = (*public, *BESIDE)
    for path in LAYER.rglob("*.py"):
        strange = {
            name
            for name in imported(path)
            if name not in allowed and not any(name.startswith(f"{one}.") for one in BESIDE)
        }
        assert not strange, f"{path.name} imports {sorted(strange)}"


def test_nothing_is_allowed_that_is_not_used() -> None:
    used = {name for path in LAYER.rglob("*.py") for name in imported(path)}
    unused = [one for one in BESIDE if not any(f"{name}.".startswith(f"{one}.") for name in used)]
    assert not unused


def test_nothing_below_imports_papers() -> None:
    source = Path(trimtab.__file__).parent
    by_name = source / "report" / "__init__.py"  # whose table of results names their modules
    for path in set(source.rglob("*.py")) - {by_name}:
        if not path.is_relative_to(LAYER) and not path.is_relative_to(source / "cli"):
            assert "trimtab.papers" not in path.read_text("utf-8"), path
