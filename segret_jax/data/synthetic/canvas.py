"""The camera and the canvas: shapes in meters, painted into image and label by the same call."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np

from segret_jax.data.synthetic.palettes import LIGHTS

Meters = int | float  # the run-time type check takes no int for a float
FAR = 75.0  # where the street ends, in meters
FOCAL = 0.75  # focal length over the square root of the image's area
_SUBPIXEL_BITS = 3  # cv2 takes fixed-point coordinates


class Label(IntEnum):
    """The classes, in the order of `class_tables/synthetic.json`."""

    SKY = 0
    BUILDING = 1
    ROAD = 2
    PAVEMENT = 3
    VEHICLE = 4
    PERSON = 5
    POLE = 6
    VEGETATION = 7


@dataclass(frozen=True)
class Plane:
    """An upright plane through (x, 0, z): u meters along (dx, dz), v meters above the ground."""

    x: Meters
    z: Meters
    dx: int = 1
    dz: int = 0

    @classmethod
    def along(cls, x: Meters, z: Meters) -> "Plane":
        """Return the plane from (x, 0, z) along the street, away from the viewer."""
        return cls(x, z, dx=0, dz=1)

    def polygon(self, *corners: Sequence[Meters]) -> np.ndarray:
        """One polygon [1, corners, 3] from its (u, v)."""
        return np.array([[(self.x + u * self.dx, v, self.z + u * self.dz) for u, v in corners]])

    def box(self, u0: Meters, v0: Meters, u1: Meters, v1: Meters) -> np.ndarray:
        """One rectangle [1, 4, 3]."""
        return self.polygon((u0, v0), (u1, v0), (u1, v1), (u0, v1))

    def boxes(self, bounds: np.ndarray) -> np.ndarray:
        """Rectangles [n, 4, 3] from rows (u0, v0, u1, v1)."""
        u, v = bounds[:, [0, 2, 2, 0]], bounds[:, [1, 1, 3, 3]]
        return np.stack([self.x + u * self.dx, v, self.z + u * self.dz], axis=-1)


def ground_box(x0: Meters, x1: Meters, z0: Meters, z1: Meters) -> np.ndarray:
    """A rectangle on the ground, [1, 4, 3]."""
    return np.array([[(x0, 0.0, z0), (x1, 0.0, z0), (x1, 0.0, z1), (x0, 0.0, z1)]])


class Canvas:
    """Pixels [h, w, 4], RGB and label; the camera, light and chance with which they are painted."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        height, width = size
        self.scale = float(np.sqrt(height * width))
        self.rng = rng
        self.eye = rng.uniform((-0.6, 2.0), (1.4, 2.7))
        self.vanishing_point = rng.uniform((0.37, 0.4), (0.63, 0.5)) * (width, height)
        self.light = LIGHTS[rng.integers(len(LIGHTS))]
        self.sun = rng.choice((-1.0, 1.0))  # the side that the light comes from
        self.pixels = np.zeros((height, width, 4), np.uint8)
        self._zoom = FOCAL * self.scale * np.array([1.0, -1.0]) * 2**_SUBPIXEL_BITS
        self._origin = (self.vanishing_point - 0.5) * 2**_SUBPIXEL_BITS

    def fill(self, label: Label, color: np.ndarray, polygons: np.ndarray) -> None:
        """Paint polygons [n, corners, 3], all in one color."""
        ink = (*self._hazy(color, polygons[0, 0, 2]).tolist(), label)
        cv2.fillPoly(self.pixels, list(self._project(polygons)), ink, cv2.LINE_8, _SUBPIXEL_BITS)

    def discs(
        self, label: Label, colors: np.ndarray, centers: np.ndarray, radii: np.ndarray
    ) -> None:
        """Paint discs that face the viewer, all at one depth: colors and centers are [n, 3]."""
        depth = centers[0, 2]
        inks, points = self._hazy(colors, depth).tolist(), self._project(centers).tolist()
        for ink, point, radius in zip(inks, points, radii, strict=True):
            size = round(radius * self._zoom[0] / depth)
            cv2.circle(self.pixels, point, size, (*ink, label), -1, cv2.LINE_8, _SUBPIXEL_BITS)

    def shade(self, polygons: np.ndarray) -> None:
        """Lay shadows over what is painted; labels stay."""
        light = np.full((*self.pixels.shape[:2], 1), 255, np.uint8)
        for points in self._project(polygons):  # one by one: together, overlaps would stay light
            cv2.fillConvexPoly(light, points, 153, cv2.LINE_8, _SUBPIXEL_BITS)
        self.pixels[..., :3] = self.pixels[..., :3] * (light / np.float32(255))

    def sunlit(self, color: np.ndarray, facing: int) -> np.ndarray:
        """The color of a wall that faces the given side (-1 left, 0 viewer, 1 right)."""
        return color * (0.86 + 0.16 * self.sun * facing)

    def pick(self, palette: np.ndarray, jitter: float = 10.0) -> np.ndarray:
        """A palette color, a little lighter or darker and a little off in hue."""
        chosen, lightness, *hue = self.rng.random(5)
        color = palette[int(chosen * len(palette))]
        return color + jitter * (2 * lightness - 1) + jitter * (np.array(hue, np.float32) - 0.5)

    def _project(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 3] in meters to fixed-point pixel coordinates [..., 2]."""
        offset = (points[..., :2] - self.eye) * (self._zoom / points[..., 2:])
        return (offset + self._origin).astype(np.int32, order="C")

    def _hazy(self, colors: np.ndarray, depth: float) -> np.ndarray:
        """Colors [..., 3] as seen through that many meters of air: nearer to the horizon's."""
        horizon = self.light.sky[1]
        return colors + (1.0 - math.exp(-depth / 150.0)) * (horizon - colors)
