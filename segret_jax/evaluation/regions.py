"""IoU by size of object, an object being a connected component of one class."""

import cv2
import numpy as np
from jaxtyping import Int64, UInt8

from segret_jax.data.class_table import IGNORE

SIZES = ("small", "medium", "large")
LIMITS = (32**2, 96**2)  # pixels; a component of the limit's size belongs to the larger ones


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
