"""Street scenes drawn from a seed, with a label for every pixel.

A scene is a small town in metres (x to the right, y up, z away from the viewer) seen by a pinhole
camera. It is painted from far to near, so that what is near hides what is far. The canvas holds
the label as a fourth colour channel: one call draws both, hence they agree to the pixel.

Colour alone tells little: houses, road and pavement share their greys, cars come in green, trees
in autumn red, and each scene has its own light. Shape, texture and place tell the classes apart.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from itertools import pairwise
from typing import SupportsIndex

import cv2
import numpy as np

from segret_jax.data.sources import Sample

MIN_SIDE = 32
_FAR = 75.0  # where the street ends, in metres
_FOCAL = 0.75  # focal length over the square root of the image's area
_SUBPIXEL_BITS = 3  # cv2 takes fixed-point coordinates


class Label(IntEnum):
    """The classes, in the order of ``class_tables/synthetic.json``."""

    SKY = 0
    BUILDING = 1
    ROAD = 2
    PAVEMENT = 3
    VEHICLE = 4
    PERSON = 5
    POLE = 6
    VEGETATION = 7


# How strongly the surface of each class is speckled, in grey levels.
_GRAIN = np.array([1.0, 4.0, 5.0, 6.0, 1.5, 2.0, 1.5, 8.0], np.float32)


def _palette(colors: str) -> np.ndarray:
    """Hex colours, parted by blanks, as float rows [n, 3]."""
    return np.array([tuple(bytes.fromhex(color)) for color in colors.split()], np.float32)


_WALLS = _palette("b5654a d8b98a 9a9da1 c9c2b4 8fa6b5 d99a7c 7d8288 a9b596 e3d3b0")
_ROOFS = _palette("8a4b3c 5a5f68 6f5648 454c57")
_ROADS = _palette("6b6d72 7a7772 5b6068 857f78")
_PAVINGS = _palette("a7a49c 95989c b8a88f a08778 868a8e")
_PAINTS = _palette("c8372d 2f5d9b e8e6e0 3a3d42 9aa0a6 4c8055 e0b13a 3f8f98 7b4a36")
_CLOTHES = _palette("d1333f 2450a0 f4ead2 e8a02b 2f9a5b 8f4ab0 e0609a 20a0b0")
_SKINS = _palette("f2cda8 d9a57c a8734e 6f4a35")
_LEAVES = _palette("5c8a3a 4a7a45 7d9a40 3f6b4a 558b4b 6a9a35 b8702f 9c4a32")
_METALS = _palette("2e3338 3a4046 27402f 40352e")
_SIGNS = _palette("c92f2f 2a5fb0 e6b821 eeeeea")
_SIGNALS = _palette("e8402f f0b429 3fbf6a")
_GLASS, _LAMPLIGHT, _BLACK, _BARK, _HAIR = _palette("3a4a5c ffd98a 222326 604a3a 463228")
_HEADLAMP, _REAR_LAMP, _PLATE, _MARKING = _palette("fff3c4 e02b20 e0e1e4 d0d0cc")


@dataclass(frozen=True)
class _Mood:
    """The light of a scene."""

    sky: np.ndarray  # colours of zenith, horizon and clouds [3, 3]
    tint: tuple[float, float, float]
    lit: float  # share of the windows


_DAY = _Mood(_palette("4f8fd6 d3e6f2 ffffff"), tint=(1.02, 1.0, 0.98), lit=0.05)
_DUSK = _Mood(_palette("4a4d86 f7b183 e79a94"), tint=(0.92, 0.80, 0.80), lit=0.55)
_OVERCAST = _Mood(_palette("98a2ad d5d9db c3c8cd"), tint=(0.90, 0.93, 0.96), lit=0.20)


@dataclass(frozen=True)
class _Plane:
    """An upright plane through (x, 0, z): u metres along (dx, dz), v metres above the ground."""

    x: float
    z: float
    dx: float = 1.0
    dz: float = 0.0

    def polygon(self, *uv: tuple[float, float]) -> np.ndarray:
        """One polygon, [1, k, 3]."""
        return np.array([[(self.x + u * self.dx, v, self.z + u * self.dz) for u, v in uv]])

    def box(self, u0: float, v0: float, u1: float, v1: float) -> np.ndarray:
        """One rectangle, [1, 4, 3]."""
        return self.polygon((u0, v0), (u1, v0), (u1, v1), (u0, v1))

    def boxes(self, bounds: np.ndarray) -> np.ndarray:
        """Rectangles [n, 4, 3] from rows (u0, v0, u1, v1)."""
        u, v = bounds[:, [0, 2, 2, 0]], bounds[:, [1, 1, 3, 3]]
        return np.stack([self.x + u * self.dx, v, self.z + u * self.dz], axis=-1)


def _ground(x0: float, x1: float, z0: float, z1: float) -> np.ndarray:
    """A rectangle on the ground, [1, 4, 3]."""
    return np.array([[(x0, 0.0, z0), (x1, 0.0, z0), (x1, 0.0, z1), (x0, 0.0, z1)]])


class _Canvas:
    """Pixels [h, w, 4], RGB and label; the camera, light and chance with which they are painted."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        height, width = size
        self.scale = float(np.sqrt(height * width))
        self.rng = rng
        self.eye = rng.uniform((-0.6, 2.0), (1.4, 2.7))
        self.vanishing = rng.uniform((0.37, 0.4), (0.63, 0.5)) * (width, height)
        self.mood = (_DAY, _DAY, _DUSK, _OVERCAST)[rng.integers(4)]
        self.sun = rng.choice((-1.0, 1.0))  # the side that the light comes from
        self.pixels = np.zeros((height, width, 4), np.uint8)
        self._zoom = _FOCAL * self.scale * np.array([1.0, -1.0]) * 2**_SUBPIXEL_BITS
        self._origin = (self.vanishing - 0.5) * 2**_SUBPIXEL_BITS

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 3] in metres to fixed-point pixel coordinates [..., 2]."""
        offset = (points[..., :2] - self.eye) * (self._zoom / points[..., 2:])
        return (offset + self._origin).astype(np.int32, order="C")

    def paled(self, colors: np.ndarray, depth: float) -> np.ndarray:
        """Colours [..., 3] as seen through that many metres of hazy air."""
        return colors + (1.0 - math.exp(-depth / 150.0)) * (self.mood.sky[1] - colors)

    def fill(self, label: Label, color: np.ndarray, polygons: np.ndarray) -> None:
        """Paint polygons [n, k, 3], all in one colour."""
        ink = (*self.paled(color, polygons[0, 0, 2]).tolist(), label)
        cv2.fillPoly(self.pixels, list(self.project(polygons)), ink, cv2.LINE_8, _SUBPIXEL_BITS)

    def discs(
        self, label: Label, colors: np.ndarray, centers: np.ndarray, radii: np.ndarray
    ) -> None:
        """Paint discs that face the viewer, all at one depth: colours and centres are [n, 3]."""
        depth = centers[0, 2]
        inks, points = self.paled(colors, depth).tolist(), self.project(centers).tolist()
        for ink, point, radius in zip(inks, points, radii, strict=True):
            size = round(radius * self._zoom[0] / depth)
            cv2.circle(self.pixels, point, size, (*ink, label), -1, cv2.LINE_8, _SUBPIXEL_BITS)

    def darken(self, polygons: np.ndarray, factor: float) -> None:
        """Lay a shadow over what is painted; labels stay."""
        shade = np.full((*self.pixels.shape[:2], 1), 255, np.uint8)
        for points in self.project(polygons):  # one by one: together, overlaps would stay light
            cv2.fillConvexPoly(shade, points, round(255 * factor), cv2.LINE_8, _SUBPIXEL_BITS)
        self.pixels[..., :3] = self.pixels[..., :3] * (shade / np.float32(255))

    def sunlit(self, color: np.ndarray, facing: float) -> np.ndarray:
        """The colour of a wall that faces the given side (-1 left, 0 viewer, 1 right)."""
        return color * (0.86 + 0.16 * self.sun * facing)

    def pick(self, palette: np.ndarray, jitter: float = 10.0) -> np.ndarray:
        """A palette colour, a little lighter or darker and a little off in hue."""
        chosen, lightness, *hue = self.rng.random(5)
        color = palette[int(chosen * len(palette))]
        return color + jitter * (2 * lightness - 1) + jitter * (np.array(hue, np.float32) - 0.5)


# --- sky and ground ---------------------------------------------------------------------------


def _paint_sky(canvas: _Canvas) -> None:
    """A gradient down to the horizon, with clouds of seven puffs each."""
    height, width = canvas.pixels.shape[:2]
    zenith, horizon, cloud = canvas.mood.sky
    down = np.minimum(np.arange(height, dtype=np.float32) / canvas.vanishing[1], 1.0)
    sky = (zenith + (horizon - zenith) * down[:, None])[:, None].astype(np.float32)
    cover = np.zeros((height, width), np.float32)
    for _ in range(canvas.rng.integers(2, 6)):
        place = canvas.rng.uniform((0.0, 0.02, 0.08), (1.0, 0.32, 0.2))
        x, y, span = place * (width, height, width)
        for u, puff in canvas.rng.uniform((-1.0, 0.15), (1.0, 0.4), (7, 2)):
            radius = puff * span * (1.2 - abs(u))
            center = (round(x + u * span), round(y - 0.7 * radius))  # the base stays level
            cv2.circle(cover, center, round(radius), 0.9, -1)
    blurred = cv2.GaussianBlur(cover, (0, 0), canvas.scale / 90)[..., None]
    canvas.pixels[..., :3] = sky + (cloud - sky) * blurred
    canvas.pixels[..., 3] = Label.SKY


def _paint_ground(canvas: _Canvas, kerb: float) -> None:
    """Paving from left to right, the road in its middle, joints between flags, lane markings."""
    paving, asphalt = canvas.pick(_PAVINGS), canvas.pick(_ROADS)
    canvas.fill(Label.PAVEMENT, paving, _ground(-200, 200, 1.0, _FAR))
    joints = np.concatenate([_ground(-14, 14, z, z + 0.02 * z**0.5) for z in np.arange(3, 24, 1.5)])
    canvas.fill(Label.PAVEMENT, paving * 0.86, joints)
    for side in (-1, 1):
        canvas.fill(Label.PAVEMENT, paving * 1.18, _ground(side * kerb, side * (kerb + 0.3), 1, 60))
    canvas.fill(Label.ROAD, asphalt, _ground(-kerb, kerb, 1.0, _FAR))
    for x, z in canvas.rng.uniform((-kerb, 4.0), (kerb - 2.0, 20.0), (2, 2)):  # mended patches
        tone = canvas.rng.uniform(0.9, 1.08)
        canvas.fill(Label.ROAD, asphalt * tone, _ground(x, x + 1.8, z, z + 4.0))
    white = _MARKING * canvas.rng.uniform(0.9, 1.1)
    start = canvas.rng.uniform(1.0, 5.0)
    dashes = [_ground(-0.09, 0.09, z, z + 2.0) for z in np.arange(start, 60, 5.0)]
    canvas.fill(Label.ROAD, white, np.concatenate(dashes))
    for side in (-1, 1):
        canvas.fill(Label.ROAD, white, _ground(side * (kerb - 0.45), side * (kerb - 0.3), 1, 60))
    if canvas.rng.random() < 0.4:  # a zebra crossing
        z = canvas.rng.uniform(7.0, 12.0)
        stripes = [_ground(x, x + 0.5, z, z + 2.5) for x in np.arange(0.7 - kerb, kerb - 1, 1.0)]
        canvas.fill(Label.ROAD, white, np.concatenate(stripes))


# --- houses -----------------------------------------------------------------------------------


def _paint_windows(canvas: _Canvas, plane: _Plane, width: float, height: float) -> None:
    """Storeys of framed windows above the ground floor, some of them lit."""
    columns, storeys = max(int(width / 2.2), 1), int((height - 3.4) / 3.0)
    pitch = width / columns
    u = np.tile((np.arange(columns) + 0.5) * pitch, storeys)
    v = np.repeat(4.1 + 3.0 * np.arange(storeys), columns)
    panes = np.stack([u - 0.28 * pitch, v, u + 0.28 * pitch, v + 1.6], axis=1)
    if plane.z < 40:  # further off, frames would be narrower than a pixel
        frames = panes + np.array([-0.12, -0.25, 0.12, 0.12])
        canvas.fill(Label.BUILDING, _PLATE * canvas.rng.uniform(0.8, 1), plane.boxes(frames))
    lit = canvas.rng.random(len(panes)) < canvas.mood.lit
    glass = _GLASS + canvas.rng.uniform(-10, 50)
    for color, chosen in ((glass, panes[~lit]), (_LAMPLIGHT, panes[lit])):
        if len(chosen):
            canvas.fill(Label.BUILDING, color, plane.boxes(chosen))


def _paint_shopfront(canvas: _Canvas, plane: _Plane, width: float, wall: np.ndarray) -> None:
    """Ground floor: display window, door and a striped awning."""
    cloth, door = canvas.pick(_CLOTHES), canvas.pick(_PAINTS)
    glass = _LAMPLIGHT if canvas.rng.random() < canvas.mood.lit + 0.15 else _GLASS + 30
    canvas.fill(Label.BUILDING, wall * 0.7, plane.box(0, 0, width, 3.4))
    canvas.fill(Label.BUILDING, glass, plane.box(0.12 * width, 0.5, 0.6 * width, 2.6))
    canvas.fill(Label.BUILDING, door, plane.box(0.72 * width, 0, 0.88 * width, 2.4))
    canvas.fill(Label.BUILDING, cloth, plane.box(0.06 * width, 2.5, 0.66 * width, 3.2))
    u = width * np.arange(0.12, 0.6, 0.15)
    stripes = np.stack([u, 0 * u + 2.5, u + 0.075 * width, 0 * u + 3.2], axis=1)
    canvas.fill(Label.BUILDING, cloth * 0.3 + 170, plane.boxes(stripes))


def _paint_house(canvas: _Canvas, side: int, x: float, z0: float, z1: float) -> None:
    """A house with its street front at x and its gable towards the viewer."""
    wall, height, depth = canvas.pick(_WALLS, 16), 3.6 + 3.0 * canvas.rng.integers(1, 6), 9.0
    gable, street = _Plane(x, z0, dx=side), _Plane(x, z0, dx=0.0, dz=1.0)
    front, flank = canvas.sunlit(wall, 0), canvas.sunlit(wall, -side)
    if height < 14:  # low houses have a pitched roof, high ones a flat roof
        ridge, top = x + side * depth / 2, height + canvas.rng.uniform(1.8, 3.2)
        slope = [(x, height, z0), (ridge, top, z0), (ridge, top, z1), (x, height, z1)]
        peak = gable.polygon((0, height), (depth / 2, top - 0.1), (depth, height))
        canvas.fill(Label.BUILDING, front, peak)
        canvas.fill(Label.BUILDING, canvas.sunlit(canvas.pick(_ROOFS), -side), np.array([slope]))
    for plane, width, color in ((gable, depth, front), (street, z1 - z0, flank)):
        canvas.fill(Label.BUILDING, color, plane.box(0, 0, width, height))
        canvas.fill(Label.BUILDING, color * 0.75, plane.box(0, height - 0.4, width, height))
        if z0 < 30 or plane is street:  # far gables are hidden by the nearer houses
            _paint_windows(canvas, plane, width, height)
    if z0 < 45:
        _paint_shopfront(canvas, street, z1 - z0, flank)


def _paint_skyline(canvas: _Canvas) -> None:
    """What closes the view at the end of the street: towers in the haze."""
    plane = _Plane(0.0, _FAR)
    for x in range(-32, 32, 8):
        tower = plane.box(x, 0, x + 8, canvas.rng.uniform(6, 20))
        canvas.fill(Label.BUILDING, canvas.pick(_WALLS), tower)


def _paint_row(canvas: _Canvas, side: int, x: float) -> None:
    """One side of the street from far to near: houses, with a garden here and there."""
    ends = [canvas.rng.uniform(1.0, 6.0)]
    while ends[-1] < _FAR - 12:
        ends.append(ends[-1] + canvas.rng.uniform(7, 14))
    for z0, z1 in reversed(list(pairwise(ends))):
        paint = _paint_garden if canvas.rng.random() < 0.2 else _paint_house
        paint(canvas, side, x + side * canvas.rng.uniform(0, 0.5), z0, z1)


# --- vegetation -------------------------------------------------------------------------------

# The tufts of a crown in painting order, [26, 3]: tone, size and how far they are raised.
_TUFTS = np.repeat([(0.68, 0.5, -0.12), (0.95, 0.34, 0.08), (1.2, 0.18, 0.1)], (9, 8, 9), axis=0)


def _paint_foliage(
    canvas: _Canvas,
    center: tuple[float, float, float],
    radii: tuple[float, float],
    leaf: np.ndarray,
) -> None:
    """A crown of overlapping tufts, dark below and behind, light above and towards the sun."""
    tone, size, lift = _TUFTS.T
    turn, reach, flicker = canvas.rng.random((3, len(_TUFTS)))
    reach = np.sqrt(reach) * (0.9 - size)
    u = np.cos(2 * np.pi * turn) * reach + 0.4 * lift * canvas.sun
    v = np.sin(2 * np.pi * turn) * reach + lift
    points = np.stack([u * radii[0], v * radii[1], 0 * u], axis=1) + center
    colors = leaf * (tone + 0.16 * (flicker - 0.5))[:, None]
    canvas.discs(Label.VEGETATION, colors, points, size * min(radii))


def _paint_tree(canvas: _Canvas, x: float, z: float) -> None:
    """A trunk with a round crown, or the three tiers of a conifer."""
    leaf, height, girth = canvas.pick(_LEAVES), *canvas.rng.uniform((4.4, 0.18), (6.5, 0.27))
    plane, bark = _Plane(x, z), _BARK * canvas.rng.uniform(0.7, 1.1)
    canvas.fill(Label.VEGETATION, bark, plane.box(-girth, 0, girth, 0.6 * height))
    if canvas.rng.random() < 0.75:
        width, tall = canvas.rng.uniform((1.5, 1.5), (2.2, 2.2))
        _paint_foliage(canvas, (x, height - 0.6 * tall, z), (width, tall), leaf)
        return
    for foot, tone in ((0.25, 0.7), (0.45, 0.85), (0.65, 1.0)):
        half, low, tip = 1.9 * (1.0 - foot), foot * height, (foot + 0.4) * height
        tier = plane.polygon((-half, low), (half, low), (0.0, tip))
        canvas.fill(Label.VEGETATION, leaf * tone, tier)


def _paint_bush(canvas: _Canvas, x: float, z: float) -> None:
    radii = (canvas.rng.uniform(0.8, 1.2), 0.8)
    _paint_foliage(canvas, (x, 0.65, z), radii, canvas.pick(_LEAVES))


def _paint_garden(canvas: _Canvas, side: int, x: float, z0: float, z1: float) -> None:
    """A hedge along the pavement with trees behind it."""
    for z in (z1 - 2.0, z0 + 2.0):
        _paint_tree(canvas, x + side * canvas.rng.uniform(1.5, 4.0), z)
    leaf, height = canvas.pick(_LEAVES), canvas.rng.uniform(1.2, 2.0)
    for plane, width in ((_Plane(x, z0, dx=side), 9.0), (_Plane(x, z0, dx=0.0, dz=1.0), z1 - z0)):
        canvas.fill(Label.VEGETATION, leaf * 0.8, plane.box(0, 0, width, height))
        canvas.fill(Label.VEGETATION, leaf * 1.05, plane.box(0, height * 0.7, width, height))


# --- poles and people -------------------------------------------------------------------------


def _paint_pole(canvas: _Canvas, x: float, z: float) -> None:
    """A street lamp, a sign or a traffic light, never so thin that it could not be seen."""
    plane, metal, kind = _Plane(x, z), canvas.pick(_METALS, 6), canvas.rng.integers(4)
    half = max(canvas.rng.uniform(0.11, 0.15), 0.012 * z / _FOCAL)
    height = (canvas.rng.uniform(4.8, 6.0), canvas.rng.uniform(4.8, 6.0), 2.9, 3.6)[kind]
    canvas.fill(Label.POLE, metal, plane.box(-half, 0, half, height))
    canvas.fill(Label.POLE, metal * 0.8, plane.box(-1.5 * half, 0, 1.5 * half, 0.5))
    if kind < 2:
        reach = -math.copysign(1.2, x)  # over the road
        head = plane.box(0.6 * reach, height - 0.45, 1.2 * reach, height + 0.1)
        canvas.fill(Label.POLE, metal, plane.box(0, height - 1.6 * half, reach, height))
        canvas.fill(Label.POLE, _LAMPLIGHT if canvas.mood.lit > 0.3 else metal * 1.2, head)
    elif kind == 2:
        color, centers = canvas.pick(_SIGNS), np.array([(x, height - 0.2, z)] * 2)
        colors = np.stack([color * 0.2 + 195, color])
        canvas.discs(Label.POLE, colors, centers, np.array([0.55, 0.42]))
    else:
        centers = np.array([(x, height - drop, z) for drop in (0.2, 0.6, 1.0)])
        canvas.fill(Label.POLE, _BLACK, plane.box(-0.32, height - 1.2, 0.32, height))
        canvas.discs(Label.POLE, _SIGNALS, centers, np.full(3, 0.17))


def _paint_person(canvas: _Canvas, x: float, z: float) -> None:
    """Legs, arms, torso, hair and face, in fractions of the body height."""
    tall, stride, swing = canvas.rng.uniform((1.7, 0.04, 0.02), (2.0, 0.1, 0.07))
    girth, skin = canvas.rng.uniform(0.15, 0.18), canvas.pick(_SKINS, 4)
    coat, trousers = canvas.pick(_CLOTHES), canvas.pick(_CLOTHES) * 0.6

    def part(color: np.ndarray, *uv: tuple[float, float]) -> None:
        body = _Plane(x, z).polygon(*((u * tall, v * tall) for u, v in uv))
        canvas.fill(Label.PERSON, color, body)

    for way, shade in ((-1, 0.85), (1, 1.0)):
        foot, hand = way * stride, way * (girth + swing)
        part(trousers * shade, (foot - 0.06, 0), (foot + 0.06, 0), (0.11, 0.5), (-0.11, 0.5))
        part(coat * 0.85, (hand - 0.04, 0.45), (hand + 0.04, 0.45), (way * 0.1, 0.82), (0, 0.8))
    part(coat, (-girth * 0.85, 0.44), (girth * 0.85, 0.44), (girth, 0.8), (-girth, 0.8))
    colors = np.stack([_HAIR * canvas.rng.uniform(0.4, 2.4), skin])
    centers = np.array([(x, 0.91 * tall, z), (x, 0.88 * tall, z)])
    canvas.discs(Label.PERSON, colors, centers, tall * np.array([0.105, 0.085]))


# --- vehicles ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """A make of vehicle: metres, and fractions of its length (from the rear) and height."""

    width: float
    height: float
    length: float
    windows: tuple[float, float, int]  # on the side: from, to, number of panes
    outline: np.ndarray  # seen from the side, rows (along, up)

    def turned(self) -> _Model:
        """The same vehicle with its front towards the viewer."""
        first, last, number = self.windows
        outline = self.outline * (-1, 1) + (1, 0)
        return replace(self, windows=(1 - last, 1 - first, number), outline=outline)


def _outline(text: str) -> np.ndarray:
    return np.array([[float(number) for number in point.split(",")] for point in text.split()])


_BONNET = " .6,1 .76,.62 1,.55 1,.2"
_MODELS = (
    _Model(1.8, 1.50, 4.2, (0.13, 0.66, 2), _outline("0,.2 0,.6 .12,1" + _BONNET)),  # hatchback
    _Model(
        1.8, 1.45, 4.6, (0.27, 0.66, 2), _outline("0,.2 0,.6 .15,.64 .28,1" + _BONNET)
    ),  # saloon
    _Model(2.0, 2.20, 5.0, (0.66, 0.83, 1), _outline("0,.14 0,.55 .02,1 .8,1 .92,.55 1,.45 1,.14")),
    _Model(2.5, 3.00, 9.0, (0.04, 0.96, 5), _outline("0,.12 0,.5 .01,1 .99,1 1,.5 1,.12")),
)


def _paint_hull(canvas: _Canvas, model: _Model, paint: np.ndarray, x: float, z: float) -> None:
    """Roof, windscreens and the end that faces the viewer: the outline drawn out to its width."""
    along, up = model.outline.T
    half = 0.5 * model.width * np.where(up > 0.7, 0.86, 1.0)  # the cabin is narrower
    left = np.stack([x - half, up * model.height, z + along * model.length], axis=1)
    right = left + np.stack([2 * half, 0 * up, 0 * up], axis=1)
    for i, j in sorted(pairwise(range(len(up))), key=lambda ends: -along[list(ends)].sum()):
        quad = np.stack([left[i], right[i], right[j], left[j]])
        level = abs(along[j] - along[i]) > 0.2
        canvas.fill(Label.VEHICLE, paint * (1.12 if level else 0.92), quad[None])
        if not level and min(up[i], up[j]) > 0.4 and max(up[i], up[j]) == 1.0:
            middle = quad.mean(axis=0)
            pane = middle + (quad - middle) * (0.86, 0.74, 0.8)
            canvas.fill(Label.VEHICLE, _GLASS + 25, pane[None])


_RIM = np.array([(math.cos(turn), math.sin(turn)) for turn in np.arange(0, 6.28, 0.5236)])


def _paint_flank(canvas: _Canvas, model: _Model, paint: np.ndarray, plane: _Plane) -> None:
    """The side of a vehicle that the viewer sees: silhouette, windows and wheels."""
    size = np.array([model.length, model.height])
    canvas.fill(Label.VEHICLE, paint, plane.polygon(*(model.outline * size).tolist()))
    first, last, number = model.windows
    posts = np.linspace(first, last, number + 1)
    panes = np.array([(a + 0.015, 0.62, b - 0.015, 0.92) for a, b in pairwise(posts)])
    canvas.fill(Label.VEHICLE, _GLASS + 10, plane.boxes(panes * np.tile(size, 2)))
    for hub in (0.19 * model.length, 0.81 * model.length):
        for radius, color in ((0.36, _BLACK), (0.17, _BLACK + 110)):
            wheel = plane.polygon(*(_RIM * radius + (hub, 0.36)).tolist())
            canvas.fill(Label.VEHICLE, color, wheel)


def _paint_vehicle(canvas: _Canvas, model: _Model, x: float, z: float) -> None:
    """A car, van or bus with its nearest end at z; on the left side it comes towards the viewer."""
    paint, half, base, end = canvas.pick(_PAINTS), model.width / 2, 0.3 * model.height, _Plane(x, z)
    model, lamp = (model.turned(), _HEADLAMP) if x < 0 else (model, _REAR_LAMP)
    for u in (0.05 - half, half - 0.35):
        canvas.fill(Label.VEHICLE, _BLACK, end.box(u, 0.0, u + 0.3, 0.5))
    _paint_hull(canvas, model, paint, x, z)
    for u in (0.08 - half, half - 0.43):
        canvas.fill(Label.VEHICLE, lamp, end.box(u, base, u + 0.35, base + 0.22))
    canvas.fill(Label.VEHICLE, _PLATE, end.box(-0.28, base - 0.1, 0.28, base + 0.08))
    for side in (-1, 1):
        if side * (canvas.eye[0] - x) > half:
            flank = _Plane(x + side * half, z, dx=0.0, dz=1.0)
            _paint_flank(canvas, model, canvas.sunlit(paint, side), flank)


# --- the scene --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Thing:
    """Something that stands in the street: where, the ground it shades, and how to paint it."""

    z: float
    shadow: np.ndarray
    paint: Callable[[], None]

    def stands_on(self, x: float, z: float) -> bool:
        """Whether it leaves no room for a person at that place."""
        (left, _, near), (right, _, far) = self.shadow[0, 0], self.shadow[0, 2]
        return bool(left - 0.4 < x < right + 0.4 and near - 0.3 < z < far + 0.3)


def _traffic(canvas: _Canvas, kerb: float) -> Iterator[_Thing]:
    """Vehicles one behind the other in both directions."""
    for side in (-1, 1):
        z = canvas.rng.uniform(6.5, 10.0)
        while z < 28.0:
            model = _MODELS[canvas.rng.choice(4, p=(0.4, 0.25, 0.2, 0.15))]
            x = side * (kerb - 0.3 - model.width / 2) * canvas.rng.uniform(0.7, 0.97)
            z += 3.0 * (model.height > 2.5)  # a bus close by would hide the street
            if canvas.rng.random() < 0.85:
                half = model.width / 2 + 0.1
                shadow = _ground(x - half, x + half, z - 0.2, z + model.length)
                yield _Thing(z, shadow, partial(_paint_vehicle, canvas, model, x, z))
            z += model.length + canvas.rng.uniform(1.5, 7.0)


def _furniture(canvas: _Canvas, kerb: float) -> Iterator[_Thing]:
    """Poles, trees and bushes along both kerbs."""
    for side in (-1, 1):
        z = canvas.rng.uniform(6.5, 10.0)
        while z < 30.0:
            x, chance = side * (kerb + 0.7), canvas.rng.random()
            paint = _paint_pole if chance < 0.5 else _paint_tree if chance < 0.85 else _paint_bush
            if paint is not _paint_pole or z < 17.0:
                shadow = _ground(x - 0.4, x + 0.4, z - 0.2, z + 0.3)
                yield _Thing(z, shadow, partial(paint, canvas, x, z))
            z += canvas.rng.uniform(3.0, 6.5)


def _people(canvas: _Canvas, kerb: float, facade: float, traffic: list[_Thing]) -> Iterator[_Thing]:
    """Most walk on the pavement, some cross the road; none so far that a person is a speck."""
    for _ in range(canvas.rng.integers(4, 8)):
        z, crosses = canvas.rng.uniform(6.5, 11.0), canvas.rng.random() < 0.25
        x = canvas.rng.choice((-1, 1)) * canvas.rng.uniform(kerb + 1.2, facade - 0.7)
        if crosses:
            x = canvas.rng.uniform(-kerb, kerb)
        if not any(vehicle.stands_on(x, z) for vehicle in traffic):
            shadow = _ground(x - 0.4, x + 0.4, z - 0.15, z + 0.25)
            yield _Thing(z, shadow, partial(_paint_person, canvas, x, z))


def _develop(canvas: _Canvas) -> np.ndarray:
    """The photograph of a painted canvas: surface grain, lens blur, exposure, sensor noise."""
    height, width = canvas.pixels.shape[:2]
    ramp = np.arange(256) / 255.0
    gamma, gain = canvas.rng.uniform(0.85, 1.2), canvas.rng.uniform(0.85, 1.1)
    tint = np.array(canvas.mood.tint) * canvas.rng.uniform(0.95, 1.05, 3)
    curve = np.clip(255 * gain * ramp[:, None] ** gamma * tint, 0, 255).astype(np.uint8)[None]
    sigma = canvas.rng.uniform(0.3, 0.5) * math.sqrt(canvas.scale / 143.0)
    noise_level = canvas.rng.uniform(1.0, 3.0)
    # From here on the number of draws depends on the size.
    grain = canvas.rng.standard_normal((height, width), np.float32)
    grain += cv2.resize(grain[::3, ::3], (width, height), interpolation=cv2.INTER_LINEAR)
    grain *= _GRAIN[canvas.pixels[..., 3]]
    image = canvas.pixels[..., :3] + grain[..., None]
    image = cv2.GaussianBlur(np.clip(image, 0, 255).astype(np.uint8), (0, 0), sigma)
    noise = noise_level * canvas.rng.standard_normal((height, width, 1), np.float32)
    return np.clip(cv2.LUT(image, curve) + noise, 0, 255).astype(np.uint8)


def render_scene(seed: int, index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw one street scene.

    The scene depends on ``seed`` and ``index`` alone; ``size`` only sets how finely it is drawn.

    Args:
        seed: Which town, at least 0.
        index: Which scene of the town, at least 0.
        size: Height and width in pixels, each at least 32.

    Returns:
        The image, uint8 RGB [height, width, 3], and the label, uint8 [height, width], whose values
        are those of ``Label``; every pixel has one.

    Raises:
        ValueError: A side of ``size`` is too small, or ``seed`` or ``index`` is negative.
    """
    if min(size) < MIN_SIDE:
        raise ValueError(f"size must be at least {MIN_SIDE}x{MIN_SIDE} pixels, got {size}")
    rng = np.random.default_rng([seed, index])
    canvas = _Canvas(size, rng)
    kerb, footway = rng.uniform(3.4, 4.4), rng.uniform(3.6, 5.0)
    facade = kerb + footway
    _paint_sky(canvas)
    _paint_ground(canvas, kerb)
    _paint_skyline(canvas)
    for side in (-1, 1):
        _paint_row(canvas, side, side * facade)
    traffic = list(_traffic(canvas, kerb))
    things = [*traffic, *_furniture(canvas, kerb), *_people(canvas, kerb, facade, traffic)]
    canvas.darken(np.concatenate([thing.shadow for thing in things]), 0.6)
    for thing in sorted(things, key=lambda thing: -thing.z):
        thing.paint()
    return _develop(canvas), canvas.pixels[..., 3].copy()


class SyntheticSource:
    """Scenes by index, a source for ``grain.MapDataset.source``. Holds no pixels, only numbers."""

    def __init__(self, *, seed: int, num_images: int, size: tuple[int, int]) -> None:
        """``seed`` and ``size`` (height, width) as in ``render_scene``; ``num_images`` >= 1."""
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        if min(size) < MIN_SIDE:
            raise ValueError(f"size must be at least {MIN_SIDE}x{MIN_SIDE} pixels, got {size}")
        self._seed, self._num_images, self._size = seed, num_images, size

    def __len__(self) -> int:
        return self._num_images

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """``image`` and ``label`` of ``render_scene`` and ``name``. Raises IndexError."""
        number = operator.index(index)
        if not 0 <= number < self._num_images:
            raise IndexError(f"scene {number} of {self._num_images}")
        image, label = render_scene(self._seed, number, self._size)
        return {"image": image, "label": label, "name": f"scene_{number:06d}"}
