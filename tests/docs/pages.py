"""What the pages of the documentation show: their blocks, and the commands in them.

What cog prints was run when it was printed, and is left out here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]

PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
}
"""Name of a page, as `docs/train.md` -> its file."""

GENERATED = re.compile(r"<!-- \[\[\[cog.*?\[\[\[end\]\]\] -->", re.S)
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.S | re.M)


PRINTED = re.compile(r"(?P<asked>\[\[\[cog.*?\]\]\] -->).*?<!-- \[\[\[end\]\]\] -->", re.S)


def by_hand(text: str) -> str:
    """A text without what cog printed into it; what cog was asked for stays."""
    return PRINTED.sub(r"\g<asked>", text)


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str


class Command(NamedTuple):
    """A line of a `console` or `bash` block that somebody would type.

    Attributes:
        words: Of the command.
        piped: What its output goes to, or "".
        shown: The lines that the page says it prints.
    """

    words: list[str]
    piped: str
    shown: list[str]


def prose(page: str) -> str:
    """A page without what was generated and without its blocks."""
    return FENCE.sub("", GENERATED.sub("", PAGES[page].read_text("utf-8")))


def blocks(page: str, *languages: str) -> list[Block]:
    """The blocks of a page that are not generated; of some languages, or all."""
    text = GENERATED.sub("", PAGES[page].read_text("utf-8"))
    found = [Block(*match) for match in FENCE.findall(text)]
    return [block for block in found if not languages or block.language in languages]


def commands(page: str) -> Iterator[Command]:
    """All commands of a page that are not generated, in order."""
    for block in blocks(page, "console", "bash"):
        yield from commands_in(block)


def commands_in(block: Block) -> list[Command]:
    """The commands of a block, in order."""
    found: list[Command] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        if block.language == "bash" or line.startswith("$ "):
            command, _, piped = line.removeprefix("$ ").partition(" | ")
            found.append(Command(shlex.split(command, comments=True), piped, []))
        else:
            assert found, (block, line)
            found[-1].shown.append(line)
    return found


def steps(page: str) -> Iterator[Command | Block]:
    """All commands and Python blocks of a page from top to bottom, generated or not."""
    for match in FENCE.findall(PAGES[page].read_text("utf-8")):
        block = Block(*match)
        if block.language in ("console", "bash"):
            yield from commands_in(block)
        elif block.language in ("pycon", "python", "py"):
            yield block


def commands_of(page: str, program: str) -> list[Command]:
    """Those of one program."""
    return [command for command in commands(page) if command.words[0] == program]


def keys_of(
    value: Any, *, named_by_data: Container[str] = (), elsewhere: Container[str] = ()
) -> Iterator[str]:
    """All keys at any depth of a result whose names its format chose.

    Args:
        value: The result, as plain data.
        named_by_data: Keys of objects whose own keys are data: kinds, seeds, names of tensors.
        elsewhere: Keys of objects that are documented with another format.
    """
    if isinstance(value, list):
        items = [(None, item) for item in value]
    elif isinstance(value, dict):
        items = list(value.items())
    else:
        return
    for key, item in items:
        if key is not None:
            yield key
        if key in elsewhere:
            continue
        inner = list(item.values()) if key in named_by_data and isinstance(item, dict) else item
        yield from keys_of(inner, named_by_data=named_by_data, elsewhere=elsewhere)
