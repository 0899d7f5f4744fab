"""Pages in a headless Chromium, that of the system: playwright itself downloads nothing."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TIMEOUT = 60  # seconds
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
NAMES = ("chromium", "chromium-browser", "google-chrome")


class Opened:
    """A page in the browser, with all that it asked for and complained about."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, source: Path | str) -> None:
        self.page.goto(source if isinstance(source, str) else source.absolute().as_uri())
        self.wait_until(
            "!document.querySelector('.chart') ||"
            " document.documentElement.classList.contains('drawn')"
        )

    def wait_until(self, condition: str) -> None:
        """Wait until a condition holds.

        `page.wait_for_function` asks in the page, whose security policy forbids eval.
        """
        end = time.monotonic() + TIMEOUT
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, f"not within {TIMEOUT} s: {condition}"
            self.page.wait_for_timeout(50)

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - innerWidth")

    def from_elsewhere(self) -> list[str]:
        """Return what was loaded from anything but the page itself."""
        return [url for url in self.requests[1:] if not url.startswith(("data:", "blob:"))]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Return a browser; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=CAMERA)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Return a function that opens a file or address in a window of some width, light or dark."""
    contexts = []

    def open_page(source: Path | str, *, width: int = 1280, scheme: str = "light") -> Opened:
        phone = {"is_mobile": True, "has_touch": True} if width < 600 else {}
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **phone
        )
        context.set_default_timeout(1000 * TIMEOUT)
        contexts.append(context)
        result = Opened(context.new_page())
        result.open(source)
        return result

    yield open_page
    for context in contexts:
        context.close()
