"""What a user can meet is documented: formats and their keys, codes, extras, commands, names.

`tests/test_docs.py` has options, error classes and the formats that its examples are drawn from.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

import pytest

import trimtab
import trimtab.cli
import trimtab.training
from tests.docs.pages import PAGES, ROOT, blocks
from tests.test_docs import COMMANDS

TEXTS = {page: path.read_text("utf-8") for page, path in PAGES.items()}


def section(page: str, title: str) -> str:
    """A page from a heading of the second level to the next."""
    _, heading, rest = TEXTS[page].partition(f"\n## {title}")
    assert heading, title
    return rest.partition("\n## ")[0]


def quoted(text: str) -> set[str]:
    """Names between backquotes; of `parts.file` and `nulls.….z` the last."""
    return set(re.findall(r"`(?:[\w…]*\.)*(\w+)`", text))


@pytest.mark.parametrize("name", trimtab.training.__all__)
def test_every_public_name_of_training(name: str) -> None:
    assert f'heading: "trimtab.training.{name}"' in TEXTS["docs/api.md"]


def test_what_is_shown_imports_public_names_only() -> None:
    public = {"trimtab": trimtab.__all__, "trimtab.training": trimtab.training.__all__}
    num = 0
    for page in PAGES:
        for block in blocks(page, "python", "pycon", "diff"):
            for module, names in re.findall(
                r"^(?:\+|>>> )?from (trimtab[\w.]*) import (.+)$", block.text, re.M
            ):
                num += 1
                assert {*names.split(", ")} <= {*public.get(module, ())}, (page, module, names)
    assert num > 10


def test_every_exit_code() -> None:
    documented = re.findall(r"(\d+) [a-z]", str(trimtab.cli.__doc__).partition("Exit codes:")[2])
    rows = re.findall(r"^\| (\d+) \|", section("docs/errors.md", "Exit codes"), re.M)
    assert rows == documented == ["0", "1", "2", "3", "130", "143"]


@pytest.mark.parametrize("flag", ["--version", "--debug", "--help", "-h"])
def test_every_option_of_trimtab_itself(flag: str) -> None:
    command = COMMANDS["trimtab"]
    assert {flag for option in command.params for flag in option.opts} == {"--version", "--debug"}
    assert flag in TEXTS["docs/cli.md"].partition("\n## ")[0]


def test_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for extra in project["optional-dependencies"].keys() - {"dev"}:
        assert f"`{extra}`" in TEXTS["docs/errors.md"]


@pytest.mark.parametrize("words", [words for words in COMMANDS if words != "trimtab"])
def test_every_command_has_a_page(words: str) -> None:
    """Beside its help: it is called on a page, or a way of making masks is named on theirs."""
    pages = [text for page, text in TEXTS.items() if page != "docs/cli.md"]
    called = any(re.search(rf"{words}(?![\w-])", text) for text in pages)
    group, _, name = words.rpartition(" ")
    assert called or (group == "trimtab mask make" and f"`{name}`" in TEXTS["docs/predict.md"])


def formats() -> Iterator[str]:
    """Names of all formats that are written."""
    for path in (ROOT / "src").rglob("*.py"):
        yield from re.findall(
            r'^(?:    )?FORMAT = "(trimtab\.[\w.]+)"$', path.read_text("utf-8"), re.M
        )


@pytest.mark.parametrize("name", sorted(formats()))
def test_every_format(name: str) -> None:
    assert re.search(rf"`\"?{name}\"?`", TEXTS["docs/formats.md"] + TEXTS["docs/run-files.md"])
