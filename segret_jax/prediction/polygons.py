"""Polygons of the regions of a label map, along the edges of the pixels."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

if TYPE_CHECKING:  # not needed by most predictions
    import shapely

NOTHING = 255  # beyond the edges of the label map; no class has this number


class ClassPolygon(NamedTuple):
    """A connected region of one class.

    Attributes:
        class_id: The class.
        polygon: Its outline, in pixels: x to the right and y down from the top left corner, so that
            the pixel in row r and column c is the square from (c, r) to (c + 1, r + 1).
    """

    class_id: int
    polygon: "shapely.Polygon"


def polygons_of(label_map: UInt8[np.ndarray, "h w"], num_classes: int) -> list[ClassPolygon]:
    """Return the polygons of all classes, in the order of the class ids.

    Together they cover each pixel of a class exactly once. A region is 4-connected. Every polygon
    is valid, and oriented as in GeoJSON: exteriors have a positive area in these coordinates, holes
    a negative one.
    """
    import shapely

    # As squares or boxes to unite, the pixels would take ten times as long.
    outlines = shapely.linestrings(_outlines(label_map))
    faces = shapely.get_parts(shapely.polygonize(outlines))
    faces = shapely.orient_polygons(
        shapely.simplify(faces, 0)
    )  # drops points within straight lines
    rows, columns = _first_pixels(*shapely.get_coordinates(faces, return_index=True))
    classes = label_map[rows, columns]
    order = np.lexsort((columns, rows, classes))
    return [ClassPolygon(int(classes[i]), faces[i]) for i in order if classes[i] < num_classes]


def _outlines(label_map: UInt8[np.ndarray, "h w"]) -> Int[np.ndarray, "_ 2 2"]:
    """Return the ends (x, y) of all straight lines between classes, cut where others meet them."""
    padded = np.pad(label_map, 1, constant_values=NOTHING)
    horizontal = padded[1:, 1:-1] != padded[:-1, 1:-1]  # [h + 1, w]
    vertical = padded[1:-1, 1:] != padded[1:-1, :-1]  # [h, w + 1]
    down = _straight_lines(vertical.T, horizontal.T)[..., ::-1]
    return np.concatenate([_straight_lines(horizontal, vertical), down])


def _straight_lines(
    edges: Bool[np.ndarray, "n m"], crossing: Bool[np.ndarray, "p q"]
) -> Int[np.ndarray, "_ 2 2"]:
    """Join horizontal edges of pixels to lines from corner to corner, given the vertical edges."""
    corners = (np.pad(crossing, ((1, 0), (0, 0))) | np.pad(crossing, ((0, 1), (0, 0))))[:, 1:-1]
    begins, ends = edges.copy(), edges.copy()
    begins[:, 1:] &= ~edges[:, :-1] | corners
    ends[:, :-1] &= ~edges[:, 1:] | corners
    (y, left), (_, right) = np.nonzero(begins), np.nonzero(ends)
    return np.stack([np.stack([left, y], 1), np.stack([right + 1, y], 1)], 1)


def _first_pixels(
    points: np.ndarray, polygons: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Return row and column of the first pixel of each polygon: its top left corner is a point."""
    order = np.lexsort((points[:, 0], points[:, 1], polygons))
    first = order[np.unique(polygons, return_index=True)[1]]
    return points[first, 1].astype(int), points[first, 0].astype(int)
