"""The page of `segret serve` in a browser: used as a person would, by mouse, keyboard and touch."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser.chromium import Opened
from tests.serve import stand_in
from tests.serve.conftest import Running, free_port, picture

pytestmark = pytest.mark.browser

Open = Callable[..., Opened]
SHOWN = "!document.getElementById('result').hidden && document.getElementById('progress').hidden"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    running = Running(free_port(), "max_bytes=1000000")
    yield running
    assert running.end() == ""


def drop(shown: Opened, content: bytes, name: str = "street.png") -> None:
    """Drop a file onto the page, as the system's file manager does."""
    given = [base64.b64encode(content).decode(), name]
    transfer = shown.page.evaluate_handle(
        """([text, name]) => {
            const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name));
            return transfer;
        }""",
        given,
    )
    shown.page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def dropped(opened: Open, server: Running, **options: Any) -> Opened:
    shown = opened(server.address, **options)
    drop(shown, picture(300, 400))
    shown.wait_until(SHOWN)
    return shown


def pixel(shown: Opened, x: float, y: float) -> list[int]:
    """Return the color of the classes' canvas at fractions of its sides."""
    return shown.page.evaluate(
        """([x, y]) => {
            const canvas = document.getElementById("colors");
            const at = [Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1];
            return [...canvas.getContext("2d").getImageData(...at).data];
        }""",
        [x, y],
    )


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_fits_complains_of_nothing_and_loads_nothing_from_elsewhere(
    opened: Open, server: Running, width: int, scheme: str
):
    shown = dropped(opened, server, width=width, scheme=scheme)
    assert shown.overflow() <= 0
    shown.open(f"{server.address}/docs")
    assert shown.overflow() <= 0
    assert shown.complaints == []
    assert [url for url in shown.from_elsewhere() if not url.startswith(server.address)] == []


def test_a_dropped_file_gets_a_legend_and_a_class_alone(opened: Open, server: Running):
    shown = dropped(opened, server)
    page = shown.page
    rows = [text.split("\n") for text in page.locator("#legend button").all_inner_texts()]
    assert rows == [["sky", "50 %"], ["road", "44 %"], ["car", "6.3 %"]]
    assert " s, of which the model took " in page.locator("#took").inner_text()
    assert "sky 50 %, road 44 %, car 6.3 %" in page.locator("#announcement").inner_text()
    assert pixel(shown, 0.5, 0.1) == [128, 128, 128, 255]
    page.get_by_role("button", name="road").click()
    assert pixel(shown, 0.5, 0.9) == [128, 64, 128, 255]
    assert pixel(shown, 0.5, 0.1)[:3] == [0, 0, 0]
    assert page.get_by_role("button", name="road").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Show all").click()
    assert pixel(shown, 0.5, 0.1) == [128, 128, 128, 255]


def test_hover_and_arrow_keys_name_class_and_confidence(opened: Open, server: Running):
    shown = dropped(opened, server)
    page = shown.page
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.6 * box["height"])
    assert page.locator("#tip").inner_text() == "car, confidence 75 %"
    assert page.locator("#legend .pointed").inner_text().startswith("car")
    page.mouse.move(5, 5)
    assert page.locator("#tip").is_hidden()
    assert page.locator("#probe").inner_text().startswith("Point at the photograph")
    page.locator("#stage").focus()
    page.keyboard.press("Shift+ArrowDown")
    assert page.locator("#probe").inner_text().startswith("road, confidence 75 %")
    assert page.locator("#probe").get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("width", [1280, 390])
def test_a_result_and_a_refusal_are_scrolled_into_view(opened: Open, server: Running, width: int):
    shown = opened(server.address, width=width)
    top = "document.getElementById('%s').getBoundingClientRect().top"
    shown.page.emulate_media(reduced_motion="reduce")
    drop(shown, picture(800, 400))
    shown.wait_until(SHOWN)
    assert shown.page.evaluate(top % "stage") >= 0
    shown.page.evaluate("scrollTo(0, document.body.scrollHeight)")
    drop(shown, b"no image")
    shown.wait_until("!document.getElementById('error').hidden")
    assert 0 <= shown.page.evaluate(top % "error") < 800


