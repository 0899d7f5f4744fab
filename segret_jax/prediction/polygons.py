"""Polygons of the regions of a label map, along the edges of the pixels.

The polygons of a map cover each pixel exactly once. A region is 4-connected; where its outline
touches itself at a corner it is cut there, so that every polygon is valid: simple rings, holes that
touch the exterior in single points at most.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Int, UInt8

from segret_jax.data.class_table import pixels_of_ids

Ring = Int[np.ndarray, "_ 2"]

# Of directions 0 to 3, right, down, left and up:
STEPS = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])  # (row, column)
CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])  # (x, y) from a pixel to its edge's beginning


class Polygon(NamedTuple):
    """A region of one class.

    Attributes:
        class_id: The class.
        exterior: The (x, y) corners of pixels, counterclockwise in a system with y upward, as in
            GeoJSON; the last one is not the first one again. Pixel (row r, column c) is the square
            from (c, r) to (c + 1, r + 1).
        holes: Likewise, clockwise.
    """

    class_id: int
    exterior: Ring
    holes: list[Ring]


def polygons_of(label_map: UInt8[np.ndarray, "h w"], num_classes: int) -> list[Polygon]:
    """Return the polygons of all classes, in the order of the class ids."""
    found = []
    for class_id in np.flatnonzero(pixels_of_ids(label_map)[:num_classes]).tolist():
        mask = (label_map == class_id).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        corner = np.array([left, top])
        mask = mask[top : top + height, left : left + width]
        found += [
            Polygon(class_id, exterior + corner, [hole + corner for hole in holes])
            for exterior, holes in _regions(mask)
        ]
    return found


def _regions(mask: UInt8[np.ndarray, "h w"]) -> list[tuple[Ring, list[Ring]]]:
    """Return the exterior and the holes of each 4-connected region, by its first pixel."""
    count, regions = cv2.connectedComponents(mask, connectivity=4)
    exteriors: list[Ring] = [np.empty((0, 2), int)] * count
    holes: list[list[Ring]] = [[] for _ in range(count)]
    for (row, column), outline in _outlines(np.pad(mask, 1).astype(bool)):
        region = regions[row, column]
        for ring in _simple_rings(outline):
            if _is_counterclockwise(ring):
                exteriors[region] = ring
            else:
                holes[region].append(ring)
    return [*zip(exteriors[1:], holes[1:], strict=True)]


def _outlines(mask: Bool[np.ndarray, "h w"]) -> list[tuple[tuple[int, int], Ring]]:
    """Follow the edges of the pixels of a mask that has a border of zeros.

    The edge of direction d = 0 to 3 (right, down, left, up) of a pixel is its top, right, bottom or
    left one.

    Returns:
        A pixel, and the corners, of each outline; row and column 0 are those after the border.
    """
    inner = mask[1:-1, 1:-1]
    # The pixels whose neighbor across the edge is outside, for each direction.
    edges = [np.argwhere(inner & ~_shifted(mask, STEPS[d - 1])) + 1 for d in range(4)]
    directions = np.repeat(np.arange(4), [len(pixels) for pixels in edges])
    pixels = np.concatenate(edges) - 1
    corners = pixels[:, ::-1] + CORNERS[directions]
    outlines = []
    for cycle in _cycles(_next_edges(mask, edges)):
        turns = directions[cycle] != np.roll(directions[cycle], 1)
        row, column = pixels[cycle[0]].tolist()
        outlines.append(((row, column), corners[cycle[turns]]))
    return outlines


def _next_edges(mask: Bool[np.ndarray, "h w"], edges: list[np.ndarray]) -> Int[np.ndarray, " n"]:
    """Return for each edge the number of the one that begins at its end.

    This is an edge of the pixel diagonally ahead, of the one ahead, or of the same one. The outline
    never crosses a corner to a pixel that touches there alone.
    """
    firsts = np.cumsum([0] + [len(pixels) for pixels in edges])
    stride = np.array([mask.shape[1], 1])
    keys = [pixels @ stride for pixels in edges]
    following = np.empty(firsts[-1], np.int64)
    for direction, pixels in enumerate(edges):
        front = pixels + STEPS[direction]
        diagonal = front + STEPS[direction - 1]
        goes_ahead = mask[tuple(front.T)]
        goes_aside = goes_ahead & mask[tuple(diagonal.T)]
        part = following[firsts[direction] : firsts[direction + 1]]
        for chosen, turn, targets in (
            (goes_aside, -1, diagonal),
            (goes_ahead & ~goes_aside, 0, front),
            (~goes_ahead, 1, pixels),
        ):
            kind = (direction + turn) % 4
            part[chosen] = firsts[kind] + np.searchsorted(keys[kind], targets[chosen] @ stride)
    return following


def _shifted(mask: Bool[np.ndarray, "h w"], step: np.ndarray) -> Bool[np.ndarray, "_ _"]:
    """Return for each pixel within the border its neighbor in the direction of `step`."""
    (down, right), (height, width) = step.tolist(), mask.shape
    return mask[1 + down : height - 1 + down, 1 + right : width - 1 + right]


def _cycles(following: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " m"]]:
    """Return the cycles of a permutation."""
    successors, seen, cycles = following.tolist(), bytearray(len(following)), []
    for first in range(len(successors)):
        if not seen[first]:
            cycle, i = [], first
            while not seen[i]:
                seen[i] = 1
                cycle.append(i)
                i = successors[i]
            cycles.append(np.array(cycle))
    return cycles


def _simple_rings(outline: Ring) -> list[Ring]:
    """Cut an outline where it touches itself."""
    rings: list[Ring] = []
    path: list[tuple[int, int]] = []
    positions: dict[tuple[int, int], int] = {}
    for corner in map(tuple, outline.tolist()):
        if corner in positions:
            start = positions[corner]
            rings.append(np.array(path[start:]))
            for passed in path[start + 1 :]:
                del positions[passed]
            del path[start + 1 :]
        else:
            positions[corner] = len(path)
            path.append(corner)
    return [*rings, np.array(path)]


def _is_counterclockwise(ring: Ring) -> bool:
    x, y = ring.T
    return bool((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0)
