"""A tiny base checkpoint, made once for all training tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder and record of the tiny base."""
    from trimtab.training import runtime

    runtime.start()
    folder = tmp_path_factory.mktemp("tiny") / "base"
    return folder, tiny.make_base(folder)


@pytest.fixture(scope="module")
def quick_collections() -> Iterator[None]:
    """Every `train()` collects garbage; the modules of the libraries are none, and take 0.2 s."""
    from trl import SFTTrainer  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
