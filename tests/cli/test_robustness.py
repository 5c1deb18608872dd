"""`trimtab robustness` as a person meets it."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Run
from tests.training.evaluation.conftest import Pair
from tests.training.evaluation.conftest import pair as pair
from trimtab.cli.evaluate import NOISES
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask

pytestmark = pytest.mark.train


@pytest.fixture
def common(pair: Pair, tmp_path: Path) -> tuple[object, ...]:
    """Checkpoint, mask (every third element) and a short text."""
    changed = extract_mask(*pair)
    shapes = {name: changed.shape(name) for name in changed}
    mask = Mask.from_arrays({n: np.arange(prod(s)).reshape(s) % 3 == 0 for n, s in shapes.items()})
    mask.save(tmp_path / "m.safetensors")
    (tmp_path / "text.txt").write_text("Some words.\n\nMore of them.\n")
    options = ("--base", pair.base, "--mask", tmp_path / "m.safetensors")
    return ("robustness", pair.tuned, *options, "--text", tmp_path / "text.txt")


def test_a_table_json_and_a_page(run: Run, common: tuple[object, ...], tmp_path: Path) -> None:
    path, page = tmp_path / "r.json", tmp_path / "r.html"
    asked = ("--task", "addition", "--questions", 4, "--noise", "sign", "--levels", "0.5,1")
    code, out, err = run(*common, *asked, "--seeds", 2, "-o", path, "--html", page)
    assert (code, out, err) == (0, "", f"wrote {path}\nwrote {page}\n")
    data = json.loads(path.read_text())
    assert data["provenance"]["command"].startswith("trimtab robustness")
    assert [(row["noise"], row["level"]) for row in data["summaries"]] == [
        ("sign", 0.5), ("sign", 1.0),
    ]  # fmt: skip
    assert len(data["cells"]) == 2 * 2 * 4
    code, out, err = run("report", path)
    assert (code, err) == (0, "")
    assert "addition: 4 questions" in out
    assert "sign: signs flipped in a share of the weights" in out
    drawn = tmp_path / "again.html"
    assert run("report", path, "-o", drawn).code == 0
    assert drawn.read_text() == page.read_text()


INTERRUPTING = """
import os, signal
from itertools import count
from pathlib import Path

calls = count(1)

def interrupting(completions, **columns):
    marker = Path(__file__).with_name("interrupted")
    if next(calls) == 6 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGINT)
    return [float(len(text)) for text in completions]
"""


def test_a_probe_that_was_interrupted_goes_on(
    run: Run, common: tuple[object, ...], tmp_path: Path
) -> None:
    """By a real Ctrl-C, while answers are judged."""
    (tmp_path / "mine.py").write_text(INTERRUPTING)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    judged = ("--data", tmp_path / "rows.jsonl", "--reward", f"{tmp_path / 'mine.py'}:interrupting")
    options = (*common, *judged, "--max-tokens", 2, "--passages", 1, "--levels", "0.3,1", "-o")
    path, kept = tmp_path / "r.json", tmp_path / "r.partial.jsonl"
    code, out, err = run(*options, path)
    how = "the same command resumes and keeps what is finished"
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == f"trimtab: interrupted: {how}"
    assert not path.exists()
    finished = kept.read_bytes().splitlines()[1:]
    assert 0 < len(finished) < 6
    code, _, err = run(*options, path, "--levels", "0.7")
    assert (code, err.count("\n")) == (1, 1)
    assert f"{kept} holds the finished part of a probe with settings.levels=" in err
    for file in (path, tmp_path / "whole.json"):
        code, out, err = run(*options, file)
        assert (code, out, err.splitlines()[-1]) == (0, "", f"wrote {file}")
    assert not list(tmp_path.glob("*.partial.jsonl"))
    result, wanted = (json.loads(file.read_text()) for file in (path, tmp_path / "whole.json"))
    for data in (result, wanted):
        data["provenance"] |= {"date": "", "command": ""}
    assert result == wanted
    assert [json.loads(line) for line in finished] == result["cells"][: len(finished)]


def test_every_noise_without_questions(run: Run, common: tuple[object, ...]) -> None:
    code, out, err = run(*common, "--levels", "1", "--seeds", 1, "--passages", 1, "--json")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("16 conditions; nothing is kept if this is interrupted: with -o")
    data = json.loads(out)
    assert data["settings"]["noises"] == list(NOISES)
    assert data["text"]["num_passages"] == 1
    assert data["questions"] is None


def test_the_noises_are_those_of_the_probe() -> None:
    from trimtab.training.perturbation import noise

    assert tuple(noise.NOISES) == NOISES


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--levels", "much"), 2, "'much': expected numbers and commas between them"),
        (("--noise", "salt"), 2, "'salt' is not one of"),
        (("--levels", "2"), 1, "sign at level 2: it is a share of the elements, at most 1"),
        (("--levels", "0.1,0.1"), 1, "a level is given twice"),
        (("--questions", 3), 2, "--questions needs --run, --task or --data"),
    ],
)
def test_what_cannot_be_meant(
    run: Run, common: tuple[object, ...], options: tuple[object, ...], code: int, words: str
) -> None:
    found = run(*common, *options)
    assert found.code == code
    assert words in " ".join(found.err.split())
