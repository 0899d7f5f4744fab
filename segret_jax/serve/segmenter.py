"""The model of the server: a few sizes of the network's input, all compiled before the start."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from segret_jax.data.class_table import ClassTable
from segret_jax.evaluation.inference import Predictor
from segret_jax.evaluation.padding import Padding, Size, ladder
from segret_jax.evaluation.plan import tilings
from segret_jax.prediction.segmentation import Segmentation, segment

RATIOS = ((4, 3), (16, 9), (1, 1), (3, 4), (9, 16))  # width to height
SIDE = 1200  # pixels of the image for which programs are compiled


class Segmenter:
    """Segments photographs of any size by the programs of common aspect ratios.

    A photograph of another ratio is padded to the smallest of their sizes that holds it, so that
    no client waits for a compilation, and none can cause one.
    """

    def __init__(self, predictor: Predictor, classes: ClassTable):
        self._predictor, self.classes = predictor, classes
        self._images: dict[frozenset[Size], Size] = {}  # of the network's inputs: one image
        long, short = max(target := predictor.config.resize_target), min(target)
        for wide, high in ((long, short), (short, long), *RATIOS):
            size = max(1, SIDE * high // max(wide, high)), max(1, SIDE * wide // max(wide, high))
            self._images.setdefault(frozenset(map(ladder, self._tiles(size))), size)
        self.sizes = sorted(frozenset[Size]().union(*self._images), key=math.prod)

    def _tiles(self, size: Size) -> list[Size]:
        planned = tilings(size, self._predictor.config, min_side=self._predictor.min_side)
        return [tiling.tile for tiling in planned]

    def warm(self, advance: Callable[[str], object]) -> None:
        """Compile all programs; `advance` gets a line before each image."""
        for number, (tiles, size) in enumerate(self._images.items(), 1):
            inputs = ", ".join(f"{height}x{width}" for height, width in sorted(tiles))
            advance(f"preparing {number} of {len(self._images)}: network inputs of {inputs}")
            _ = self(np.zeros((*size, 3), np.uint8)).confidence

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> Segmentation:
        """Segment a photograph."""
        tiles = self._tiles((image.shape[0], image.shape[1]))
        padding: Padding = {tile: self._padded(tile) for tile in tiles}
        return segment(self._predictor, self.classes, image, padding=padding)

    def _padded(self, tile: Size) -> Size:
        height, width = tile
        fitting = (size for size in self.sizes if height <= size[0] and width <= size[1])
        return next(fitting, ladder(tile))
