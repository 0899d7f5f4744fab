"""Boundary IoU against the definition, class by class, with SciPy's erosion."""

import numpy as np
import pytest
from scipy import ndimage

from segret_jax.evaluation.detailed_counts import boundary_counts, boundary_mask

IGNORE = 255


def random_blobs(shape: tuple[int, int], seed: int, num_classes: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.random((num_classes, *shape)), (0, 5, 5))
    labels = noise.argmax(0).astype(np.uint8)
    labels[ndimage.gaussian_filter(rng.random(shape), 4) > 0.54] = IGNORE
    return labels


def expected_mask(mask: np.ndarray, distance: int) -> np.ndarray:
    """A mask less its erosion, in steps of one pixel, outside the image being background."""
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance)


@pytest.mark.parametrize("shape", [(80, 107), (1, 1), (3, 200)])
def test_boundary_counts_equal_the_definition(shape):
    label, pred = random_blobs(shape, 0), random_blobs(shape, 1)
    pred[label == IGNORE] = IGNORE
    pred[(pred == IGNORE) & (label != IGNORE)] = 3
    distance = max(1, round(0.02 * (shape[0] ** 2 + shape[1] ** 2) ** 0.5))
    expected = []
    for k in range(4):
        in_label, in_pred = expected_mask(label == k, distance), expected_mask(pred == k, distance)
        expected.append([(in_label & in_pred).sum(), in_label.sum(), in_pred.sum()])
    found = boundary_counts(pred, label, 4)
    np.testing.assert_array_equal(found, np.array(expected).T)
    assert found[0].sum() < found[1].sum() or label.size == 1


def test_boundary_mask_of_a_square_and_of_the_image():
    labels = np.zeros((20, 20), np.uint8)
    labels[5:15, 5:15] = 1
    expected = np.ones((20, 20), bool)
    expected[7:13, 7:13] = (
        False  # the square less two pixels; between the boundaries nothing is left
    )
    expected[2:3, 2:18] = expected[17:18, 2:18] = False
    expected[2:18, 2:3] = expected[2:18, 17:18] = False
    np.testing.assert_array_equal(boundary_mask(labels, 2), expected)


def test_a_shifted_edge_costs_a_large_object_more_here_than_in_iou():
    label, pred = np.zeros((2, 200, 200), np.uint8)
    label[20:180, 20:180] = 1
    pred[20:180, 23:183] = 1
    hits, in_label, in_pred = boundary_counts(pred, label, 2)[:, 1]
    boundary_iou = hits / (in_label + in_pred - hits)
    iou = 157 / 163
    assert boundary_iou < 0.7 < 0.96 < iou


def test_pixels_of_255_belong_to_no_class_and_end_an_object():
    label = np.full((40, 40), 2, np.uint8)
    label[:, 30:] = IGNORE
    hits, in_label, in_pred = boundary_counts(label, label, 3)
    np.testing.assert_array_equal(hits, in_label)
    np.testing.assert_array_equal(in_pred, in_label)
    assert in_label.tolist() == [0, 0, 40 * 30 - 38 * 28]
