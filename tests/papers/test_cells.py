"""Scales and their cells: what is run, where it lies, and what comes before it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from trimtab.errors import SettingsError
from trimtab.papers.library import PaperCell, Scale, cells_of, papers_folder

SMALL = Scale.read(papers_folder() / "scales" / "small")
SCALES = sorted(path.parent for path in papers_folder().glob("scales/*/scale.toml"))


def cell(name: str, seed: int = 0, root: Path = Path("out/small")) -> PaperCell:
    """A cell of the scale `small`."""
    return cells_of(SMALL, [name], [seed], root)[-1]


def test_a_cell_is_its_run_file_with_keys_set() -> None:
    content = cell("grpo-lr-3e-5", seed=2).cell.content
    plain = tomllib.loads((SMALL.folder / "runs" / "grpo.toml").read_text("utf-8"))
    assert content["trainer"] == {**plain["trainer"], "learning_rate": 3e-5}
    assert content["seed"] == 2
    assert content["model"] == str(Path("out/small/base").resolve())
    assert content["data"] == plain["data"]


def test_a_masked_cell_names_what_its_mask_is_of() -> None:
    one = cell("grpo-matched", seed=1).cell
    assert (one.mask, one.from_others) == ("matched", {"mask": "matched of grpo"})
    assert [other.name for other in one.needs] == ["grpo/seed-1"]


def test_a_cell_that_starts_from_another() -> None:
    one = cell("grpo-after-sft", seed=1)
    assert one.cell.starts_from() == Path("out/small/cells/sft/seed-1/out/model")
    assert one.base == Path("out/small/base")


def test_what_is_needed_comes_before() -> None:
    names = [one.name for one in cells_of(SMALL, ["grpo-own", "sft"], [0, 1], Path("out"))]
    assert names == [
        "grpo/seed-0",
        "grpo-own/seed-0",
        "sft/seed-0",
        "grpo/seed-1",
        "grpo-own/seed-1",
        "sft/seed-1",
    ]


def test_more_seeds_where_they_can_be_afforded(tmp_path: Path) -> None:
    text = """
    base = "tiny"
    minutes = 2
    evaluate = { file = "data/a.jsonl", pattern = "(.)", max_tokens = 1, samples = 1 }
    arm = [
        { name = "a", run = "run.toml" },
        { name = "b", run = "run.toml", start = "a", more_seeds = [2], minutes = 8 },
        { name = "c", run = "run.toml" },
    ]
    """
    one = scale(tmp_path, text)
    cells = cells_of(one, ["c", "b"], [1, 0], tmp_path, with_more_seeds=True)
    result = [(cell.name, cell.minutes) for cell in cells]
    assert result == [
        ("c/seed-1", 2),
        ("a/seed-1", 2),
        ("b/seed-1", 8),
        ("c/seed-0", 2),
        ("a/seed-0", 2),
        ("b/seed-0", 8),
        ("a/seed-2", 2),
        ("b/seed-2", 8),
    ]
    assert cells_of(one, ["c", "b"], [1, 0], tmp_path) == cells[:6]


@pytest.mark.parametrize("folder", SCALES, ids=lambda folder: folder.name)
def test_every_cell_is_a_run_that_can_be_meant(folder: Path, tmp_path: Path) -> None:
    scale = Scale.read(folder)
    for one in cells_of(scale, scale.arms, [0], tmp_path):
        read = one.cell.file()
        assert read.resolve(read.model) == (tmp_path / "base").resolve()
        assert read.data.file is not None and read.resolve(read.data.file).is_file()
        assert one.questions.is_file()


@pytest.mark.parametrize("folder", SCALES, ids=lambda folder: folder.name)
def test_questions_were_not_trained_on(folder: Path) -> None:
    """In both orders: who has seen 3 + 4 may know 4 + 3."""
    import json

    def prompts(path: Path) -> set[frozenset[str]]:
        lines = path.read_text("utf-8").splitlines()
        last = (json.loads(line)["prompt"].splitlines()[-1].rstrip("=") for line in lines)
        return {frozenset(sum.split("+")) if "+" in sum else frozenset([sum]) for sum in last}

    data = folder / "data"
    for held_out in data.glob("*-held-out.jsonl"):
        task = held_out.name.partition("-")[0]
        for trained in set(data.glob(f"{task}-*.jsonl")) - {held_out}:
            assert prompts(trained) and not prompts(trained) & prompts(held_out)


@pytest.mark.parametrize("path", sorted(papers_folder().glob("scales/*/data/*.jsonl")))
def test_answers_are_right(path: Path) -> None:
    import json

    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        sum = row["prompt"].splitlines()[-1].rstrip("=")
        a, sign, b = sum.partition("+") if "+" in sum else sum.partition("-")
        right = str(int(a) + int(b) if sign == "+" else int(a) - int(b))
        given = [row[key] for key in ("answer", "completion", "chosen") if key in row]
        assert given == [right]
        assert row.get("rejected") != right
        assert row.get("level", len(right)) == len(right)


def scale(folder: Path, text: str) -> Scale:
    """A scale of this description."""
    (folder / "run.toml").write_text("", "utf-8")
    (folder / "scale.toml").write_text(text, "utf-8")
    return Scale.read(folder)


def test_what_a_scale_gets_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = """
    base = "huge"
    [[arm]]
    name = "a"
    run = "no.toml"
    of = "b"
    [[arm]]
    name = "a"
    run = "run.toml"
    more_seeds = [1, -1]
    [[arm]]
    name = "b"
    run = "run.toml"
    mask = "odd"
    of = "a"
    minutes = "two"
    [[arm]]
    name = "c"
    run = "run.toml"
    more_seeds = 3
    """
    with pytest.raises(SettingsError) as caught:
        scale(tmp_path, text)
    message = str(caught.value)
    for part in (
        'base is "huge"',
        "no.toml is not a file",
        "needs b",
        "both of mask and of",
        "two arms",
        'mask is "odd"',
        "more_seeds is [1, -1]",
        "more_seeds is 3",
        'minutes is "two"',
        "[evaluate]",
        "the scale lacks minutes",
    ):
        assert part in message
