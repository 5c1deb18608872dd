"""Settings for every test: no hub, no telemetry, no colour, a fixed terminal width.

One BLAS thread, because the matrices of the tests are so small that threads only wait. Triton
kernels run in its interpreter, on CPU tensors, unless it is switched off from outside. Ctrl-C
works, also where the shell that started the tests in the background had switched it off.
"""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["NO_COLOR"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["COLUMNS"] = "120"
os.environ.setdefault("TRITON_INTERPRET", "1")
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The switch of `tests/golden`."""
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden files of tests/golden again"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs reasoning-gym where it could not be installed, and say so."""
    if find_spec("reasoning_gym") is None:
        for item in items:
            if item.get_closest_marker("gym"):
                item.add_marker(pytest.mark.skip(reason="reasoning-gym is not installed"))
