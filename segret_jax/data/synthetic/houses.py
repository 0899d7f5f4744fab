"""The two rows of houses, with a garden here and there, and the skyline where the street ends."""

from itertools import pairwise

import numpy as np

from segret_jax.data.synthetic.canvas import FAR, Canvas, Label, Plane
from segret_jax.data.synthetic.palettes import (
    CLOTHES,
    GLASS,
    LAMPLIGHT,
    PAINTS,
    PLATE,
    ROOFS,
    WALLS,
)
from segret_jax.data.synthetic.scenery import paint_garden


def paint_skyline(canvas: Canvas) -> None:
    """What closes the view at the end of the street: towers in the haze."""
    plane = Plane(0.0, FAR)
    for x in range(-32, 32, 8):
        tower = plane.box(x, 0, x + 8, canvas.rng.uniform(6, 20))
        canvas.fill(Label.BUILDING, canvas.pick(WALLS), tower)


def paint_row(canvas: Canvas, side: int, x: float) -> None:
    """One side of the street from far to near, with its fronts at x or a little behind."""
    ends = [canvas.rng.uniform(1.0, 6.0)]
    while ends[-1] < FAR - 12:
        ends.append(ends[-1] + canvas.rng.uniform(7, 14))
    for z1, z0 in pairwise(reversed(ends)):
        paint = paint_garden if canvas.rng.random() < 0.2 else _paint_house
        paint(canvas, side, x + side * canvas.rng.uniform(0, 0.5), z0, z1)


def _paint_house(canvas: Canvas, side: int, x: float, z0: float, z1: float) -> None:
    """A house with its street front at x and its gable toward the viewer."""
    wall, height, depth = canvas.pick(WALLS, 16.0), 3.6 + 3.0 * canvas.rng.integers(1, 6), 9.0
    gable, street = Plane(x, z0, dx=side), Plane.along(x, z0)
    front, flank = canvas.sunlit(wall, 0), canvas.sunlit(wall, -side)
    if height < 14:  # low houses have a pitched roof, high ones a flat roof
        ridge, top = x + side * depth / 2, height + canvas.rng.uniform(1.8, 3.2)
        roof = [(x, height, z0), (ridge, top, z0), (ridge, top, z1), (x, height, z1)]
        peak = gable.polygon((0, height), (depth / 2, top - 0.1), (depth, height))
        canvas.fill(Label.BUILDING, front, peak)
        canvas.fill(Label.BUILDING, canvas.sunlit(canvas.pick(ROOFS), -side), np.array([roof]))
    for plane, width, color in ((gable, depth, front), (street, z1 - z0, flank)):
        canvas.fill(Label.BUILDING, color, plane.box(0, 0, width, height))
        canvas.fill(Label.BUILDING, color * 0.75, plane.box(0, height - 0.4, width, height))
        if z0 < 30 or plane is street:  # far gables are hidden by the nearer houses
            _paint_windows(canvas, plane, width, height)
    if z0 < 45:
        _paint_shopfront(canvas, street, z1 - z0, flank)


def _paint_windows(canvas: Canvas, plane: Plane, width: float, height: float) -> None:
    """Floors of framed windows above the ground floor, some of them lit."""
    columns, floors = max(int(width / 2.2), 1), int((height - 3.4) / 3.0)
    pitch = width / columns
    u = np.tile((np.arange(columns) + 0.5) * pitch, floors)
    v = np.repeat(4.1 + 3.0 * np.arange(floors), columns)
    panes = np.stack([u - 0.28 * pitch, v, u + 0.28 * pitch, v + 1.6], axis=1)
    if plane.z < 40:  # further off, frames would be narrower than a pixel
        frames = panes + np.array([-0.12, -0.25, 0.12, 0.12])
        canvas.fill(Label.BUILDING, PLATE * canvas.rng.uniform(0.8, 1), plane.boxes(frames))
    lit = canvas.rng.random(len(panes)) < canvas.light.lit
    glass = GLASS + canvas.rng.uniform(-10, 50)
    for color, chosen in ((glass, panes[~lit]), (LAMPLIGHT, panes[lit])):
        if len(chosen):
            canvas.fill(Label.BUILDING, color, plane.boxes(chosen))


def _paint_shopfront(canvas: Canvas, plane: Plane, width: float, wall: np.ndarray) -> None:
    """Ground floor: display window, door and a striped awning."""
    cloth, door = canvas.pick(CLOTHES), canvas.pick(PAINTS)
    glass = LAMPLIGHT if canvas.rng.random() < canvas.light.lit + 0.15 else GLASS + 30
    canvas.fill(Label.BUILDING, wall * 0.7, plane.box(0, 0, width, 3.4))
    canvas.fill(Label.BUILDING, glass, plane.box(0.12 * width, 0.5, 0.6 * width, 2.6))
    canvas.fill(Label.BUILDING, door, plane.box(0.72 * width, 0, 0.88 * width, 2.4))
    canvas.fill(Label.BUILDING, cloth, plane.box(0.06 * width, 2.5, 0.66 * width, 3.2))
    stripes = [(u, 2.5, u + 0.075 * width, 3.2) for u in width * np.arange(0.12, 0.6, 0.15)]
    canvas.fill(Label.BUILDING, cloth * 0.3 + 170, plane.boxes(np.array(stripes)))