def test_the_slider_moves_by_drag_and_by_keys_and_opacity_changes(opened: Open, server: Running):
    shown = dropped(opened, server)
    page = shown.page
    box = page.locator("#stage").bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 10, y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], y, steps=4)
    page.mouse.up()
    assert 58 < float(page.locator("#split").input_value()) < 62
    clip = "getComputedStyle(document.getElementById('colors')).clipPath"
    assert "60" in page.evaluate(clip) or "59" in page.evaluate(clip)
    page.locator("#split").focus()
    page.keyboard.press("Home")
    assert page.evaluate(clip) in ("inset(0px)", "inset(0px 0px 0px 0%)")
    page.locator("#opacity").focus()
    page.keyboard.press("End")
    assert page.evaluate("getComputedStyle(document.getElementById('colors')).opacity") == "1"


def test_the_downloads_are_the_files_of_predict(opened: Open, server: Running, tmp_path: Path):
    page = dropped(opened, server).page

    def download(name: str) -> tuple[str, bytes]:
        with page.expect_download() as waited:
            page.get_by_role("button", name=name, exact=True).click()
        file = tmp_path / waited.value.suggested_filename
        waited.value.save_as(file)
        return file.name, file.read_bytes()

    name, content = download("Palette PNG")
    assert name == "street_label.png"
    with Image.open(io.BytesIO(content)) as image:
        expected = stand_in.segment(np.zeros((300, 400, 3), np.uint8)).label_map
        np.testing.assert_array_equal(np.asarray(image), expected)
    name, content = download("Overlay PNG")
    assert (name, content[:4]) == ("street_overlay.png", b"\x89PNG")
    name, content = download("JSON")
    assert (name, json.loads(content)["width"]) == ("street.json", 400)
    name, content = download("GeoJSON")
    assert (name, len(json.loads(content)["features"])) == ("street.geojson", 3)


def test_files_samples_paste_and_the_camera_work_as_well(opened: Open, server: Running):
    shown = opened(server.address)
    page = shown.page

    def size_after(action: Callable[[], object]) -> list[str]:
        page.evaluate("document.getElementById('took').textContent = ''")
        action()
        shown.wait_until("document.getElementById('took').textContent !== ''")
        return page.locator("#took").inner_text().split(" pixels")[0].split()[::2]

    file = {"name": "a.png", "mimeType": "image/png", "buffer": picture(30, 50)}
    assert size_after(lambda: page.locator("#file").set_input_files(file)) == ["50", "30"]
    sample = page.get_by_role("button", name="Sample 1")
    assert size_after(lambda: sample.press("Enter")) == ["384", "288"]
    text = base64.b64encode(picture(20, 30)).decode()
    paste = f"""(() => {{
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob("{text}"), (one) => one.charCodeAt(0));
        transfer.items.add(new File([bytes], "image.png"));
        document.dispatchEvent(new ClipboardEvent("paste", {{ clipboardData: transfer }}));
    }})()"""
    assert size_after(lambda: page.evaluate(paste)) == ["30", "20"]

    def shoot() -> None:
        page.get_by_role("button", name="Use the camera").click()
        shown.wait_until("document.getElementById('video').videoWidth > 0")
        page.get_by_role("button", name="Take the photograph").click()

    assert len(size_after(shoot)) == 2
    assert shown.complaints == []


def test_what_is_refused_is_said_and_a_tiff_is_shown_without_the_photograph(
    opened: Open, server: Running
):
    shown = opened(server.address)
    page = shown.page
    refused = (
        (b"no image", "street.png is not a photograph that can be read: choose JPEG, PNG"),
        (bytes(2000000), "street.png has 2.0 MB"),
    )
    for content, words in refused:
        drop(shown, picture(300, 400))
        shown.wait_until(SHOWN)
        drop(shown, content)
        shown.wait_until("!document.getElementById('error').hidden")
        assert words in page.get_by_role("alert").inner_text()
        assert page.locator("#result").is_hidden()
        page.evaluate("document.getElementById('error').hidden = true")
    drop(shown, picture(30, 50, "TIFF"), "a.tiff")
    shown.wait_until(SHOWN)
    assert "cannot show" in page.get_by_role("alert").inner_text()
