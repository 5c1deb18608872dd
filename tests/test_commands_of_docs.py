"""The commands that the documentation shows: all are understood, and those of the tutorial run.

Commands inside blocks that cog prints were run when they were printed, and are left out here.
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest

from tests.training import tiny
from trimtab.cli import main, trimtab

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = re.compile(r"<!-- \[\[\[cog.*?\[\[\[end\]\]\] -->", re.S)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.S | re.M)


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """Fenced blocks of a page that nobody generated."""
    for language, text in FENCE.findall(GENERATED.sub("", page.read_text("utf-8"))):
        if language in languages:
            yield text


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each `trimtab` command of a page, without `trimtab`."""
    for text in blocks(page, "console", "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ ").partition(" | ")[0], comments=True)
            if words and words[0] == "trimtab":
                yield words[1:]


def understood(words: list[str]) -> None:
    """Parse a command as the command line would, down to its verb; nothing is run."""
    command: click.Command = trimtab
    context = command.make_context("trimtab", list(words), obj="")
    while isinstance(command, click.Group):
        rest = [*context.protected_args, *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = found
        context = command.make_context(name, rest, parent=context)


SHOWN = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(
    "words", [pytest.param(words, id=f"{page.stem}: {shlex.join(words)}") for page, words in SHOWN]
)
@pytest.mark.filterwarnings("ignore:'protected_args' is deprecated:DeprecationWarning")
def test_a_command_is_understood(words: list[str]) -> None:
    understood(words)


@pytest.mark.filterwarnings("ignore:'protected_args' is deprecated:DeprecationWarning")
def test_a_wrong_command_is_not() -> None:
    for wrong in (["compare", "a"], ["mask", "none", "a"], ["evaluate", "a", "--tusk", "addition"]):
        with pytest.raises(click.UsageError):
            understood(wrong)


def test_python_is_python_and_imports_what_there_is() -> None:
    seen = 0
    for page in PAGES:
        for text in blocks(page, "python"):
            compile(text, str(page), "exec")
            for module, names in re.findall(r"^from (trimtab[\w.]*) import ([^(\n]+)$", text, re.M):
                for name in names.split(","):
                    assert hasattr(importlib.import_module(module), name.strip()), (page, name)
                    seen += 1
    assert seen > 5


@pytest.mark.train
def test_the_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trimtab.training import demo

    def make_base(folder: Path) -> dict[str, Any]:
        return {**tiny.make_base(folder), "note": "random"}

    monkeypatch.setattr(demo, "train_demo", partial(demo.train_demo, make_base=make_base))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    shown = list(commands(ROOT / "docs" / "tutorial.md"))
    assert len(shown) > 10
    for words in shown:
        quick = ["--steps", "3"] if words[0] == "demo" else []
        with pytest.raises(SystemExit) as stop:
            main([*words, *quick])
        assert not stop.value.code, (words, capsys.readouterr().err)
    assert Path("all.html").read_text("utf-8").count("<article") == 4
    assert list(Path("figures").glob("*.svg"))
