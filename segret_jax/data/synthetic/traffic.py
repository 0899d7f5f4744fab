"""People and vehicles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from segret_jax.data.synthetic import palettes
from segret_jax.data.synthetic.canvas import Canvas, Label, Meters, Plane


def paint_person(canvas: Canvas, x: float, z: float) -> None:
    """Legs, arms, torso, hair and face, in fractions of the body height."""
    tall, stride, swing = canvas.rng.uniform((1.7, 0.04, 0.02), (2.0, 0.1, 0.07))
    girth, skin = canvas.rng.uniform(0.15, 0.18), canvas.pick(palettes.SKINS, 4.0)
    coat, trousers = canvas.pick(palettes.CLOTHES), canvas.pick(palettes.CLOTHES) * 0.6

    def part(color: np.ndarray, *corners: Sequence[Meters]) -> None:
        polygon = Plane(x, z).polygon(*((u * tall, v * tall) for u, v in corners))
        canvas.fill(Label.PERSON, color, polygon)

    for side, shade in ((-1, 0.85), (1, 1.0)):
        foot, hand = side * stride, side * (girth + swing)
        part(trousers * shade, (foot - 0.06, 0), (foot + 0.06, 0), (0.11, 0.5), (-0.11, 0.5))
        part(coat * 0.85, (hand - 0.04, 0.45), (hand + 0.04, 0.45), (side * 0.1, 0.82), (0, 0.8))
    part(coat, (-girth * 0.85, 0.44), (girth * 0.85, 0.44), (girth, 0.8), (-girth, 0.8))
    colors = np.stack([palettes.HAIR * canvas.rng.uniform(0.4, 2.4), skin])
    centers = np.array([(x, 0.91 * tall, z), (x, 0.88 * tall, z)])
    canvas.discs(Label.PERSON, colors, centers, tall * np.array([0.105, 0.085]))


@dataclass(frozen=True)
class Model:
    """A make of vehicle: meters, and fractions of its length (from the rear) and height."""

    fraction: float  # of the vehicles in the street
    width: float
    height: float
    length: float
    windows: tuple[float, float, int]  # on the side: from, to, number of panes
    outline: np.ndarray  # seen from the side, rows (along, up)


_HOOD = [(0.6, 1), (0.76, 0.62), (1, 0.55), (1, 0.2)]
_HATCHBACK = np.array([(0, 0.2), (0, 0.6), (0.12, 1), *_HOOD])
_SEDAN = np.array([(0, 0.2), (0, 0.6), (0.15, 0.64), (0.28, 1), *_HOOD])
_VAN = np.array([(0, 0.14), (0, 0.55), (0.02, 1), (0.8, 1), (0.92, 0.55), (1, 0.45), (1, 0.14)])
_BUS = np.array([(0, 0.12), (0, 0.5), (0.01, 1), (0.99, 1), (1, 0.5), (1, 0.12)])
MODELS = (
    Model(0.40, 1.8, 1.50, 4.2, windows=(0.13, 0.66, 2), outline=_HATCHBACK),
    Model(0.25, 1.8, 1.45, 4.6, windows=(0.27, 0.66, 2), outline=_SEDAN),
    Model(0.20, 2.0, 2.20, 5.0, windows=(0.66, 0.83, 1), outline=_VAN),
    Model(0.15, 2.5, 3.00, 9.0, windows=(0.04, 0.96, 5), outline=_BUS),
)
_WHEEL = np.array([(math.cos(turn), math.sin(turn)) for turn in np.arange(0, 6.28, 0.5236)])


def _turned(model: Model) -> Model:
    """The same vehicle with its front toward the viewer."""
    first, last, number = model.windows
    outline = model.outline * (-1, 1) + (1, 0)
    return replace(model, windows=(1 - last, 1 - first, number), outline=outline)


def paint_vehicle(canvas: Canvas, model: Model, x: float, z: float) -> None:
    """A car, van or bus with its nearest end at z; on the left side it comes toward the viewer."""
    paint, end = canvas.pick(palettes.PAINTS), Plane(x, z)
    half, base = model.width / 2, 0.3 * model.height
    model, lamp = (_turned(model), palettes.HEADLAMP) if x < 0 else (model, palettes.REAR_LAMP)
    for u in (0.05 - half, half - 0.35):
        canvas.fill(Label.VEHICLE, palettes.BLACK, end.box(u, 0.0, u + 0.3, 0.5))
    _paint_hull(canvas, model, paint, x, z)
    for u in (0.08 - half, half - 0.43):
        canvas.fill(Label.VEHICLE, lamp, end.box(u, base, u + 0.35, base + 0.22))
    canvas.fill(Label.VEHICLE, palettes.PLATE, end.box(-0.28, base - 0.1, 0.28, base + 0.08))
    for side in (-1, 1):
        if side * (canvas.eye[0] - x) > half:
            flank = Plane.along(x + side * half, z)
            _paint_flank(canvas, model, canvas.sunlit(paint, side), flank)


def _paint_hull(canvas: Canvas, model: Model, paint: np.ndarray, x: float, z: float) -> None:
    """Roof, windshields and the end that faces the viewer: the outline drawn out to its width."""
    along, up = model.outline.T
    half = 0.5 * model.width * np.where(up > 0.7, 0.86, 1.0)  # the cabin is narrower
    y, depth = up * model.height, z + along * model.length
    left, right = (np.stack([edge, y, depth], axis=1) for edge in (x - half, x + half))
    far_to_near = np.argsort(-(along[:-1] + along[1:]), kind="stable")
    for i, j in zip(far_to_near, far_to_near + 1, strict=True):
        quad = np.stack([left[i], right[i], right[j], left[j]])
        level = abs(along[j] - along[i]) > 0.2
        canvas.fill(Label.VEHICLE, paint * (1.12 if level else 0.92), quad[None])
        if not level and min(up[i], up[j]) > 0.4 and max(up[i], up[j]) == 1.0:
            middle = quad.mean(axis=0)
            pane = middle + (quad - middle) * (0.86, 0.74, 0.8)
            canvas.fill(Label.VEHICLE, palettes.GLASS + 25, pane[None])


def _paint_flank(canvas: Canvas, model: Model, paint: np.ndarray, plane: Plane) -> None:
    """The side of a vehicle that the viewer sees: silhouette, windows and wheels."""
    size = np.array([model.length, model.height])
    canvas.fill(Label.VEHICLE, paint, plane.polygon(*(model.outline * size).tolist()))
    first, last, number = model.windows
    posts = np.linspace(first, last, number + 1)
    panes = np.array([(a + 0.015, 0.62, b - 0.015, 0.92) for a, b in pairwise(posts)])
    canvas.fill(Label.VEHICLE, palettes.GLASS + 10, plane.boxes(panes * np.tile(size, 2)))
    for hub in (0.19 * model.length, 0.81 * model.length):
        for radius, color in ((0.36, palettes.BLACK), (0.17, palettes.BLACK + 110)):
            wheel = plane.polygon(*(_WHEEL * radius + (hub, 0.36)).tolist())
            canvas.fill(Label.VEHICLE, color, wheel)
