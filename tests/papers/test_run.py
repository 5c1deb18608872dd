"""`trimtab paper`, from training to verdict, with a base that has learned next to nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.golden.stored import Compare
from trimtab import compare
from trimtab.cli import main
from trimtab.errors import OutputExistsError
from trimtab.papers import bases, run
from trimtab.papers.library import papers_folder, read_paper
from trimtab.papers.run import plan_paper, run_paper
from trimtab.processes import Interrupted

pytestmark = pytest.mark.train

PAPER = read_paper("mukherjee-2025", papers_folder())


def call(*arguments: object) -> int:
    """Run the command; its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the scale `tiny` was run under two seeds; its base is trained for three steps."""
    folder = tmp_path_factory.mktemp("papers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bases, "STEPS", 3)
        arguments = ("--scale", "tiny", "--seeds", "0,1", "--out", folder)
        code = call("paper", "run", PAPER.id, *arguments, "-o", folder / "result.json")
        assert code == 0
        yield folder


def test_every_claim_is_told(out: Path) -> None:
    data = json.loads((out / "result.json").read_text("utf-8"))
    ids = [claim.id for claim in PAPER.claims] + [pair.id for pair in PAPER.public]
    assert [claim["id"] for claim in data["claims"]] == ids
    by_id = {claim["id"]: claim for claim in data["claims"]}
    first = by_id["fig-1-rl-sparser"]
    assert first["n"] == 2 and first["interval"] is not None
    assert first["measured"] == pytest.approx(
        sum(values(first, 1).values()) / 2 - sum(values(first, 2).values()) / 2
    )
    assert by_id["table-4-seed"]["trials"][0]["values"].keys() == {"0-1"}
    assert by_id["table-3-accuracy"]["verdict"] == "not testable here"
    assert by_id["tulu-3-8b-dpo"]["verdict"] == "not testable here"
    assert all(data["scale"]["cells"].values())
    assert data["provenance"]["command"].startswith("trimtab paper run")


def values(claim: dict[str, Any], trial: int) -> dict[str, float]:
    """What was measured by seed."""
    one: dict[str, float] = claim["trials"][trial]["values"]
    return one


def test_figures_are_those_of_the_runs(out: Path) -> None:
    """The sparsity by seed is that of the trained checkpoints, as `train` itself counted it."""
    data = json.loads((out / "result.json").read_text("utf-8"))
    (claim,) = (claim for claim in data["claims"] if claim["id"] == "fig-1-rl-sparser")
    for trial, arm in ((1, "grpo"), (2, "sft")):
        for seed, value in values(claim, trial).items():
            path = out / "tiny" / "cells" / arm / f"seed-{seed}" / "out" / "result.json"
            update = json.loads(path.read_text("utf-8"))["update"]
            assert value == pytest.approx(1 - update["num_changed"] / update["num_elements"])


def test_a_second_call_trains_nothing(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_paper(PAPER, "tiny", out, seeds=[0, 1])
    assert plan.missing == [] and plan.minutes == 0

    with pytest.MonkeyPatch.context() as patch:
        for name in ("compare", "evaluate", "overlap"):
            patch.setattr(run, name, None)  # it would fail
        again = run_paper(plan).to_dict()
    first = json.loads((out / "result.json").read_text("utf-8"))
    assert again["claims"] == first["claims"]


def test_runs_of_other_settings_are_refused(out: Path) -> None:
    """Also where nothing is trained: figures of other runs would be told as those of these."""
    path = out / "tiny/cells/sft/seed-1/out/resolved.json"
    before = path.read_text("utf-8")
    path.write_text(before.replace('"max_steps": 20', '"max_steps": 40'), "utf-8")
    plan = plan_paper(PAPER, "tiny", out, seeds=[0, 1])
    with pytest.raises(OutputExistsError, match=r"trainer.max_steps=40 \(now 20\)"):
        run_paper(plan, trains=False)
    path.write_text(before, "utf-8")


def test_what_another_run_finishes_meanwhile_is_not_measured(out: Path) -> None:
    """A result says of each cell one thing: it is finished and measured, or neither."""
    late = out / "tiny/cells/sft/seed-1/out/result.json"
    hidden = late.rename(late.with_suffix(".hidden"))
    comparison = out / "tiny/cells/grpo/seed-0/comparison.json"
    comparison.unlink()

    def comparing(*arguments: Any, **more: Any) -> Any:
        hidden.rename(late)
        return compare(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "compare", comparing)
        data = run_paper(plan_paper(PAPER, "tiny", out, seeds=[0, 1]), trains=False).to_dict()
    assert late.exists()
    assert [name for name, is_done in data["scale"]["cells"].items() if not is_done] == [
        "sft/seed-1"
    ]
    (claim,) = (claim for claim in data["claims"] if claim["id"] == "fig-1-rl-sparser")
    difference, _, sft = claim["trials"]
    assert (sft["missing"], sft["values"].keys()) == (["sft/seed-1"], {"0"})
    assert difference["other_values"].keys() == {"0"}


def test_an_interrupted_call_keeps_what_is_finished(out: Path, tmp_path: Path) -> None:
    asked = iter([False, True])  # before the first claim is measured, and before the second

    def stop() -> bool:
        return next(asked, True)

    plan = plan_paper(PAPER, "tiny", out, seeds=[0, 1])
    with pytest.raises(Interrupted, match="the same command resumes: 0 of 4 runs are missing"):
        run_paper(plan, trains=False, stop=stop)


def test_a_figure_that_cannot_be_read_is_told(out: Path) -> None:
    path = out / "tiny/cells/sft/seed-0/comparison.json"
    before = path.read_text("utf-8")
    path.write_text("{}", "utf-8")
    plan = plan_paper(PAPER, "tiny", out, seeds=[0, 1])
    data = run_paper(plan, trains=False).to_dict()
    path.write_text(before, "utf-8")
    (why,) = {why for name, why in data["scale"]["failed"].items() if name.endswith("of sft")}
    assert why == "sft/seed-0: no sparsity can be read from its comparison (KeyError('total'))"


def test_the_report_draws_it_again(
    out: Path, capsys: pytest.CaptureFixture[str], golden: Compare
) -> None:
    compared, data = golden("paper-run"), json.loads((out / "result.json").read_text("utf-8"))
    compared.data("result.json", data, figures=False)
    compared.data("claims.json", [claim["id"] for claim in data["claims"]])
    compared.check()
    assert call("report", out / "result.json", "-o", out / "report.html") == 0
    assert call("report", out / "result.json") == 0
    text = capsys.readouterr().out
    assert "fig-1-rl-sparser" in text and "theirs: RL, least 68.5" in text
    page = (out / "report.html").read_text("utf-8")
    assert "RL leaves more weights unchanged than SFT does." in page


def test_what_was_not_run_is_said(tmp_path: Path) -> None:
    """Without training nothing is invented: no figure, no verdict, and what is missing named."""
    plan = plan_paper(PAPER, "tiny", tmp_path)
    data = run_paper(plan, trains=False).to_dict()
    claim = data["claims"][0]
    assert (claim["verdict"], claim["measured"], claim["n"]) == ("not yet run", None, 0)
    assert "grpo/seed-0" in claim["trials"][0]["missing"]
    assert not (tmp_path / "tiny").exists()


def test_the_plan_says_what_it_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--scale", "small", "--out", tmp_path, "--dry-run")
    assert call("paper", "run", PAPER.id, *arguments) == 0
    text = capsys.readouterr().out
    assert "0 finished" in text and "hours on one CPU core" in text
    assert call("paper", "run", PAPER.id, *arguments, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["num_missing"] == len(data["cells"]) and data["minutes"] > 60


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("paper", "list") == 0
    assert "mukherjee-2025" in capsys.readouterr().out
    assert call("paper", "show", "critics") == 0
    text = capsys.readouterr().out
    assert "razor-fp32-dense" in text and "tried at small: unchanged by bits (grpo-fp32)" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nobody-2025"], 1, "no paper nobody-2025"),
        (["critics", "--scale", "huge"], 1, "no scale huge, only small"),
        (["critics", "--seeds", "one"], 2, "expected whole numbers"),
        (["critics", "--seeds", "0,-1"], 2, "expected whole numbers"),
    ],
)
def test_wrong_use(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("paper", "run", *arguments) == code
    assert message in capsys.readouterr().err
