"""The names of classes on their regions in a picture."""

import cv2
import numpy as np
from jaxtyping import Bool

from segret_jax.data.class_table import ClassTable, pixels_of_ids
from segret_jax.visualize import text
from segret_jax.visualize.legend import FONTS_PER_SIDE, SMALLEST_FONT, Labels
from segret_jax.visualize.text import RGB

LIGHT, DARK = (255, 255, 255), (20, 20, 20)
LARGEST = 1.6  # of the smallest font: names of large regions are larger
MARGIN = 1.4  # of the name's box, so that it does not touch the region's edge
ROWS = 256  # of the map in which positions are sought


def draw_names(picture: RGB, label_map: Labels, table: ClassTable) -> None:
    """Write the names of classes into `picture`, where they fit into a connected region.

    A name stands where the region leaves most room for it: the pole of inaccessibility of the
    region, measured in boxes of the name's shape.
    """
    smallest = max(SMALLEST_FONT, max(picture.shape[:2]) // FONTS_PER_SIDE)
    for class_id in np.flatnonzero(pixels_of_ids(label_map)[: table.num_classes]).tolist():
        name = text.readable(table.class_names[class_id], instead=f"class {class_id}")
        aspect = text.text_width(name, 100) / 100
        if not aspect:
            continue
        scale = min(1.0, ROWS / len(label_map))  # rows; columns shrink so that the box is a square
        size = [max(1, round(label_map.shape[1] * scale / aspect)), round(len(label_map) * scale)]
        mask = cv2.resize(label_map, size, interpolation=cv2.INTER_NEAREST) == class_id
        for x, y, room in _poles(mask, smallest * scale * MARGIN):
            font = int(min(room / scale / MARGIN, smallest * LARGEST))
            if font >= smallest:
                left = (x + 0.5) * picture.shape[1] / size[0] - text.text_width(name, font) / 2
                _draw_outlined(picture, name, left, (y + 0.5) / scale, font)


def _poles(mask: Bool[np.ndarray, "h w"], least: float) -> list[tuple[int, int, float]]:
    """Return (x, y, side) of the largest square in each region, from `least` pixels on."""
    padded = np.pad(mask, 1).astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_C, 3)[1:-1, 1:-1]
    found = []
    count, regions = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    for region in range(1, count):
        within = np.where(regions == region, distance, 0)
        y, x = np.unravel_index(within.argmax(), within.shape)
        side = 2 * float(within[y, x]) - 1
        if side >= least:
            found.append((int(x), int(y), side))
    return found


def _draw_outlined(picture: RGB, name: str, left: float, middle: float, size: int) -> None:
    edge = max(1, round(size / 12))
    for down in (-edge, 0, edge):
        for right in (-edge, 0, edge):
            text.draw(picture, name, left + right, middle + down, size, ink=DARK)
    text.draw(picture, name, left, middle, size, ink=LIGHT)
