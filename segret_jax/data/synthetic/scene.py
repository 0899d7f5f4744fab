"""A whole scene: what stands where, the painting from far to near, and the photograph of it."""

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import SupportsIndex

import cv2
import numpy as np
from jaxtyping import UInt8

from segret_jax.data.sources import Sample
from segret_jax.data.synthetic import scenery
from segret_jax.data.synthetic.canvas import Canvas, ground_box
from segret_jax.data.synthetic.houses import paint_row, paint_skyline
from segret_jax.data.synthetic.traffic import MODELS, paint_person, paint_vehicle

_MIN_SIDE = 32
# How strongly the surface of each class is speckled, in gray levels, by `Label`.
_GRAIN = np.array([1.0, 4.0, 5.0, 6.0, 1.5, 2.0, 1.5, 8.0], np.float32)


@dataclass(frozen=True)
class _Item:
    """Something that stands in the street: where, the ground it shades, and how to paint it."""

    z: float
    shadow: np.ndarray
    paint: Callable[[], None]

    def stands_on(self, x: float, z: float) -> bool:
        """Whether it leaves no room for a person at that place."""
        (left, _, near), (right, _, far) = self.shadow[0, 0], self.shadow[0, 2]
        return bool(left - 0.4 < x < right + 0.4 and near - 0.3 < z < far + 0.3)


def _vehicles(canvas: Canvas, curb: float) -> Iterator[_Item]:
    """Vehicles one behind the other in both directions."""
    for side in (-1, 1):
        z = canvas.rng.uniform(6.5, 10.0)
        while z < 28.0:
            model = MODELS[canvas.rng.choice(len(MODELS), p=[model.fraction for model in MODELS])]
            x = side * (curb - 0.3 - model.width / 2) * canvas.rng.uniform(0.7, 0.97)
            z += 3.0 * (model.height > 2.5)  # a bus close by would hide the street
            if canvas.rng.random() < 0.85:
                half = model.width / 2 + 0.1
                shadow = ground_box(x - half, x + half, z - 0.2, z + model.length)
                yield _Item(z, shadow, partial(paint_vehicle, canvas, model, x, z))
            z += model.length + canvas.rng.uniform(1.5, 7.0)


def _furniture(canvas: Canvas, curb: float) -> Iterator[_Item]:
    """Poles, trees and bushes along both curbs."""
    for side in (-1, 1):
        z = canvas.rng.uniform(6.5, 10.0)
        while z < 30.0:
            x, chance = side * (curb + 0.7), canvas.rng.random()
            paint = scenery.paint_tree if chance < 0.85 else scenery.paint_bush
            paint = scenery.paint_pole if chance < 0.5 else paint
            if chance >= 0.5 or z < 17.0:  # poles farther off are too thin
                shadow = ground_box(x - 0.4, x + 0.4, z - 0.2, z + 0.3)
                yield _Item(z, shadow, partial(paint, canvas, x, z))
            z += canvas.rng.uniform(3.0, 6.5)


def _people(canvas: Canvas, curb: float, facade: float, vehicles: list[_Item]) -> Iterator[_Item]:
    """Most walk on the pavement, some cross the road; none so far that a person is a speck."""
    for _ in range(canvas.rng.integers(4, 8)):
        z, crosses = canvas.rng.uniform(6.5, 11.0), canvas.rng.random() < 0.25
        x = canvas.rng.choice((-1, 1)) * canvas.rng.uniform(curb + 1.2, facade - 0.7)
        if crosses:
            x = canvas.rng.uniform(-curb, curb)
        if not any(vehicle.stands_on(x, z) for vehicle in vehicles):
            shadow = ground_box(x - 0.4, x + 0.4, z - 0.15, z + 0.25)
            yield _Item(z, shadow, partial(paint_person, canvas, x, z))


def _apply_camera(canvas: Canvas) -> np.ndarray:
    """The photograph of a painted canvas: surface grain, lens blur, exposure, sensor noise."""
    height, width = canvas.pixels.shape[:2]
    ramp = np.arange(256) / 255.0
    gamma, gain = canvas.rng.uniform(0.85, 1.2), canvas.rng.uniform(0.85, 1.1)
    tint = np.array(canvas.light.tint) * canvas.rng.uniform(0.95, 1.05, 3)
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


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < _MIN_SIDE:
        raise ValueError(f"size must be at least {_MIN_SIDE}x{_MIN_SIDE} pixels, got {size}")


def render_scene(
    seed: int, index: int, size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Draw scene `index` of town `seed`, both at least 0, as RGB image and label.

    The scene depends on `seed` and `index` alone; `size`, height and width of at least 32 pixels,
    only sets how finely it is drawn. Every pixel has one of the values of `Label`. Raises
    ValueError for a side that is too small, and for a negative `seed` or `index`.
    """
    _check_size(size)
    rng = np.random.default_rng([seed, index])
    canvas = Canvas(size, rng)
    curb, sidewalk = rng.uniform(3.4, 4.4), rng.uniform(3.6, 5.0)
    facade = curb + sidewalk
    scenery.paint_sky(canvas)
    scenery.paint_ground(canvas, curb)
    paint_skyline(canvas)
    for side in (-1, 1):
        paint_row(canvas, side, side * facade)
    vehicles = list(_vehicles(canvas, curb))
    things = [*vehicles, *_furniture(canvas, curb), *_people(canvas, curb, facade, vehicles)]
    canvas.shade(np.concatenate([thing.shadow for thing in things]))
    for thing in sorted(things, key=lambda thing: -thing.z):
        thing.paint()
    return _apply_camera(canvas), canvas.pixels[..., 3].copy()


class SyntheticSource:
    """Scenes by index, a source for `grain.MapDataset.source`. Holds no pixels, only numbers."""

    def __init__(self, *, seed: int, num_images: int, size: tuple[int, int]) -> None:
        """`seed` and `size` (height, width) as in `render_scene`; `num_images` >= 1."""
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        _check_size(size)
        self._seed, self._num_images, self._size = seed, num_images, size

    def __len__(self) -> int:
        return self._num_images

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """`image` and `label` of `render_scene` and `name`. Raises IndexError."""
        number = operator.index(index)
        if not 0 <= number < self._num_images:
            raise IndexError(f"scene {number} of {self._num_images}")
        image, label = render_scene(self._seed, number, self._size)
        return {"image": image, "label": label, "name": self.name(number)}

    def name(self, index: int) -> str:
        """Return the scene's name."""
        return f"scene_{index:06d}"

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width), the same for all."""
        return self._size
