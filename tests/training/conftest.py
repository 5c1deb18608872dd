"""A tiny base checkpoint, made once for all training tests."""

from __future__ import annotations

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
