"""What every verb prints, measures and draws, compared with its golden files.

The way in is the command line alone, so that these tests hold whatever moves behind it. A change
that is wanted is written by `pytest tests/golden --update-golden`, and its diff is reviewed.
"""

from __future__ import annotations

import json
import shutil
from contextlib import chdir
from pathlib import Path
from shlex import split

import pytest

from tests.golden.cases import ELSEWHERE, MEASURED, SESSIONS, STORED, TRAINING
from tests.golden.conftest import World
from tests.golden.stored import STORED as FILES
from tests.golden.stored import Compare, Golden
from tests.golden.world import bits_of, type_in, typed


def drawn(golden: Golden, results: str) -> str:
    """Compare what `trimtab report` makes of stored results: text, page and charts; the page."""
    command, page = f"report {results}", Path("drawn.html")
    golden.text("text.txt", typed(command, type_in(command)))
    printed = type_in(f"{command} -o {page} --force")
    assert (printed.code, printed.out, printed.err) == (0, "", f"wrote {page}\n")
    html = page.read_text("utf-8")
    golden.page(html)
    return html


def test_the_world(world: World, golden: Compare) -> None:
    compared = golden("world")
    compared.text("text.txt", world.text)
    masks = sorted([*Path().glob("*.safetensors"), *Path().glob("parts*/*.safetensors")])
    compared.text("masks.txt", "".join(map(bits_of, masks)))
    compared.check()


@pytest.mark.parametrize("name", MEASURED)
def test_a_result(world: World, golden: Compare, name: str) -> None:
    result, page, compared = Path(f"{name}.json"), Path(f"{name}.html"), golden(name)
    printed = type_in(MEASURED[name].format(out=f"-o {result} --html {page}"))
    assert (printed.code, printed.out, printed.err) == (0, "", f"wrote {result}\nwrote {page}\n")
    compared.data("result.json", json.loads(result.read_text("utf-8")))
    assert drawn(compared, str(result)) == page.read_text("utf-8")
    compared.check()


@pytest.mark.parametrize("name", STORED)
def test_stored_results(world: World, golden: Compare, name: str) -> None:
    compared = golden(name)
    drawn(compared, " ".join(STORED[name]))
    compared.check()


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session(world: World, golden: Compare, name: str) -> None:
    compared, texts, masks = golden(name), [], []
    for command in SESSIONS[name]:
        printed = type_in(command)
        texts.append(typed(command, printed))
        *_, option, written = split(command)
        if option == "-o" and written.endswith(".safetensors") and printed.code == 0:
            masks.append(bits_of(Path(written)))
    compared.text("text.txt", "\n".join(texts))
    if masks:
        compared.text("masks.txt", "".join(masks))
    compared.check()


@pytest.fixture
def workshop(shelf: Path, tmp_path: Path) -> Path:
    """The models of the documentation, with a run and a sweep of them."""
    folder = tmp_path / "shelf"
    shutil.copytree(shelf, folder)
    for file in (Path(__file__).parent / "runs").iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


@pytest.mark.train
@pytest.mark.parametrize("name", TRAINING)
def test_the_shape_of_what_training_gives(workshop: Path, golden: Compare, name: str) -> None:
    compared, result = golden(name), workshop / "tuned" / "result.json"
    with chdir(workshop):
        printed = type_in(TRAINING[name])
    text, data = printed, result.read_text("utf-8") if name == "train" else ""
    if printed.out.startswith("{"):
        text, data = printed._replace(out=""), printed.out
    compared.text("text.txt", typed(TRAINING[name], text), figures=False)
    if data:
        compared.data("result.json", json.loads(data), figures=False)
    compared.check()


def test_every_golden_file_is_compared() -> None:
    names = {"world", *MEASURED, *STORED, *SESSIONS, *TRAINING, *ELSEWHERE}
    assert {path.name for path in FILES.iterdir()} == names
