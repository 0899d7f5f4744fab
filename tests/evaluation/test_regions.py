"""IoU by size of object against loops over SciPy's components."""

import numpy as np
import pytest
from scipy import ndimage

from segret_jax.evaluation.detailed_counts import SIZES, component_sizes, counts_by_size
from segret_jax.evaluation.pixel_counts import PixelCounts

IGNORE = 255
SMALL, MEDIUM, LARGE = range(3)


def size_of(area: int) -> int:
    if area < 32 * 32:
        return SMALL
    return MEDIUM if area < 96 * 96 else LARGE


def random_blobs(seed: int) -> np.ndarray:
    """Three classes in components of all sizes."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.random((3, 220, 260)), (0, 14, 14))
    labels = noise.argmax(0).astype(np.uint8)
    specks = ndimage.gaussian_filter(rng.random(labels.shape), 2) > 0.56
    labels[specks] = (labels[specks] + 1) % 3
    return labels


def expected_counts(pred: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """True positives, label and positives [kind, size, class], component by component."""
    found = np.zeros((3, 3, num_classes), int)
    for k in range(num_classes):
        components, num = ndimage.label(label == k, np.ones((3, 3)))
        for i in range(1, num + 1):
            mask = components == i
            size = size_of(mask.sum())
            found[0, size, k] += (pred[mask] == k).sum()
            found[1, size, k] += mask.sum()
            found[2, size, k] += (pred[mask] == k).sum()
        components, num = ndimage.label(pred == k, np.ones((3, 3)))
        for i in range(1, num + 1):
            mask = components == i
            found[2, size_of(mask.sum()), k] += (label[mask] != k).sum()
    return found


def test_counts_equal_a_loop_over_components():
    label, pred = random_blobs(0), random_blobs(1)
    ignored = random_blobs(2) == 0
    label[ignored] = pred[ignored] = IGNORE
    found = counts_by_size(pred, label, 3)
    np.testing.assert_array_equal(found, expected_counts(pred, label, 3))
    assert (found.sum(2) > 0).all()  # every kind and size has its pixels here
    assert found[1].sum() == (~ignored).sum()


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(31, 33, SMALL), (32, 32, MEDIUM), (95, 97, MEDIUM), (96, 96, LARGE)],
)
def test_limits_of_the_sizes(height, width, size):
    labels = np.full((120, 120), IGNORE, np.uint8)
    labels[10 : 10 + height, 5 : 5 + width] = 1
    sizes = component_sizes(labels)
    assert (sizes[labels == 1] == size).all()
    assert (sizes[labels == IGNORE] == 0).all()


def test_diagonal_neighbors_are_one_object():
    labels = np.zeros((64, 64), np.uint8)
    labels[:32, :31] = labels[32:, 31:] = 1  # 992 and 1056 pixels that touch at a corner
    assert (component_sizes(labels)[labels == 1] == MEDIUM).all()
    labels[31, 30] = 0
    assert (component_sizes(labels)[:31, :31] == SMALL).all()


def test_a_small_object_lost_and_a_large_one_invented():
    label, pred = np.zeros((2, 200, 200), np.uint8)
    label[0:10, 0:10] = 1  # never found
    pred[50:150, 50:150] = 1  # not there
    intersection, in_label, in_pred = counts_by_size(pred, label, 2)
    assert (in_label[:, 1].tolist(), in_pred[:, 1].tolist()) == ([100, 0, 0], [0, 0, 100 * 100])
    iou = PixelCounts(intersection, in_label, in_pred).iou
    np.testing.assert_array_equal(iou[:, 1], [0, np.nan, 0])
    # The background's hits are large, its false positives are too: part of one large component.
    np.testing.assert_array_equal(iou[:, 0], [np.nan, np.nan, (200 * 200 - 10100) / (200 * 200)])
    assert SIZES == ("small", "medium", "large")
