"""Legends: what occurs, in one order, inside the picture at any size, in any script."""

import numpy as np
import pytest

from segret_jax.data.class_table import ClassTable, load_class_table
from segret_jax.visualize.legend import SMALLEST_FONT, add_legend, legend
from segret_jax.visualize.text import BACKGROUND
from tests.visualize.swatches import swatches

CITY, ADE = load_class_table("cityscapes"), load_class_table("ade20k")
LONG = "a name that nobody would ever want to read in full below a picture of two hundred pixels"


def labels(*ids: int) -> np.ndarray:
    return np.array([ids], np.uint8)


def named(*names: str) -> ClassTable:
    colors = CITY.colors[: len(names)]
    return ClassTable(name="own", class_names=names, colors=colors, raw_ids=((),) * len(names))


def ink(picture: np.ndarray) -> np.ndarray:
    return (picture != BACKGROUND).any(-1)


def test_legend_has_exactly_the_classes_that_occur():
    picture = legend(CITY, [labels(0, 0, 11, 255), labels(8, 8, 8, 254)], width=400)
    assert picture.shape[1] == 400
    assert swatches(picture, CITY) == [0, 8, 11]


def test_legend_is_in_the_order_of_the_ids():
    for ids in ((11, 8, 8, 8, 0, 0), (0, 8, 11, 11, 11)):
        picture = legend(CITY, [labels(*ids)], width=600)
        lefts = [np.argwhere((picture == CITY.colors[i]).all(-1))[:, 1].min() for i in (0, 8, 11)]
        assert lefts == sorted(lefts)


def test_legend_of_no_class_is_an_empty_picture():
    picture = legend(CITY, [labels(255)], width=100)
    assert picture.shape[1] == 100
    assert not ink(picture).any()


@pytest.mark.parametrize("width", [120, 984])
def test_a_legend_of_many_classes_grows_downwards_and_stays_inside(width):
    every = np.arange(150, dtype=np.uint8)[None]
    picture = legend(ADE, [every], width=width)
    assert picture.shape[1] == width
    assert len(picture) > 1.5 * len(legend(ADE, [every], width=2 * width))
    assert swatches(picture, ADE) == list(range(150))
    assert not ink(picture)[:, -1].any()
    assert not ink(picture)[-1].any()


@pytest.mark.parametrize("name", [LONG, "x" * 90, "道路" * 40], ids=["words", "one word", "kanji"])
@pytest.mark.parametrize("width", [200, 90])
def test_a_long_name_is_cut_and_nothing_is_drawn_over_the_edge(name, width):
    table = named("road", name, "car")
    picture = legend(table, [labels(0, 1, 2)], width=width)
    # On a wider canvas the same rows would show what was cut off at the edge.
    assert not ink(picture)[:, -2:].any()
    assert swatches(picture, table) == [0, 1, 2]
    assert len(legend(table, [labels(1)], width=width)) == len(
        legend(table, [labels(0)], width=width)
    )


def test_names_in_other_scripts_are_drawn_as_themselves():
    pictures = [legend(named(name), [labels(0)], width=100) for name in "äï道路"]
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_a_name_that_cannot_be_drawn_is_the_number_of_the_class():
    table = named("road", "ถนน")
    expected = legend(named("road", "class 1"), [labels(0, 1)], width=200)
    np.testing.assert_array_equal(legend(table, [labels(0, 1)], width=200), expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (20, 9), (32, 32)])
def test_a_tiny_picture_gets_swatches_that_are_inside(size):
    picture = add_legend(np.zeros((*size, 3), np.uint8), CITY, [labels(0, 1, 2)])
    assert picture.shape[1] == size[1]
    key = picture[size[0] :]
    if size[1] > 2:
        assert len(np.unique(key[ink(key)], axis=0)) == 4  # three colors and the outline
        assert not ink(key)[:, -1].any()


def test_legend_is_below_an_unchanged_picture():
    image = np.random.default_rng(0).integers(0, 256, (30, 200, 3)).astype(np.uint8)
    picture = add_legend(image, CITY, [labels(3)])
    np.testing.assert_array_equal(picture[:30], image)
    assert swatches(picture[30:], CITY, SMALLEST_FONT) == [3]


def test_legend_grows_with_the_picture():
    heights = []
    for width in (200, 1000, 4000):
        picture = add_legend(np.zeros((width // 2, width, 3), np.uint8), CITY, [labels(3)])
        swatch = (picture == CITY.colors[3]).all(-1).any(1)
        heights.append(int(swatch.sum()) / width)
    assert heights[2] == pytest.approx(heights[1], rel=0.15)  # the same share of the picture
    assert heights[0] * 200 > 8  # and never too small to read
