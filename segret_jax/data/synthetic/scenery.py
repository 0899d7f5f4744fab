"""Sky and ground, and what stands still on it: trees, bushes, gardens and poles."""

import math

import cv2
import numpy as np

from segret_jax.data.synthetic import palettes
from segret_jax.data.synthetic.canvas import FAR, FOCAL, Canvas, Label, Plane, ground_box

# The tufts of a crown in painting order, [26, 3]: tone, size and how far they are raised.
_TUFTS = np.repeat([(0.68, 0.5, -0.12), (0.95, 0.34, 0.08), (1.2, 0.18, 0.1)], (9, 8, 9), axis=0)


def paint_sky(canvas: Canvas) -> None:
    """A gradient down to the horizon, with clouds of seven puffs each."""
    height, width = canvas.pixels.shape[:2]
    zenith, horizon, cloud = canvas.light.sky
    down = np.minimum(np.arange(height, dtype=np.float32) / canvas.vanishing_point[1], 1.0)
    sky = (zenith + (horizon - zenith) * down[:, None])[:, None].astype(np.float32)
    cover = np.zeros((height, width), np.float32)
    for _ in range(canvas.rng.integers(2, 6)):
        position = canvas.rng.uniform((0.0, 0.02, 0.08), (1.0, 0.32, 0.2))
        x, y, span = position * (width, height, width)
        for u, puff in canvas.rng.uniform((-1.0, 0.15), (1.0, 0.4), (7, 2)):
            radius = puff * span * (1.2 - abs(u))
            center = (round(x + u * span), round(y - 0.7 * radius))  # the base stays level
            cv2.circle(cover, center, round(radius), 0.9, -1)
    blurred = cv2.GaussianBlur(cover, (0, 0), canvas.scale / 90)[..., None]
    canvas.pixels[..., :3] = sky + (cloud - sky) * blurred
    canvas.pixels[..., 3] = Label.SKY


def paint_ground(canvas: Canvas, curb: float) -> None:
    """Paving with its joints and curbstones, and on it the road, which ends at -curb and curb."""
    paving, asphalt = canvas.pick(palettes.PAVINGS), canvas.pick(palettes.ROADS)
    canvas.fill(Label.PAVEMENT, paving, ground_box(-200, 200, 1, FAR))
    joints = [ground_box(-14, 14, z, z + 0.02 * z**0.5) for z in np.arange(3, 24, 1.5)]
    canvas.fill(Label.PAVEMENT, paving * 0.86, np.concatenate(joints))
    for side in (-1, 1):
        stones = ground_box(side * curb, side * (curb + 0.3), 1, 60)
        canvas.fill(Label.PAVEMENT, paving * 1.18, stones)
    canvas.fill(Label.ROAD, asphalt, ground_box(-curb, curb, 1, FAR))
    for x, z in canvas.rng.uniform((-curb, 4.0), (curb - 2.0, 20.0), (2, 2)):  # mended patches
        tone = canvas.rng.uniform(0.9, 1.08)
        canvas.fill(Label.ROAD, asphalt * tone, ground_box(x, x + 1.8, z, z + 4.0))
    _paint_markings(canvas, curb)


def _paint_markings(canvas: Canvas, curb: float) -> None:
    """A dashed middle line, a line along each curb and, at times, a zebra crossing."""
    white = palettes.MARKING * canvas.rng.uniform(0.9, 1.1)
    start = canvas.rng.uniform(1.0, 5.0)
    dashes = [ground_box(-0.09, 0.09, z, z + 2.0) for z in np.arange(start, 60, 5.0)]
    canvas.fill(Label.ROAD, white, np.concatenate(dashes))
    for side in (-1, 1):
        canvas.fill(Label.ROAD, white, ground_box(side * (curb - 0.45), side * (curb - 0.3), 1, 60))
    if canvas.rng.random() < 0.4:
        z = canvas.rng.uniform(7.0, 12.0)
        stripes = [ground_box(x, x + 0.5, z, z + 2.5) for x in np.arange(0.7 - curb, curb - 1, 1.0)]
        canvas.fill(Label.ROAD, white, np.concatenate(stripes))


