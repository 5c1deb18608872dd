"""Every command that is named anywhere is there: in texts, in help, in run files, in shells.

`test_commands` runs those of trimtab that pages show; here nothing is run. Other programs install,
build or take hours, so of their commands everything that they name must be there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from tests.docs.pages import PAGES, ROOT, Command, commands, prose
from trimtab.cli import trimtab

pytestmark = pytest.mark.filterwarnings("ignore:'protected_args' is deprecated:DeprecationWarning")


def understood(words: list[str]) -> click.Command:
    """Parse a command as the command line would, down to its verb; nothing is run."""
    command: click.Command = trimtab
    context = command.make_context("trimtab", list(words), obj="")
    while isinstance(command, click.Group):
        rest = [*context.protected_args, *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = found
        context = command.make_context(name, rest, parent=context)
    return command


def test_a_wrong_command_is_not_understood() -> None:
    for wrong in (["compare", "a"], ["mask", "none", "a"], ["evaluate", "a", "--tusk", "addition"]):
        with pytest.raises(click.UsageError):
            understood(wrong)


def test_examples_of_help_and_of_run_files_are_understood() -> None:
    helps = [command.epilog or "" for command in below(trimtab)]
    files = [path.read_text("utf-8") for path in sorted((ROOT / "examples").glob("*.toml"))]
    text = "\n".join([*helps, *files])
    found = [shlex.split(line, comments=True) for line in re.findall(r"(?<!`)\btrimtab (.+)", text)]
    assert len(found) > 40
    for words in found:
        understood(words)


@pytest.mark.parametrize("page", PAGES)
def test_generated_commands_are_understood(page: str) -> None:
    """Recorded results ran elsewhere, possibly before an option was renamed."""
    lines = re.findall(r"^\$ trimtab (.+)$", PAGES[page].read_text("utf-8"), re.M)
    for line in lines:
        if not line.endswith("\\"):
            understood(shlex.split(line.partition(" | ")[0], comments=True))


def below(command: click.Command) -> Iterator[click.Command]:
    """A command and all below it."""
    yield command
    if isinstance(command, click.Group):
        for name in command.list_commands(context := click.Context(command)):
            child = command.get_command(context, name)
            assert child is not None
            yield from below(child)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_are_there(page: str) -> None:
    """`trimtab mask survivors` and `make docs` between backquotes exist."""
    for named in re.findall(r"`((?:trimtab|make) [^`\n]+)`", prose(page)):
        program, *words = named.split()
        if program == "make":
            assert words[0] in targets(), named
            continue
        command: click.Command = trimtab
        options = {flag for option in command.params for flag in option.opts}
        for word in words:
            if word.startswith("-"):
                assert word in options, named
            elif isinstance(command, click.Group):
                if word in ("…", "COMMAND"):
                    break
                found = command.get_command(click.Context(command), word)
                assert found is not None, named
                command = found
                options |= {flag for option in command.params for flag in option.opts}


def targets() -> dict[str, set[str]]:
    """Targets of the Makefile -> variables that they use."""
    text = (ROOT / "Makefile").read_text("utf-8")
    rules = re.findall(r"^([a-z-]+):([^\n#]*)(?:##[^\n]*)?\n((?:\t.*\n)*)", text, re.M)
    own = {name: {*re.findall(r"\$\((\w+)\)", recipe)} for name, _, recipe in rules}
    needs = {name: needed.split() for name, needed, _ in rules}
    return {
        name: variables.union(*(own.get(target, set()) for target in needs[name]))
        for name, variables in own.items()
    }


OTHERS = [
    pytest.param(command, id=shlex.join(command.words))
    for page in PAGES
    for command in commands(page)
    if command.words[0] != "trimtab"
]


@pytest.mark.parametrize("command", OTHERS)
def test_a_command_of_another_program_would_find_what_it_names(command: Command) -> None:
    match command.words:
        case ["pip", "install", package]:
            name, _, extras = package.rstrip("]").partition("[")
            project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
            assert name in (".", project["name"])
            assert {*filter(None, extras.split(","))} <= project["optional-dependencies"].keys()
        case ["make", target, *settings]:
            assert {setting.partition("=")[0] for setting in settings} <= targets()[target]
        case [".ci/run"]:
            assert os.access(ROOT / ".ci" / "run", os.X_OK)
        case [".venv/bin/python", "-m", module, *rest]:
            assert find_spec(module) is not None
            for name in rest:
                assert name.startswith("-") or list(ROOT.glob(name)), name
        case [_, "vllm", "serve", _, "--weight-transfer-config", config]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
            assert json.loads(config)["backend"] in project["entry-points"]["vllm.general_plugins"]
        case [*_, "sglang.launch_server", "--model-path", _, "--custom-weight-loader", loader]:
            module, _, function = loader.rpartition(".")
            spec = find_spec(module)
            assert spec is not None and spec.origin is not None
            assert f"\ndef {function}(" in Path(spec.origin).read_text("utf-8")
        case _:
            pytest.fail(f"nobody says how {shlex.join(command.words)} is tested")
