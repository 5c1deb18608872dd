"""The world of the golden files, made once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.golden.world import make_world


class World(NamedTuple):
    """Where it is, and what the commands printed that made it."""

    folder: Path
    text: str


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("golden")
    with chdir(folder):
        return World(folder, make_world())


@pytest.fixture
def world(made: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The world, as the current folder."""
    monkeypatch.setenv("COLUMNS", "120")
    with chdir(made.folder):
        yield made
