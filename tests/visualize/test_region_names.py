"""Names on regions: inside of them, and only where they fit."""

import numpy as np

from segret_jax.data.class_table import load_class_table
from segret_jax.visualize.region_names import draw_names

CAMVID = load_class_table("camvid")
BUILDING, ROAD = CAMVID.class_names.index("building"), CAMVID.class_names.index("road")


def changed(label_map: np.ndarray) -> np.ndarray:
    """Return which pixels of a gray picture get a name."""
    picture = np.full((*label_map.shape, 3), 128, np.uint8)
    draw_names(picture, label_map, CAMVID)
    return (picture != 128).any(-1)


def test_a_name_stands_inside_of_its_region_and_not_in_a_small_one():
    label_map = np.full((240, 320), ROAD, np.uint8)
    label_map[20:90, 30:150] = BUILDING
    label_map[200:210, 10:200] = BUILDING  # too low
    label_map[100:230, 250:270] = BUILDING  # too narrow
    drawn = changed(label_map)
    within = np.zeros_like(drawn)
    within[22:88, 32:148] = True
    assert (drawn & within).any()
    assert not (drawn & (label_map == BUILDING) & ~within).any()
    edge = label_map != np.roll(label_map, 1, 0)
    assert not (drawn & edge).any()


def test_each_large_region_of_a_class_has_its_name():
    label_map = np.full((200, 400), 255, np.uint8)  # ignored pixels have none
    label_map[10:80, 10:150] = label_map[110:190, 200:390] = ROAD
    drawn = changed(label_map)
    assert drawn[10:80, 10:150].any()
    assert drawn[110:190, 200:390].any()
    assert not drawn[label_map == 255].any()


def test_tiny_pictures_have_no_names():
    for shape in ((1, 1), (3, 200), (200, 3)):
        assert not changed(np.zeros(shape, np.uint8)).any()


def test_names_are_light_with_a_dark_outline():
    picture = np.full((100, 200, 3), 128, np.uint8)
    draw_names(picture, np.full((100, 200), ROAD, np.uint8), CAMVID)
    light, dark = (picture.min(-1) > 240), (picture.max(-1) < 40)
    assert light.any()
    assert dark.sum() > light.sum() / 3
