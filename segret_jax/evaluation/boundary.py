"""Boundary IoU (Cheng, Girshick, Dollár, Berg, Kirillov: "Boundary IoU", CVPR 2021).

IoU between the inner rims of a class in label and prediction: large objects no longer hide bad
edges. PixelCounts are summed over the set, as for IoU.
"""

import math

import cv2
import numpy as np
from jaxtyping import Bool, Int64, UInt8

WIDTH = 0.02  # of the rim, as a share of the image's diagonal


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
