"""What every verb prints, measures and draws, compared with its golden files.

The way in is the command line alone, so that these tests hold whatever moves behind it. A change
that is wanted is written by `pytest tests/golden --update-golden`, and its diff is reviewed.
"""

from __future__ import annotations

import json
from pathlib import Path
from shlex import split

import pytest

from tests.golden.cases import MEASURED, SESSIONS, STORED
from tests.golden.conftest import Compare, World
from tests.golden.normal import Skeleton, data_of, text_of
from tests.golden.stored import STORED as FILES
from tests.golden.stored import Golden
from tests.golden.training import TRAINED
from tests.golden.world import bits_of, type_in, typed


def drawn(golden: Golden, results: str, folder: Path) -> None:
    """Compare what `trimtab report` makes of stored results: text, page and charts."""
    command = f"report {results}"
    golden.text("text.txt", text_of(typed(command, type_in(command)), folder))
    page = Path(f"{folder.name}.html")
    printed = type_in(f"{command} -o {page} --force")
    assert (printed.code, printed.out, printed.err) == (0, "", f"wrote {page}\n")
    skeleton = Skeleton(page.read_text("utf-8"))
    golden.text("page.txt", text_of("\n".join([*skeleton.lines, ""]), folder))
    golden.data("charts.json", data_of(skeleton.charts, folder))


def test_the_world(world: World, golden: Compare) -> None:
    compared = golden("world")
    compared.text("text.txt", text_of(world.text, world.folder))
    masks = sorted([*Path().glob("*.safetensors"), *Path().glob("parts*/*.safetensors")])
    compared.text("masks.txt", "".join(map(bits_of, masks)))
    compared.check()


@pytest.mark.parametrize("name", MEASURED)
def test_a_result(world: World, golden: Compare, name: str) -> None:
    result, page, compared = Path(f"{name}.json"), Path(f"{name}.html"), golden(name)
    printed = type_in(MEASURED[name].format(out=f"-o {result} --html {page}"))
    assert (printed.code, printed.out, printed.err) == (0, "", f"wrote {result}\nwrote {page}\n")
    compared.data("result.json", data_of(json.loads(result.read_text("utf-8")), world.folder))
    drawn(compared, str(result), world.folder)
    assert Path(f"{world.folder.name}.html").read_text("utf-8") == page.read_text("utf-8")
    compared.check()


@pytest.mark.parametrize("name", STORED)
def test_stored_results(world: World, golden: Compare, name: str) -> None:
    compared = golden(name)
    drawn(compared, " ".join(STORED[name]), world.folder)
    compared.check()


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session(world: World, golden: Compare, name: str) -> None:
    compared, texts, masks = golden(name), [], []
    for command in SESSIONS[name]:
        printed = type_in(command)
        texts.append(text_of(typed(command, printed), world.folder))
        words = split(command)
        if "-o" in words and printed.code == 0 and words[words.index("-o") + 1].endswith("ensors"):
            masks.append(bits_of(Path(words[words.index("-o") + 1])))
    compared.text("text.txt", "\n".join(texts))
    if masks:
        compared.text("masks.txt", "".join(masks))
    compared.check()


def test_every_golden_file_is_compared() -> None:
    names = {"world", *MEASURED, *STORED, *SESSIONS, *TRAINED}
    assert {path.name for path in FILES.iterdir()} == names
