"""The verbs of `trimtab store`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.deltas.building import content_of
from tests.deltas.test_store import base_and_run


def test_the_verbs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, (first, second) = base_and_run(tmp_path, steps=2)
    monkeypatch.chdir(tmp_path)
    assert run("store", "init", "s", "--base", "base").err == f"wrote s: a store for {base}\n"
    added = run("store", "add", "s", first)
    assert added.err.startswith("added step-1: ") and "% of the" in added.err
    assert (
        run("store", "add", "s", second, "--name", "b", "--against", "step-1", "--verify").code == 0
    )
    lines = run("store", "list", "s").out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "step-1", "b", "2"]
    data = json.loads(run("store", "list", "s", "--json").out)
    assert [entry["against"] for entry in data["checkpoints"]] == ["base", "step-1"]
    assert data["base"]["id"] == str(base)
    assert run("store", "checkout", "s", "b", "-o", "out").code == 0
    assert content_of(tmp_path / "out") == content_of(second)
    assert run("store", "verify", "s").out == "2 objects decoded: nothing is wrong\n"
    assert run("store", "verify", "s", "--quick").out == "2 objects opened: nothing is wrong\n"
    assert run("store", "remove", "s", "b").err == "removed b\n"
    assert run("store", "gc", "s").err.startswith("removed 1 object, ")
    code, out, err = run("store", "checkout", "s", "b", "-o", "out2")
    assert (code, out, err) == (1, "", "trimtab: s: no checkpoint 'b': it has step-1\n")
