"""Write the pictures of the pages for the documentation.

    segret demo
    python scripts/screenshots.py runs/demo [--out docs/images]

RUN is a finished run on generated scenes. Its report and the page of `segret serve` are shown in
Chromium (apt-get install chromium). The pictures are reduced to a palette of 256 colors.
"""

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial import cKDTree

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser.chromium import Opened, find_chromium, launch, open_page  # noqa: E402
from tests.serve.command import serving  # noqa: E402

SHOWN = "!document.getElementById('result').hidden && document.getElementById('progress').hidden"
MARGIN = 16  # CSS pixels around what is shown
METHOD = Image.Quantize.MAXCOVERAGE  # keeps small areas of their own color, such as legends
EXACT = 24  # the most frequent colors, which stay as they are

Save = Callable[[str, bytes], None]


def picture(opened: Opened, first: str, last: str) -> bytes:
    """Return the page from the top of one element to the bottom of another, at its full width."""
    boxes = [opened.page.locator(one).first.bounding_box() for one in (first, last)]
    scrolled = opened.page.evaluate("scrollY")
    top = max(0, boxes[0]["y"] + scrolled - MARGIN)
    bottom = boxes[1]["y"] + boxes[1]["height"] + scrolled + MARGIN
    width = opened.page.evaluate("innerWidth")
    clip = {"x": 0, "y": top, "width": width, "height": bottom - top}
    return opened.page.screenshot(full_page=True, clip=clip)


def report(browser: Any, run: Path, save: Save) -> None:
    """The page of the run: headline and curves, classes and confusions, pictures."""
    opened = open_page(browser, run / "report.html")
    save("report", picture(opened, "header", "#learning_rate"))
    save("report_classes", picture(opened, "#classes", "#matrix"))
    opened.page.get_by_role("button", name="Median").click()
    save("report_pictures", picture(opened, "#pictures", ".picture:not([hidden])"))
    opened.close()


def served(browser: Any, address: str, save: Save) -> None:
    """The page of `segret serve`: a scene and its classes, one class alone, and on a phone."""
    opened = segmented(browser, address)
    opened.page.locator("#split").fill("35")
    opened.page.locator("#stage").hover(position={"x": 620, "y": 385})
    save("serve", picture(opened, "header", "#result"))
    opened.close()
    opened = segmented(browser, address, scheme="dark")
    opened.page.locator("#legend button", has_text="vegetation").click()
    save("serve_class", picture(opened, "header", "#result"))
    opened.close()
    opened = segmented(browser, address, width=390, scale=2)
    save("serve_phone", opened.page.screenshot())
    opened.close()


def segmented(browser: Any, address: str, **window: Any) -> Opened:
    """Open the page and choose its first generated scene."""
    opened = open_page(browser, address, **window)
    opened.page.get_by_role("button", name="Sample 1").click()
    opened.wait_until(SHOWN)
    opened.page.wait_for_timeout(1000)  # until it has scrolled
    opened.page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
    return opened


def reduce(image: Image.Image) -> Image.Image:
    """Return the picture with a palette of 256 colors."""
    colors, index, counts = np.unique(
        np.asarray(image).reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    exact = colors[np.argsort(-counts)[:EXACT]]
    others = image.quantize(256 - EXACT, METHOD, kmeans=10).getpalette()
    palette = np.concatenate([exact, np.reshape(others, (-1, 3))])[:256].astype(np.uint8)
    nearest = cKDTree(palette).query(colors)[1].astype(np.uint8)
    result = Image.fromarray(nearest[index].reshape(image.height, image.width))
    result.putpalette(palette.tobytes())
    return result


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    args = parser.parse_args(argv)
    executable = find_chromium()
    if executable is None:
        raise SystemExit("there is no Chromium: apt-get install chromium")
    args.out.mkdir(parents=True, exist_ok=True)

    def save(name: str, content: bytes) -> None:
        file = args.out / f"{name}.png"
        with Image.open(io.BytesIO(content)) as image:
            reduce(image.convert("RGB")).save(file, optimize=True)
            print(f"{file}: {image.width}x{image.height}, {file.stat().st_size / 1000:.0f} kB")

    with launch(executable) as browser:
        report(browser, args.run, save)
        with serving(str(args.run)) as (_, address):
            served(browser, address, save)


if __name__ == "__main__":
    main(sys.argv[1:])
