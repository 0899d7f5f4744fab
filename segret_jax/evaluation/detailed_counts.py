"""Pixel counts for boundary IoU and for IoU by size of object.

Boundary IoU (Cheng, Girshick, Dollár, Berg, Kirillov: "Boundary IoU", CVPR 2021) is the IoU between
the inner boundaries of a class in label and prediction: large objects do not hide bad edges. An
object is a connected component of one class. PixelCounts are summed over the set, as for IoU.
"""

import math

import cv2
import numpy as np
from jaxtyping import Bool, Int64, UInt8

from segret_jax.data.class_table import IGNORE

BOUNDARY_WIDTH = 0.02  # relative to the image's diagonal
SIZES = ("small", "medium", "large")
SIZE_LIMITS = (32**2, 96**2)  # pixels; a component of the limit's size belongs to the larger ones


def boundary_counts(
    pred: UInt8[np.ndarray, "h w"], label: UInt8[np.ndarray, "h w"], num_classes: int
) -> Int64[np.ndarray, "3 k"]:
    """Count each class's boundary pixels: in both maps, in the label, in the prediction.

    Args:
        pred: Class ids, and 255 where the label is 255.
        label: Class ids, and 255 where pixels are ignored. Edges to these and the image's edges
            are boundaries in both maps: easy pixels, which raise the score a little.
        num_classes: The number of classes.
    """
    distance = max(1, round(BOUNDARY_WIDTH * math.hypot(*label.shape)))
    in_label, in_pred = boundary_mask(label, distance), boundary_mask(pred, distance)
    common = in_label & in_pred & (label == pred)
    found = [np.bincount(x, minlength=256) for x in (label[common], label[in_label], pred[in_pred])]
    return np.stack(found)[:, :num_classes].astype(np.int64)


def boundary_mask(labels: UInt8[np.ndarray, "h w"], distance: int) -> Bool[np.ndarray, "h w"]:
    """Return the pixels that have another value or the image's edge within `distance`.

    For all classes at once, this is each mask minus its erosion by a square of side 2 `distance` +
    1, where the outside of the image counts as background.
    """
    square = np.ones((2 * distance + 1,) * 2, np.uint8)
    inside = np.zeros(labels.shape, bool)
    inside[distance:-distance, distance:-distance] = True
    return ~inside | (cv2.erode(labels, square) != cv2.dilate(labels, square))


def counts_by_size(
    pred: UInt8[np.ndarray, "h w"], label: UInt8[np.ndarray, "h w"], num_classes: int
) -> Int64[np.ndarray, "3 3 k"]:
    """Count pixels [kind, size, class]; the kinds are true positives, label and positives.

    True positives and false negatives count for the size of the label's component, false positives
    for the size of the prediction's component.

    Args:
        pred: Class ids, and 255 where the label is 255.
        label: Class ids, and 255 where pixels are ignored.
        num_classes: The number of classes.
    """
    sizes, pred_sizes = component_sizes(label), component_sizes(pred)
    true, false = pred == label, pred != label  # 255 is counted and cut off
    hits = _count(label[true], sizes[true])
    positives = hits + _count(pred[false], pred_sizes[false])
    return np.stack([hits, _count(label, sizes), positives])[..., :num_classes]


def _count(labels: np.ndarray, sizes: np.ndarray) -> Int64[np.ndarray, "3 256"]:
    bins = 256 * sizes.astype(np.int64) + labels
    return np.bincount(bins.ravel(), minlength=3 * 256).reshape(3, 256).astype(np.int64)


def component_sizes(labels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Return the index in `SIZES` of each pixel's component.

    Neighbors of one class are connected, also diagonally. Pixels of 255 are 0.
    """
    sizes = np.zeros(labels.shape, np.uint8)
    for class_id in np.flatnonzero(np.bincount(labels.ravel(), minlength=IGNORE)[:IGNORE]):
        mask = (labels == class_id).astype(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        box = np.s_[y : y + height, x : x + width]
        _, components, stats, _ = cv2.connectedComponentsWithStats(mask[box], connectivity=8)
        size = np.digitize(stats[:, cv2.CC_STAT_AREA], SIZE_LIMITS).astype(np.uint8)
        size[0] = 0  # the background of this class
        sizes[box] += size[components]
    return sizes
