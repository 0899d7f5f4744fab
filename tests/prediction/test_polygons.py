"""Polygons of label maps: valid, exact, one per connected region."""

import cv2
import numpy as np
import pytest
import shapely

from segret_jax.prediction.polygons import polygons_of


@pytest.mark.parametrize("seed", range(40))
def test_polygons_of_noise_cover_each_pixel_once(seed):
    """Noise has holes, islands within them, and regions that touch themselves at corners."""
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(1, 4))
    label_map = rng.integers(0, num_classes + 1, rng.integers(1, 16, 2)).astype(np.uint8)
    polygons = polygons_of(label_map, num_classes)  # the last class is none
    rows, columns = np.indices(label_map.shape) + 0.5
    cover = np.zeros(label_map.shape, int)
    for class_id, polygon in polygons:
        inside = shapely.contains_xy(polygon, columns, rows)
        assert polygon.is_valid
        assert polygon.exterior.is_ccw
        assert not any(ring.is_ccw for ring in polygon.interiors)
        assert not any(map(has_point_within_a_line, [polygon.exterior, *polygon.interiors]))
        assert (label_map[inside] == class_id).all()
        assert polygon.area == inside.sum()
        cover += inside
    np.testing.assert_array_equal(cover, label_map < num_classes)
    masks = [(label_map == i).astype(np.uint8) for i in range(num_classes)]
    assert len(polygons) == sum(cv2.connectedComponents(m, connectivity=4)[0] - 1 for m in masks)


def has_point_within_a_line(ring: shapely.LinearRing) -> bool:
    steps = np.diff(shapely.get_coordinates(ring), axis=0)
    following = np.roll(steps, -1, axis=0)
    return bool((steps[:, 0] * following[:, 1] == steps[:, 1] * following[:, 0]).any())


def test_a_rectangle_has_four_corners_and_a_hole_likewise():
    label_map = np.zeros((5, 6), np.uint8)
    label_map[1:4, 2:4] = 1
    outer, inner = polygons_of(label_map, 2)
    assert (outer.class_id, inner.class_id) == (0, 1)
    hole = shapely.box(2, 1, 4, 4)
    assert outer.polygon.equals(shapely.box(0, 0, 6, 5) - hole)
    assert inner.polygon.equals(hole)
    assert shapely.get_num_coordinates(outer.polygon) == 5 + 5  # the first is given twice


def test_nothing_has_no_polygons():
    assert polygons_of(np.full((3, 4), 7, np.uint8), 7) == []
    assert polygons_of(np.full((3, 4), 255, np.uint8), 7) == []
