"""Every command that the documentation shows runs on tiny models.

All commands of the first three pages (`FIRST`), including generated ones, run in one folder from
top to bottom, after `make demo`. The commands of each other page run in order in a folder with what
the page needs (`world.SUPPOSED`). All must succeed. Commands that would take too long, or need what
tests do not have, are in `CUT`, in the stand-ins and in `NOT_INSTALLED`, each with its reason.
"""

from __future__ import annotations

import doctest
import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from string import printable
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

from tests.docs import world
from tests.docs.pages import PAGES, ROOT, Block, Command, commands_of, steps
from tests.docs.test_named_commands import understood
from tests.training import tiny
from trimtab.cli import main

FIRST = ("README.md", "docs/quickstart.md", "docs/tutorial.md")
"""The pages whose commands a reader runs first, in this order, in one folder."""


class Cut(NamedTuple):
    """A shorter form of a command that a page shows.

    Attributes:
        why: The reason.
        more: Options at its end.
        instead: A word of it -> its replacement.
    """

    why: str
    more: tuple[str, ...] = ()
    instead: Mapping[str, str] = {}


FRAGILE = Cut(
    "144 conditions of 32 questions and 18 passages",
    ("--noise", "sign", "--levels", "0.3", "--seeds", "1", "--questions", "4", "--passages", "2"),
)

CUT: Mapping[str, Cut] = {
    "demo --controls": Cut("seven runs of 20 steps", ("--steps", "3")),
    "evaluate full sub random --base base --data math500.jsonl --verifier math --by level "
    "--max-tokens 2048": Cut("the tiny model has a context of 2048", ("--max-tokens", "8")),
    "evaluate out/model --base base --task reasoning_gym:chain_sum --by num_terms "
    "--config max_terms=6": Cut("500 questions", ("--questions", "5", "--max-tokens", "4")),
    "robustness tuned/ --mask m.safetensors --base base/ --task addition --html robustness.html": (
        FRAGILE
    ),
    "paper run mukherjee-2025 --scale tiny": Cut("three seeds", ("--seeds", "0,1")),
    "sweep sweep.toml --jobs 2": Cut("24 processes", instead={"sweep.toml": "few.toml"}),
}
"""A command as it is shown -> how it is cut short."""

NOT_INSTALLED = {
    "reasoning_gym": "the extra `tasks`, one package of which needs a C compiler",
}
"""A word of a command begins with this package -> why it may be missing; then it is only parsed."""

ON_HUB = "org/"
"""Words of commands that need the hub begin so; they are only parsed, and run by `tests/deltas`."""

WRITES = {"-o", "--output", "--html", "--survivors", "--figures"}
"""Options that name what is there afterwards."""

ELLIPSIS = {"", "  …"}

TOLD_OTHERWISE = {
    "  tokens per step  about 29 in 4 sequences in every cell": "a token for each character here",
}
"""A line that a page says is printed -> why it is another here."""


def suites_of(tasks: list[str]) -> dict[str, Any]:
    """What lm-evaluation-harness returns, in its form."""
    return {
        "results": {
            task: {"alias": task, "acc,none": 0.5, "acc_stderr,none": 0.1} for task in tasks
        },
        "versions": dict.fromkeys(tasks, 1),
        "n-shot": dict.fromkeys(tasks, 0),
        "n-samples": {task: {"original": 4, "effective": 4} for task in tasks},
    }


def stand_in_for_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-evaluation-harness loads its tasks' data from a hub; a real one is in `test_suites`."""
    known = {"arc_easy", "hellaswag", "my_task"}
    modules: dict[str, Any] = {
        "lm_eval": {"simple_evaluate": lambda tasks, **_: suites_of(tasks)},
        "lm_eval.tasks": {"TaskManager": lambda **_: SimpleNamespace(all_tasks=known)},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": dict},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)


def stand_in_for_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's model is not in the project; the papers' tiny one is trained for three steps."""
    from trimtab.papers import bases
    from trimtab.training import demo

    def make_base(folder: Path) -> dict[str, Any]:
        return {**tiny.make_base(folder, printable), "note": "random"}

    monkeypatch.setattr(demo, "train_demo", partial(demo.train_demo, make_base=make_base))
    monkeypatch.setattr(bases, "STEPS", 3)


def missing_package(words: list[str]) -> str | None:
    """The package that a command needs and this machine may not have."""
    needed = [name for name in NOT_INSTALLED if any(word.startswith(name) for word in words)]
    return next((name for name in needed if find_spec(name) is None), None)


@pytest.mark.train
@pytest.mark.filterwarnings("ignore:'protected_args' is deprecated:DeprecationWarning")
def test_a_reader_types_the_first_pages_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in_for_models(monkeypatch)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")  # a checkout has them
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert type_in(["demo", "--steps", "3"]) == 0  # `make demo`
    capsys.readouterr()
    for page in FIRST:
        names: dict[str, Any] = {}
        for step in steps(page):
            if isinstance(step, Block):
                assert follow(step.text, page, names)
            elif step.words[0] == "trimtab":
                run(step, capsys)


def follow(session: str, page: str, names: dict[str, Any]) -> bool:
    """Run a session of Python; whether it prints what the page shows."""
    test = doctest.DocTestParser().get_doctest(session, names, page, page, 0)
    outcome = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(test, clear_globs=False)
    names.update(test.globs)
    return outcome.attempted > 0 and outcome.failed == 0


@pytest.mark.train
@pytest.mark.filterwarnings("ignore:'protected_args' is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands_of(page, "trimtab") and page not in FIRST]
)
def test_the_commands_of_a_page_run(
    page: str,
    shelf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in_for_models(monkeypatch)
    stand_in_for_suites(monkeypatch)
    world.furnish(shelf, page, tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in commands_of(page, "trimtab"):
        run(command, capsys)


def run(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command: it succeeds, writes and prints what the page shows, or fails as shown."""
    words = command.words[1:]
    if missing_package(words) or any(word.startswith(ON_HUB) for word in words):
        understood(words)
        return
    code = type_in(words)
    printed, errors = capsys.readouterr()
    is_refused = any(line.startswith("trimtab: ") for line in command.shown)
    assert code == int(is_refused), f"trimtab {shlex.join(words)}: {errors}"
    for option, value in pairwise(words):
        if option in WRITES:
            assert Path(value).exists(), (words, value)
    if command.piped:
        assert filtered(printed, command.piped) is not None
    expected = {*command.shown} - ELLIPSIS - TOLD_OTHERWISE.keys()
    assert expected <= {*printed.splitlines(), *errors.splitlines()}, words


def type_in(words: list[str]) -> object:
    """Run a command as the page shows it, or as in `CUT`; its exit code."""
    cut = CUT.get(shlex.join(words), Cut("nothing"))
    with pytest.raises(SystemExit) as stop:
        main([*(cut.instead.get(word, word) for word in words), *cut.more])
    return stop.value.code


def filtered(printed: str, piped: str) -> Any:
    """What `jq .a.b.c` finds."""
    program, path = shlex.split(piped, comments=True)
    assert program == "jq"
    value = json.loads(printed)
    for key in path.removeprefix(".").split("."):
        value = value[key]
    return value


def test_nothing_is_cut_that_no_page_shows() -> None:
    shown = [command for page in PAGES for command in commands_of(page, "trimtab")]
    assert len(shown) > 40
    assert CUT.keys() <= {shlex.join(command.words[1:]) for command in shown}
    assert world.SUPPOSED.keys() <= PAGES.keys()
    assert TOLD_OTHERWISE.keys() <= {line for command in shown for line in command.shown}
