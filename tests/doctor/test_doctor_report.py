"""The report: complete in one file, well formed, and its pictures show what is wrong."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segret_jax.data.class_table import IGNORE, UNKNOWN
from segret_jax.data.datasets import load_dataset
from segret_jax.doctor import check as doctor
from segret_jax.doctor.examine import Examined, Fault
from segret_jax.doctor.findings import Diagnosis, SplitScan
from segret_jax.doctor.report import (
    HIGHLIGHT,
    PICTURES,
    WIDTH,
    choose_samples,
    html,
    sample_picture,
    write_report,
)

VOID_ELEMENTS = ("meta", "img", "br")


@pytest.fixture
def diagnosis(tmp_path: Path) -> Diagnosis:
    """Two classes, one with a name that HTML must escape; label "b" has an id of none."""
    classes = [
        {"id": 0, "name": "<sky & sea>", "color": "#0000ff"},
        {"id": 1, "name": "land", "color": "#00ff00"},
    ]
    table = tmp_path / "coast.json"
    table.write_text(json.dumps({"classes": classes}))
    rng = np.random.default_rng(0)
    for name, unknown in (("a", False), ("b", True), ("c", False)):
        label = np.zeros((20, 30), np.uint8)
        label[10:], label[:, 27:] = 1, 255
        label[4, 5] = 9 if unknown else 0
        image = rng.integers(0, 256, (20, 30, 3), np.uint8)
        for folder, pixels, suffix in (("images", image, "jpg"), ("annotations", label, "png")):
            path = tmp_path / folder / "training" / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return doctor.check(load_dataset(table), tmp_path, split="training", workers=1)


class Balance(HTMLParser):
    """Checks that every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_is_one_well_formed_page_with_its_pictures(diagnosis, tmp_path):
    write_report(diagnosis, tmp_path / "new" / "report", seed=0)
    assert sorted(p.name for p in (tmp_path / "new" / "report").iterdir()) == [
        "findings.json",
        "index.html",
    ]
    page = (tmp_path / "new" / "report" / "index.html").read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert {"table", "figure", "img", "details"} <= parser.seen
    assert "class_weights" not in page
    assert "<sky" not in page
    assert "&lt;sky &amp; sea&gt;" in page
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)  # nothing to load from elsewhere
    pictures = re.findall(r'data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 3
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert image.size == (2 * WIDTH, WIDTH * 20 // 30)
    assert "1 label with ids outside the class table: 9" in page
    assert "9 at pixel (y=4, x=5)" in page
    assert '<span class="pill bad">1 error to correct before training</span>' in page
    assert html(diagnosis, seed=0) == page  # the same samples again


def test_findings_json_holds_everything(diagnosis, tmp_path):
    write_report(diagnosis, tmp_path, seed=0)
    content = json.loads((tmp_path / "findings.json").read_text())
    (finding,) = content["findings"]
    assert (finding["severity"], finding["split"]) == ("error", "training")
    split = content["splits"]["training"]
    assert split["pixels_by_stored_value"] == {"0": 3 * 270 - 1, "1": 3 * 270, "9": 1, "255": 180}
    assert split["pixels_by_class"] == [3 * 270 - 1, 3 * 270]
    assert split["images_by_class"] == [3, 3]
    assert split["ignored_share"] == pytest.approx(0.1)
    assert len(content["class_weights"]) == 2


def test_worst_samples_come_first_and_others_are_drawn_by_seed(diagnosis):
    scan = diagnosis.scans["training"]

    def examined(index: int, stored: dict[int, int], *faults: Fault) -> Examined:
        return Examined(
            index=index, name=str(index), stored=stored, digest=b"x", faults=list(faults)
        )

    valid = [examined(i, {0: 50, 1: 50}) for i in range(40)]
    ignored = examined(40, {0: 10, 255: 90})
    unknown = examined(41, {0: 95, 7: 5}, Fault("unknown", "", "x"))
    sizes = examined(42, {0: 100}, Fault("sizes", "", "x"))
    unreadable = Examined(index=43, name="43", faults=[Fault("image_unreadable", "", "x")])
    scan = SplitScan(source=scan.source, examined=[*valid, ignored, unreadable, sizes, unknown])
    worst, others = choose_samples(scan, seed=1)
    assert worst == [unknown, sizes, ignored]
    assert len(others) == PICTURES
    assert all(e.index < 40 for e in others)
    assert choose_samples(scan, seed=1)[1] == others != choose_samples(scan, seed=2)[1]


def test_picture_shows_classes_ignored_and_unknown_pixels(diagnosis):
    table = diagnosis.spec.class_table
    image = np.full((WIDTH, 2 * WIDTH, 3), 200, np.uint8)
    label = np.zeros((WIDTH, 2 * WIDTH), np.uint8)
    label[WIDTH // 2 :] = 1
    label[:, WIDTH:] = IGNORE
    label[100, 100] = UNKNOWN  # a single pixel of an image that is shown at half its size
    picture = sample_picture(image, label, table)
    assert picture.shape == (WIDTH // 2, 2 * WIDTH, 3)
    assert (picture[:, :WIDTH] == 200).all()
    drawn = picture[:, WIDTH:]
    assert drawn[10, 10].tolist() == [90, 90, 230]  # 0.45 of 200, 0.55 of the class's color
    assert drawn[-10, 10].tolist() == [90, 230, 90]
    assert drawn[10, -10].tolist() == [90, 90, 90]
    marked = (drawn == HIGHLIGHT).all(axis=2)
    assert marked[50, 50]
    assert 9 <= marked.sum() <= 49
    for shape, size in (((300, 1), (2 * WIDTH, 3)), ((1, 3000), (1, WIDTH))):  # a box holds them
        narrow = sample_picture(np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8), table)
        assert narrow.shape == (size[0], 2 * size[1], 3)
    stretched = sample_picture(image, label[::3, ::3], table)
    assert (stretched[:, :WIDTH] == 200).all()
    assert stretched[10, WIDTH + 10].tolist() == [90, 90, 230]
