"""Pictures: exact colors, grids of images of any size, files that hold what was drawn."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segret_jax.data.class_table import load_class_table
from segret_jax.data.decode import decode_label
from segret_jax.errors import InputError
from segret_jax.visualize.pictures import colorize, grid, overlay, save_png
from segret_jax.visualize.text import BACKGROUND, FONT_SIZE, GAP
from tests.visualize.swatches import swatches

CITY = load_class_table("cityscapes")


def labels(*ids: int) -> np.ndarray:
    return np.array([ids], np.uint8)


# Colors


def test_classes_have_their_colors_and_the_rest_is_black():
    picture = colorize(labels(0, 18, 19, 254, 255), CITY)
    black = [0, 0, 0]
    assert picture.tolist() == [[[128, 64, 128], [119, 11, 32], black, black, black]]
    assert picture.dtype == np.uint8


def test_overlay_mixes_and_rounds():
    image = np.array([[[10, 20, 30], [255, 255, 255]]], np.uint8)
    # road is (128, 64, 128): 0.45·10 + 0.55·128 = 74.9, ...
    assert overlay(image, labels(0, 255), CITY).tolist() == [[[75, 44, 84], [115, 115, 115]]]
    assert overlay(image, labels(0, 0), CITY, opacity=0.0).tolist() == image.tolist()
    assert (overlay(image, labels(0, 0), CITY, opacity=1.0) == CITY.colors[0]).all()


def test_overlay_of_a_large_photograph_takes_little_more_memory_than_the_photograph():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1200, 1500, 3), np.uint8)
    pred = rng.integers(0, 21, (1200, 1500), np.uint8)
    mixed = (1 - 0.55) * image + 0.55 * colorize(pred, CITY)
    expected = (mixed + 0.5).astype(np.uint8)
    tracemalloc.start()
    mixed = overlay(image, pred, CITY, opacity=0.55)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(mixed, expected)  # to the bit
    assert peak < 3 * image.nbytes


# Grid


def cells(picture: np.ndarray, height: int, cell: int, top: int) -> list[np.ndarray]:
    step = cell + GAP
    lefts = [GAP + i * step for i in range(3)]
    return [picture[top : top + height, left : left + cell] for left in lefts]


def top_of_rows(picture: np.ndarray, cell: int) -> int:
    """The first row where the label's color fills the left half of its cell."""
    left = 2 * GAP + cell
    filled = (picture[:, left : left + cell // 2] == CITY.colors[1]).all((1, 2))
    return int(filled.argmax())


def test_grid_shows_image_label_and_prediction_of_any_size_at_one_width():
    rng = np.random.default_rng(0)
    sizes = [(20, 40), (60, 30), (7, 200)]
    rows = [
        (
            rng.integers(0, 256, (*size, 3)).astype(np.uint8),
            np.full(size, 1, np.uint8),
            np.full(size, 2, np.uint8),
        )
        for size in sizes
    ]
    picture = grid(rows, CITY, title="step 1", cell=80)
    assert picture.shape[1] == 3 * 80 + 4 * GAP
    assert picture.dtype == np.uint8
    top = top_of_rows(picture, 80)
    for image, label, pred in rows:
        height = round(image.shape[0] * 80 / image.shape[1])
        shown = cells(picture, height, 80, top)
        expected = Image.fromarray(image).resize((80, height), Image.Resampling.BOX)
        np.testing.assert_array_equal(shown[0], expected)
        assert (shown[1] == CITY.colors[label[0, 0]]).all()
        assert (shown[2] == CITY.colors[pred[0, 0]]).all()
        top += height + GAP
    assert swatches(picture[top:], CITY) == [1, 2]


def half_ignored() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left half labeled and predicted 1, right half ignored and predicted 2."""
    label = np.repeat(np.array([[1, 255]], np.uint8), 20, axis=1).repeat(20, axis=0)
    pred = np.where(label == 255, np.uint8(2), np.uint8(1))
    return np.zeros((20, 40, 3), np.uint8), label, pred


def test_what_the_label_ignores_is_black_in_the_label_alone():
    picture = grid([half_ignored()], CITY, title="", cell=80)
    _, label, pred = cells(picture, 40, 80, top_of_rows(picture, 80))
    for part, right in ((label, np.zeros(3)), (pred, CITY.colors[2])):
        assert (part[:, :40] == CITY.colors[1]).all()
        assert (part[:, 40:] == right).all()
    assert swatches(picture[-FONT_SIZE - 2 * GAP :], CITY) == [1, 2]


def test_a_grid_of_narrow_cells_cuts_its_title_and_of_flat_images_shows_a_row():
    image, label = np.zeros((1, 900, 3), np.uint8), np.full((1, 900), 1, np.uint8)
    picture = grid([(image, label, label)], CITY, title="step 1, " * 40, cell=80)
    assert (picture[:, -1] == BACKGROUND).all()
    assert (picture == CITY.colors[1]).all(-1).any()


# Files


def test_a_label_map_survives_the_file(tmp_path: Path):
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save_png(ids, tmp_path / "new" / "folder" / "a.png")
    with Image.open(tmp_path / "new" / "folder" / "a.png") as stored:
        assert stored.mode == "L"
        np.testing.assert_array_equal(np.asarray(stored), ids)


def test_a_label_map_with_a_palette_is_read_back_as_ids_and_shows_the_classes(tmp_path: Path):
    ids = np.array([[0, 1, 7]], np.uint8)
    save_png(ids, tmp_path / "a.png", table=CITY, info={"Software": "x", "Source": "道路.jpg"})
    np.testing.assert_array_equal(decode_label(tmp_path / "a.png"), ids)
    with Image.open(tmp_path / "a.png") as stored:
        assert (stored.mode, stored.tile[0].args) == ("P", "P")  # of 8 bits, not "P;4"
        assert stored.info["Source"] == "道路.jpg"
        np.testing.assert_array_equal(np.asarray(stored.convert("RGB")), colorize(ids, CITY))


def test_a_kill_while_writing_leaves_the_older_picture_whole(tmp_path: Path, monkeypatch):
    file = tmp_path / "a.png"
    save_png(np.zeros((2, 2), np.uint8), file)
    before = file.read_bytes()

    def killed(self: Path, content: bytes) -> int:
        with self.open("wb") as opened:
            opened.write(content[:9])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        save_png(np.ones((2, 2), np.uint8), file)
    assert file.read_bytes() == before


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "a_file").touch()
    ids = np.zeros((2, 2), np.uint8)
    for path, reason in [
        (tmp_path / "a_file" / "b.png", "Not a directory|File exists"),
        (Path("/proc/b.png"), "No such file|denied"),
    ]:
        with pytest.raises(InputError, match=f"cannot write {path}: ({reason})"):
            save_png(ids, path)
