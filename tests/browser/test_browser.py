"""Pages in a browser: what moves and what is told; nothing is loaded or wider than a phone."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segret_jax.data.datasets import load_dataset
from segret_jax.doctor import check as doctor
from segret_jax.doctor.report import write_report
from segret_jax.report import page as reports
from segret_jax.report.gather import gather
from tests.browser.chromium import Opened
from tests.report.made_up import HOSTILE, write_run

pytestmark = pytest.mark.browser
LONG = "a-class-name-without-any-space-" * 4

Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a page of each kind: of a run, of two runs, of a label check."""
    folder = tmp_path_factory.mktemp("pages")
    names = (HOSTILE, LONG, "road")
    runs = [
        write_run(folder / f"run_{seed}_{LONG}", num_classes=30, names=names, seed=seed)
        for seed in (0, 1)
    ]
    both = folder / "both.html"
    both.write_text(reports.side_by_side([gather(run) for run in runs]), encoding="utf-8")
    return {"run": reports.write(runs[0]), "both": both, "labels": label_check(folder)}


def label_check(folder: Path) -> Path:
    classes = [{"id": i, "name": (LONG, HOSTILE)[i], "color": "#00ff00"} for i in range(2)]
    (folder / "own.json").write_text(json.dumps({"classes": classes}))
    label = np.arange(600, dtype=np.uint8).reshape(20, 30) % 3  # 2 is no class
    for kind, pixels in (("images", np.zeros((20, 30, 3), np.uint8)), ("annotations", label)):
        file = folder / kind / "training" / f"{LONG}.png"
        file.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(file)
    diagnosis = doctor.check(load_dataset(folder / "own.json"), folder, workers=1)
    write_report(diagnosis, folder / "labels", seed=0)
    return folder / "labels" / "index.html"


@pytest.mark.parametrize("kind", ["run", "both", "labels"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_page_fits_complains_of_nothing_and_loads_nothing(
    files: dict[str, Path], opened: Open, kind: str, width: int, scheme: str
):
    shown = opened(files[kind], width=width, scheme=scheme)
    assert shown.overflow() <= 0
    heights = """[...document.querySelectorAll(".chart")].map((one) =>
        [one, one.querySelector("svg")].map((part) => part.getBoundingClientRect().height))"""
    assert all(box == drawn for box, drawn in shown.page.evaluate(heights))
    assert shown.complaints == []
    assert shown.from_elsewhere() == []
    background = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, background.removeprefix("rgb(").rstrip(")").split(","))) > 3 * 128
    assert light == (scheme == "light")


def test_the_slider_moves_between_label_and_prediction(files: dict[str, Path], opened: Open):
    shown = opened(files["run"])
    layers = shown.page.locator(".picture:not([hidden]) .comparison .layers").first
    layers.scroll_into_view_if_needed()
    box = layers.bounding_box()

    def edges() -> tuple[str, str]:
        return tuple(
            layers.locator(part).evaluate("one => getComputedStyle(one).clipPath")
            for part in (".label", ".pred")
        )

    before = edges()
    shown.page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    value = float(layers.locator("input").input_value())
    assert 80 < value < 100
    assert edges() != before
    assert f"inset(0px 0px 0px {value:g}%)" in edges()[1]
    shown.page.keyboard.press("Home")
    assert float(layers.locator("input").input_value()) == 0


def test_hover_tells_values_confusions_and_cells(files: dict[str, Path], opened: Open):
    shown = opened(files["run"])
    page = shown.page

    def told(chart: str, part: str, index: int = 0) -> str:
        target = page.locator(f"#{chart} {part}").nth(index)
        target.scroll_into_view_if_needed()
        box = target.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x + 2, y + 2)
        page.mouse.move(x, y)
        page.wait_for_selector(f"#{chart} .hoverlayer text", state="attached")
        return page.locator(f"#{chart} .hoverlayer").text_content()

    assert "predicted as:" in told("bars", ".bars .point path")
    assert "predicted as" in told("matrix", ".nsewdrag")
    assert told("loss", ".nsewdrag").strip()
    assert shown.complaints == []


def test_charts_zoom_and_the_matrix_shows_all_classes(files: dict[str, Path], opened: Open):
    shown = opened(files["run"])
    page = shown.page
    area = page.locator("#loss .nsewdrag")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    ranges = "document.getElementById('loss')._fullLayout.xaxis.range"
    before = page.evaluate(ranges)
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 22, steps=4)
    page.mouse.up()
    shown.wait_until(f"{ranges}[0] > {before[0]} && {ranges}[1] < {before[1]}")
    size = "document.getElementById('matrix').data[0].z.length"
    assert page.evaluate(size) == 25
    page.locator("select[data-chart]").select_option(index=1)
    shown.wait_until(f"{size} === 30")


def test_pictures_are_chosen_by_rank_and_class(files: dict[str, Path], opened: Open):
    page = opened(files["run"]).page

    def ranks() -> list[int]:
        texts = page.locator(".picture:not([hidden]) .score").all_inner_texts()
        return [int(text.split("rank ")[1].split(" of ")[0]) for text in texts]

    assert ranks() == [6, 5, 4, 3]
    page.get_by_role("button", name="Best").click()
    assert ranks() == [1, 2, 3, 4]
    page.get_by_role("button", name="Median").click()
    assert set(ranks()) == {2, 3, 4, 5}
    page.get_by_role("button", name="Show more").click()
    assert len(ranks()) == 6
    page.locator("#gallery-class").select_option(label="road")
    page.get_by_role("button", name="Worst").click()
    assert ranks() == sorted(ranks(), reverse=True)
    assert "IoU of road" in page.locator(".picture:not([hidden]) .score").first.inner_text()


def test_colors_follow_the_system(files: dict[str, Path], opened: Open):
    shown = opened(files["both"])
    page = shown.page
    color = "document.getElementById('loss')._fullLayout.font.color"
    before = page.evaluate(color)
    page.emulate_media(color_scheme="dark")
    shown.wait_until(f"{color} !== '{before}'")
