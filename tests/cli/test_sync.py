"""The verbs of `trimtab sync`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.deltas.building import content_of
from tests.deltas.test_store import base_and_run
from tests.sync.test_slime_wire import Folders, is_same


def test_the_verbs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, (first, second) = base_and_run(tmp_path, steps=2)
    monkeypatch.chdir(tmp_path)
    assert run("sync", "status", "place").err == "place: nothing is published yet\n"
    follow = ("sync", "follow", "place", "--base", base, "-o", "served", "--name", "f")
    assert run(*follow, "--once").err == "nothing is published yet\n"
    publish = ("sync", "publish", "--to", "place", "--base", base)
    assert run(*publish, base).err == "version 0 has these weights: nothing was published\n"
    output = run(*publish, first, "--step", "10").err
    assert re.fullmatch(
        r"published version 1: [\d,]+ of [\d,]+ elements changed, [\d,]+ bytes\n", output
    )
    output = run(*follow, "--once").out
    assert re.fullmatch(r"version 1 \(step 10\): [\d,]+ bytes in 1 link; fetch .*s\n", output)
    assert content_of(tmp_path / "served/current") == content_of(first)
    run(*publish, second)
    lines = run("sync", "status", "place").out.splitlines()
    assert lines[0] == f"version 2, of a run of {base}"
    assert lines[-1] == "f has version 1, 1 version behind"
    data = json.loads(run("sync", "status", "place", "--json").out)
    assert [link["version"] for link in data["chain"]["links"]] == [1, 2]
    assert [each["name"] for each in data["followers"]] == ["f"]
    run(*follow, "--once")
    assert content_of(tmp_path / "served/current") == content_of(second)
    code, _, err = run("sync", "publish", "--to", "place", "--base", first, second)
    assert code == 1 and "with other weights than" in err
    code, _, err = run("sync", "follow", "place", "-o", first, "--once")
    assert code == 1 and "holds something else" in err


def test_following_until_it_is_ended(run: Run, tmp_path: Path) -> None:
    base, (first, second) = base_and_run(tmp_path, steps=2)
    out = tmp_path / "served"
    command = (
        *(sys.executable, "-m", "trimtab", "sync", "follow", tmp_path / "place"),
        *("--base", base, "-o", out, "--poll", "0.05"),
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for number, tuned in enumerate((first, second), 1):
            run("sync", "publish", "--to", tmp_path / "place", "--base", base, tuned)
            assert process.stdout.readline().startswith(f"version {number}: ")
            assert content_of(out / "current") == content_of(tuned)
        process.terminate()
        assert process.wait(30) == 143
    assert not list((tmp_path / "place/followers").iterdir())  # it had no name of its own


def test_a_folder_follows_what_coreweave_writes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cwtrain", reason="cwtrain is not installed: see the Makefile")
    from cwtrain.hotload.delta import write_delta, write_full_snapshot

    monkeypatch.chdir(tmp_path)
    runs = Folders(tmp_path / "run", 4)
    for number in (1, 2, 4):
        write_delta(
            *(runs[number - 1], runs[number], tmp_path / f"place/weight_v{number:06}"),
            version=f"{number:06}",
            base_version=f"{number - 1:06}",
        )
    follow = ("sync", "follow", "place", "-o", "out", "--once")
    code, _, err = run(*follow, "--base", runs[0])
    assert code == 1 and "lead from version 3 to 4" in err and "next whole checkpoint" in err
    write_full_snapshot(runs[3], tmp_path / "place/weight_v000003")
    said = run(*follow).out
    assert said.startswith("version 4: ") and "bytes in 2 links; decode" in said
    assert is_same(tmp_path / "out/current", runs[4])
    assert run("sync", "status", "place").out.startswith("version 4, in slime's layout, in which")
    publish = ("sync", "publish", "--to", "own", "--base", runs[0], "--wire", "slime")
    assert run(*publish, runs[1]).err.startswith("published version 1: ")
    run("sync", "follow", "own", "--base", runs[0], "-o", "second", "--once")
    assert is_same(tmp_path / "second/current", runs[1])
    code, _, err = run(*follow, "--name", "me")
    assert code == 2 and "has no signatures and no names of followers" in err
