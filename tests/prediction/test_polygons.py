"""Polygons of label maps: valid, exact, one per connected region."""

import cv2
import numpy as np
import pytest
import shapely
from shapely.geometry import Polygon

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
    for class_id, exterior, holes in polygons:
        polygon = Polygon(exterior, holes)
        inside = shapely.contains_xy(polygon, columns, rows)
        assert polygon.is_valid
        assert polygon.exterior.is_ccw
        assert not any(ring.is_ccw for ring in polygon.interiors)
        assert (label_map[inside] == class_id).all()
        assert polygon.area == inside.sum()
        cover += inside
    np.testing.assert_array_equal(cover, label_map < num_classes)
    masks = [(label_map == i).astype(np.uint8) for i in range(num_classes)]
    assert len(polygons) == sum(cv2.connectedComponents(m, connectivity=4)[0] - 1 for m in masks)


def test_a_rectangle_has_four_corners_and_a_hole_likewise():
    label_map = np.zeros((5, 6), np.uint8)
    label_map[1:4, 2:4] = 1
    outer, inner = polygons_of(label_map, 2)
    assert outer.exterior.tolist() == [[0, 0], [6, 0], [6, 5], [0, 5]]
    assert {*map(tuple, outer.holes[0].tolist())} == {(2, 1), (4, 1), (4, 4), (2, 4)}
    assert inner.exterior.tolist() == [[2, 1], [4, 1], [4, 4], [2, 4]]
    assert inner.holes == []
