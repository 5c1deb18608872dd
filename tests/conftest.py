"""Settings for every test: no hub, no telemetry, no colour, a fixed terminal width.

One BLAS thread, because the matrices of the tests are so small that threads only wait. Triton
kernels run in its interpreter, on CPU tensors, unless it is switched off from outside. Ctrl-C
works, also where the shell that started the tests in the background had switched it off.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from tests.forks import Forks
from tests.golden.stored import Golden

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["NO_COLOR"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["COLUMNS"] = "120"
os.environ.setdefault("TRITON_INTERPRET", "1")
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("no deadline", deadline=None)  # a busy machine fails no test
settings.load_profile("no deadline")


NO_BROWSER = "no browser: install Chromium or Google Chrome, or run `playwright install chromium`"
"""Why a test of a page was left out."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The switch of `tests/golden`."""
    parser.addoption("--update-golden", action="store_true", help="write the golden files again")


ALL_OF_A_FILE = re.compile(
    r"^pytestmark = \[?\s*pytest\.mark\.(train|browser|slow)\b", re.MULTILINE
)
"""A mark of every test of a file."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import files that `-m` leaves out as a whole: many of them load torch and TRL."""
    left_out = re.findall(r"\bnot (\w+)", config.option.markexpr)
    if left_out and collection_path.suffix == ".py":
        mark = ALL_OF_A_FILE.search(collection_path.read_text("utf-8"))
        return True if mark and mark[1] in left_out else None
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs reasoning-gym where it could not be installed; long files go first."""
    if find_spec("reasoning_gym") is None:
        for item in items:
            if item.get_closest_marker("gym"):
                item.add_marker(pytest.mark.skip(reason="reasoning-gym is not installed"))
    if hasattr(config, "workerinput"):  # of pytest-xdist, whose last file should be a short one
        sizes = Counter(item.path for item in items)
        items.sort(key=lambda item: _place(item, sizes[item.path]))


def _place(item: pytest.Item, num_tests: int) -> tuple[bool, int, str]:
    """Files that train begin with those of few tests, whose tests are long; others with many."""
    trains = item.get_closest_marker("train") is not None
    return not trains, num_tests if trains else -num_tests, str(item.path)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tiny bf16 matrices are multiplied by torch, as on processors that have instructions for them.

    What replaces the products of large ones on others looks at every operation, which takes half
    the time of a run of these tests. `test_bf16_products` tests runs on both kinds of processor.
    """
    if item.get_closest_marker("train") is not None:
        from trimtab.training import bf16_products

        bf16_products.is_slow = lambda device: False


_num_modules = len(sys.modules)
"""Modules at the last call of `gc.freeze`."""


def pytest_runtest_teardown() -> None:
    """Every `train()` collects garbage; the modules of the libraries are none, and take 0.2 s."""
    global _num_modules
    if len(sys.modules) > _num_modules + 100:
        gc.collect()
        gc.freeze()
        _num_modules = len(sys.modules)


def pytest_unconfigure() -> None:
    """Let Python take down at its end what was frozen."""
    gc.unfreeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, None, None]:
    """Say in the last lines that pages were not opened, where there was no browser."""
    yield
    skipped = terminalreporter.stats.get("skipped", [])
    if num := sum(NO_BROWSER in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(f"{num} tests of pages were left out, {NO_BROWSER}", red=True)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that a page of the documentation supposes."""
    from tests.docs import world

    folder = tmp_path_factory.mktemp("shelf")
    world.make_shelf(folder)
    return folder


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Processes for commands that need one of their own."""
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


@pytest.fixture
def golden(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Golden]:
    """The golden files of a name."""
    folder, update = tmp_path_factory.getbasetemp(), request.config.getoption("--update-golden")
    return lambda name: Golden(name, folder, update=bool(update))