def _paint_foliage(
    canvas: Canvas, center: tuple[float, float, float], radii: tuple[float, float], leaf: np.ndarray
) -> None:
    """A crown of overlapping tufts, dark below and behind, light above and toward the sun."""
    tone, size, lift = _TUFTS.T
    turn, reach, flicker = canvas.rng.random((3, len(_TUFTS)))
    reach = np.sqrt(reach) * (0.9 - size)
    u = np.cos(2 * np.pi * turn) * reach + 0.4 * lift * canvas.sun
    v = np.sin(2 * np.pi * turn) * reach + lift
    centers = np.stack([u * radii[0], v * radii[1], np.zeros_like(u)], axis=1) + center
    colors = leaf * (tone + 0.16 * (flicker - 0.5))[:, None]
    canvas.discs(Label.VEGETATION, colors, centers, size * min(radii))


def paint_tree(canvas: Canvas, x: float, z: float) -> None:
    """A trunk with a round crown, or the three tiers of a conifer."""
    leaf = canvas.pick(palettes.LEAVES)
    height, girth = canvas.rng.uniform((4.4, 0.18), (6.5, 0.27))
    plane, bark = Plane(x, z), palettes.BARK * canvas.rng.uniform(0.7, 1.1)
    canvas.fill(Label.VEGETATION, bark, plane.box(-girth, 0, girth, 0.6 * height))
    if canvas.rng.random() < 0.75:
        width, tall = canvas.rng.uniform(1.5, 2.2, 2)
        _paint_foliage(canvas, (x, height - 0.6 * tall, z), (width, tall), leaf)
        return
    for foot, tone in ((0.25, 0.7), (0.45, 0.85), (0.65, 1.0)):
        half, low, tip = 1.9 * (1.0 - foot), foot * height, (foot + 0.4) * height
        tier = plane.polygon((-half, low), (half, low), (0.0, tip))
        canvas.fill(Label.VEGETATION, leaf * tone, tier)


def paint_bush(canvas: Canvas, x: float, z: float) -> None:
    """A low crown on the ground."""
    radii = (canvas.rng.uniform(0.8, 1.2), 0.8)
    _paint_foliage(canvas, (x, 0.65, z), radii, canvas.pick(palettes.LEAVES))


def paint_garden(canvas: Canvas, side: int, x: float, z0: float, z1: float) -> None:
    """A hedge along the pavement with trees behind it."""
    for z in (z1 - 2.0, z0 + 2.0):
        paint_tree(canvas, x + side * canvas.rng.uniform(1.5, 4.0), z)
    leaf, height = canvas.pick(palettes.LEAVES), canvas.rng.uniform(1.2, 2.0)
    for plane, width in ((Plane(x, z0, dx=side), 9.0), (Plane.along(x, z0), z1 - z0)):
        canvas.fill(Label.VEGETATION, leaf * 0.8, plane.box(0, 0, width, height))
        canvas.fill(Label.VEGETATION, leaf * 1.05, plane.box(0, height * 0.7, width, height))


def paint_pole(canvas: Canvas, x: float, z: float) -> None:
    """A street lamp, a sign or a traffic light, never so thin that it could not be seen."""
    plane, metal, kind = Plane(x, z), canvas.pick(palettes.METALS, 6.0), canvas.rng.integers(4)
    half = max(canvas.rng.uniform(0.11, 0.15), 0.012 * z / FOCAL)
    height = (*canvas.rng.uniform(4.8, 6.0, 2), 2.9, 3.6)[kind]
    canvas.fill(Label.POLE, metal, plane.box(-half, 0, half, height))
    canvas.fill(Label.POLE, metal * 0.8, plane.box(-1.5 * half, 0, 1.5 * half, 0.5))
    if kind < 2:  # a lamp
        reach = -math.copysign(1.2, x)  # over the road
        head = plane.box(0.6 * reach, height - 0.45, 1.2 * reach, height + 0.1)
        canvas.fill(Label.POLE, metal, plane.box(0, height - 1.6 * half, reach, height))
        canvas.fill(Label.POLE, palettes.LAMPLIGHT if canvas.light.lit > 0.3 else metal * 1.2, head)
    elif kind == 2:  # a sign
        color, centers = canvas.pick(palettes.SIGNS), np.array([(x, height - 0.2, z)] * 2)
        colors = np.stack([color * 0.2 + 195, color])
        canvas.discs(Label.POLE, colors, centers, np.array([0.55, 0.42]))
    else:
        canvas.fill(Label.POLE, palettes.BLACK, plane.box(-0.32, height - 1.2, 0.32, height))
        centers = np.array([(x, height - drop, z) for drop in (0.2, 0.6, 1.0)])
        canvas.discs(Label.POLE, palettes.SIGNALS, centers, np.full(3, 0.17))
