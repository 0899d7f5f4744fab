"""Pixel counts for boundary IoU and for IoU by size of object.

Boundary IoU (Cheng, Girshick, Dollár, Berg, Kirillov: "Boundary IoU", CVPR 2021) is the IoU between
the inner rims of a class in label and prediction: large objects do not hide bad edges. An object is
a connected component of one class. PixelCounts are summed over the set, as for IoU.
"""

import math

import cv2
import numpy as np
from jaxtyping import Bool, Int64, UInt8

from segret_jax.data.class_table import IGNORE

WIDTH = 0.02  # of the rim, as a share of the image's diagonal
SIZES = ("small", "medium", "large")
LIMITS = (32**2, 96**2)  # pixels; a component of the limit's size belongs to the larger ones


def boundary_areas(
    pred: UInt8[np.ndarray, "h w"], label: UInt8[np.ndarray, "h w"], num_classes: int
) -> Int64[np.ndarray, "3 k"]:
    """Count each class's rim pixels: common to both maps, in the label, in the prediction.

    Both maps hold 255 at the same pixels. These belong to no class, and an edge to them is an
    edge in both maps, like the image's own: easy pixels, which raise the score a little.
    """
    distance = max(1, round(WIDTH * math.hypot(*label.shape)))
    in_label, in_pred = rim(label, distance), rim(pred, distance)
    common = in_label & in_pred & (label == pred)
    areas = [np.bincount(x, minlength=256) for x in (label[common], label[in_label], pred[in_pred])]
    return np.stack(areas)[:, :num_classes].astype(np.int64)


def rim(labels: UInt8[np.ndarray, "h w"], distance: int) -> Bool[np.ndarray, "h w"]:
    """Return the pixels with another value, or the image's end, within `distance`.

    That is each class's mask less its erosion by a square of side 2 `distance` + 1, outside the
    image counting as background, for all classes at once.
    """
    square = np.ones((2 * distance + 1,) * 2, np.uint8)
    inside = np.zeros(labels.shape, bool)
    inside[distance:-distance, distance:-distance] = True
    return ~inside | (cv2.erode(labels, square) != cv2.dilate(labels, square))


def areas_by_size(
    pred: UInt8[np.ndarray, "h w"], label: UInt8[np.ndarray, "h w"], num_classes: int
) -> Int64[np.ndarray, "3 3 k"]:
    """Count pixels [kind, size, class]; kinds: true positive, label, positive.

    Hits and misses belong to the size of the label's component, false positives to the size of
    the prediction's component that they are part of. Both maps hold 255 at the same pixels.
    """
    sizes, found_sizes = component_sizes(label), component_sizes(pred)
    true, false = pred == label, pred != label  # 255 is counted and cut off
    hits = _count(label[true], sizes[true])
    positives = hits + _count(pred[false], found_sizes[false])
    return np.stack([hits, _count(label, sizes), positives])[..., :num_classes]


def _count(labels: np.ndarray, sizes: np.ndarray) -> Int64[np.ndarray, "3 256"]:
    bins = 256 * sizes.astype(np.int64) + labels
    return np.bincount(bins.ravel(), minlength=3 * 256).reshape(3, 256).astype(np.int64)


def component_sizes(labels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Return for each pixel which of `SIZES` the component has that it belongs to.

    Neighbors of one class are connected, diagonal ones too. Pixels of 255 are 0.
    """
    sizes = np.zeros(labels.shape, np.uint8)
    for class_id in np.flatnonzero(np.bincount(labels.ravel(), minlength=IGNORE)[:IGNORE]):
        mask = (labels == class_id).astype(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        box = np.s_[y : y + height, x : x + width]
        _, components, stats, _ = cv2.connectedComponentsWithStats(mask[box], connectivity=8)
        size = np.digitize(stats[:, cv2.CC_STAT_AREA], LIMITS).astype(np.uint8)
        size[0] = 0  # the background of this class
        sizes[box] += size[components]
    return sizes
