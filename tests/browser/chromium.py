"""A headless Chromium, that of the system: playwright itself downloads nothing."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
        """Return by how many pixels the page is wider than the window.

        A phone shows a wide page smaller, so that `innerWidth` is that of the page.
        """
        width = self.page.evaluate("document.documentElement.scrollWidth")
        return width - self.page.viewport_size["width"]

    def from_elsewhere(self) -> list[str]:
        """Return what was loaded from anything but the page itself."""
        return [url for url in self.requests[1:] if not url.startswith(("data:", "blob:"))]

    def close(self) -> None:
        self.page.context.close()


def find_chromium() -> str | None:
    """Return the path of the browser, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def launch(executable: str) -> Iterator[Any]:
    """Run a browser during the block."""
    from playwright import sync_api

    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=CAMERA)
        yield browser
        browser.close()


def open_page(
    browser: Any, source: Path | str, *, width: int = 1280, scheme: str = "light", scale: float = 1
) -> Opened:
    """Open a file or address in a window of some width, light or dark.

    A narrow window is that of a phone. `scale` is the number of pixels per CSS pixel.
    """
    phone = {"is_mobile": True, "has_touch": True} if width < 600 else {}
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, device_scale_factor=scale,
        **phone,
    )  # fmt: skip
    context.set_default_timeout(1000 * TIMEOUT)
    opened = Opened(context.new_page())
    opened.open(source)
    return opened
