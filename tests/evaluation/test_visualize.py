"""Pictures: exact colours, a legend of what is there, grids of images of any size."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segret_jax.data.class_table import load_class_table
from segret_jax.errors import InputError
from segret_jax.evaluation import visualize
from segret_jax.evaluation.visualize import colorize, grid, legend, overlay, save_png, with_legend

CITY, ADE = load_class_table("cityscapes"), load_class_table("ade20k")


def labels(*ids: int) -> np.ndarray:
    return np.array([ids], np.uint8)


def swatches(picture: np.ndarray, table=CITY) -> list[int]:
    """The classes whose colours fill a square of a swatch's size (without its outline)."""
    side = visualize.FONT_SIZE - 1
    found = []
    for i, color in enumerate(table.colors):
        is_color = (picture == color).all(-1).astype(int)
        area = np.pad(is_color.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        sums = area[side:, side:] - area[:-side, side:] - area[side:, :-side] + area[:-side, :-side]
        if sums.max(initial=0) == side**2:
            found.append(i)
    return found


def places_of_ink(picture: np.ndarray) -> np.ndarray:
    return np.argwhere((picture != visualize.BACKGROUND).any(-1))


# Colours


def test_classes_have_their_colours_and_the_rest_is_black():
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


# Legend


def test_legend_holds_exactly_the_classes_that_occur():
    picture = legend(CITY, [labels(0, 0, 11, 255), labels(8, 8, 8, 254)], width=400)
    assert picture.shape[1] == 400
    assert swatches(picture) == [0, 8, 11]


def test_legend_lists_the_most_frequent_class_first():
    picture = legend(CITY, [labels(11, 8, 8, 8, 0, 0)], width=600)
    lefts = {i: np.argwhere((picture == CITY.colors[i]).all(-1))[:, 1].min() for i in (0, 8, 11)}
    assert lefts[8] < lefts[0] < lefts[11]


def test_legend_of_nothing_is_empty_but_a_picture():
    picture = legend(CITY, [labels(255)], width=100)
    assert picture.shape[1] == 100
    assert len(places_of_ink(picture)) == 0


@pytest.mark.parametrize("width", [400, 984, 2000])
def test_legend_of_many_classes_grows_downwards_and_stays_inside(width):
    every = np.arange(150, dtype=np.uint8)[None]
    picture = legend(ADE, [every], width=width)
    assert picture.shape[1] == width
    wider = legend(ADE, [every], width=2 * width)
    assert len(picture) > 1.5 * len(wider)
    assert swatches(picture, ADE) == list(range(150))
    # What was drawn beyond the edge would be on a canvas that is wider, in the same rows.
    assert places_of_ink(picture)[:, 1].max() < width - 1
    assert places_of_ink(picture)[:, 0].max() < len(picture) - 1


def test_legend_is_put_below_an_unchanged_picture():
    image = np.random.default_rng(0).integers(0, 256, (30, 200, 3)).astype(np.uint8)
    picture = with_legend(image, CITY, [labels(3)])
    np.testing.assert_array_equal(picture[:30], image)
    assert swatches(picture[30:]) == [3]


# Grid


def cells(picture: np.ndarray, height: int, cell: int, top: int) -> list[np.ndarray]:
    step = cell + visualize.GAP
    lefts = [visualize.GAP + i * step for i in range(3)]
    return [picture[top : top + height, left : left + cell] for left in lefts]


def top_of_rows(picture: np.ndarray, cell: int) -> int:
    """The first row where the label's colour fills the left half of its cell."""
    left = 2 * visualize.GAP + cell
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
    assert picture.shape[1] == 3 * 80 + 4 * visualize.GAP
    assert picture.dtype == np.uint8
    top = top_of_rows(picture, 80)
    for image, label, pred in rows:
        height = round(image.shape[0] * 80 / image.shape[1])
        shown = cells(picture, height, 80, top)
        expected = Image.fromarray(image).resize((80, height), Image.Resampling.BOX)
        np.testing.assert_array_equal(shown[0], expected)
        assert (shown[1] == CITY.colors[label[0, 0]]).all()
        assert (shown[2] == CITY.colors[pred[0, 0]]).all()
        top += height + visualize.GAP
    assert swatches(picture[top:]) == [1, 2]


def half_ignored() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left half labelled and predicted 1, right half ignored and predicted 2."""
    label = np.repeat(np.array([[1, 255]], np.uint8), 20, axis=1).repeat(20, axis=0)
    pred = np.where(label == 255, np.uint8(2), np.uint8(1))
    return np.zeros((20, 40, 3), np.uint8), label, pred


def test_what_the_label_ignores_is_black_in_the_prediction_too():
    picture = grid([half_ignored()], CITY, title="", cell=80)
    _, label, pred = cells(picture, 40, 80, top_of_rows(picture, 80))
    for part in (label, pred):
        assert (part[:, :40] == CITY.colors[1]).all()
        assert (part[:, 40:] == 0).all()


def test_the_grids_legend_leaves_out_what_the_grid_does_not_show():
    picture = grid([half_ignored()], CITY, title="", cell=80)
    assert swatches(picture[-visualize.FONT_SIZE - 2 * visualize.GAP :]) == [1]


# Files


def test_a_label_map_survives_the_file(tmp_path: Path):
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save_png(ids, tmp_path / "new" / "folder" / "a.png")
    with Image.open(tmp_path / "new" / "folder" / "a.png") as stored:
        assert stored.mode == "L"
        np.testing.assert_array_equal(np.asarray(stored), ids)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "a_file").touch()
    ids = np.zeros((2, 2), np.uint8)
    for path, reason in [
        (tmp_path / "a_file" / "b.png", "Not a directory|File exists"),
        (Path("/proc/b.png"), "No such file|denied"),
    ]:
        with pytest.raises(InputError, match=f"cannot write {path}: ({reason})"):
            save_png(ids, path)
