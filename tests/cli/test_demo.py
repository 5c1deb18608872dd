"""The whole command on a tiny model: what is printed, and what lies in the folder."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.golden.stored import Compare, Golden
from tests.report.page import Page
from tests.training import tiny
from trimtab.cli import main
from trimtab.masks.identity import Identity
from trimtab.measure.compare_result import Comparison
from trimtab.results.schema import to_plain
from trimtab.training import demo

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "demo"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    def make_base(folder: Path) -> dict[str, Any]:
        return {**tiny.make_base(folder), "note": "random"}

    monkeypatch.setattr(demo, "train_demo", partial(demo.train_demo, make_base=make_base))
    monkeypatch.setattr("sys.argv", ["trimtab", "demo", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "--steps", "3", *arguments])
    assert not exit_.value.code


def compared(golden: Golden, out: Path, printed: str) -> Golden:
    """Compare what is printed, what lies in the folder, and the record."""
    golden.text("text.txt", printed, figures=False)
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    golden.text("files.txt", "\n".join(map(str, files)))
    record = json.loads((out / "demo.json").read_text("utf-8"))
    results = {part: record.pop(part) for part in ("comparisons", "identities")}
    golden.data("demo.json", record, figures=False)
    golden.data(
        "results.json", {part: list(map(list, item.values())) for part, item in results.items()}
    )
    return golden


def test_demo_trains_the_mask(
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    golden: Compare,
) -> None:
    monkeypatch.chdir(out.parent)
    run(monkeypatch, "--out", out.name)
    printed = capsys.readouterr().out
    compared(golden("demo"), out, printed).check()
    assert "Training only the mask" in printed
    assert "--controls" in printed
    data = json.loads((out / "demo.json").read_text("utf-8"))
    assert list(data["arms"]) == ["grpo", "sft", "grpo-mask"]
    assert list(data["comparisons"]) == ["GRPO", "SFT"]
    check = Identity.from_dict(json.loads((out / "identity-grpo-mask.json").read_text("utf-8")))
    assert data["identities"]["GRPO mask"]["total"] == to_plain(check.total)
    assert check.sub_stayed_outside
    assert check.full_stayed_outside
    assert check.provenance["command"].startswith("trimtab demo")
    assert check.mask.id == f"{out.name}/mask.safetensors"
    Comparison.from_dict(json.loads((out / "grpo.json").read_text("utf-8")))
    page = Page((out / "report.html").read_text("utf-8"))
    assert [row[0] for row in page.table("Compared with GRPO").body] == ["GRPO", "GRPO mask"]


def test_controls_stand_beside_it(
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    golden: Compare,
) -> None:
    monkeypatch.chdir(out.parent)
    run(monkeypatch, "--out", out.name, "--controls")
    printed = capsys.readouterr().out
    drawn = compared(golden("demo-controls"), out, printed)
    drawn.page((out / "report.html").read_text("utf-8"), figures=False)
    drawn.check()
    runs = ["GRPO", "GRPO mask", "random mask", "matched mask", "complement mask", "GRPO seed 1"]
    for label in runs:
        assert f"after {label}" in printed
    assert "trimtab demo --controls" not in printed
    assert "it has the same number of each size" in " ".join(printed.split())
    data = json.loads((out / "demo.json").read_text("utf-8"))
    assert list(data["comparisons"]) == ["GRPO", "SFT", "GRPO seed 1"]
    assert list(data["identities"]) == runs[1:]
    page = Page((out / "report.html").read_text("utf-8"))
    assert [row[0] for row in page.table("Compared with GRPO").body] == runs
    regions = page.table("Inside the mask, outside it, and all")
    assert list(dict.fromkeys(row[0] for row in regions.body)) == runs[1:5]
