"""Pages in a headless Chromium."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import chromium
from tests.browser.chromium import Opened


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Return a browser; the test is skipped where there is none."""
    found = chromium.find_chromium()
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium")
    pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with chromium.launch(found) as browser:
        yield browser


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Return `chromium.open_page` in this browser."""
    pages: list[Opened] = []

    def open_page(source: Path | str, **options: Any) -> Opened:
        pages.append(chromium.open_page(browser, source, **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()
