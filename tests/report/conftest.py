"""A result of each kind; and a real browser, Chromium or Google Chrome, opened once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from playwright.sync_api import Page as Tab

from tests.conftest import NO_BROWSER
from tests.report.results import RESULTS
from trimtab.results.result import Result

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

DRAWN = "document.documentElement.dataset.charts === 'done'"


@pytest.fixture(params=RESULTS, scope="session")
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A result of each kind."""
    return RESULTS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = next(filter(None, map(shutil.which, (*NAMES, own))), None)
        if found is None:
            pytest.skip(NO_BROWSER)
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Tab]]:
    """Opens a page and waits for its charts; no page may complain, or ask for anything else.

    `width` is that of the window, in pixels.
    """
    data: list[str] = []
    asked: list[str] = []
    context = browser.new_context(viewport={"width": 1000, "height": 900})

    def open_text(text: str, width: int = 1000) -> Tab:
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        tab = context.new_page()
        tab.set_viewport_size({"width": width, "height": 900})
        tab.on("console", lambda message: data.append(message.text))
        tab.on("pageerror", lambda error: data.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri())
        tab.wait_for_function(DRAWN)
        return tab

    yield open_text
    context.close()
    assert data == []
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}


@pytest.fixture
def browse(open_page: Callable[[str], Tab]) -> Callable[[str], str]:
    """Opens a page and returns its document after all scripts have run."""
    return lambda text: open_page(text).content()
