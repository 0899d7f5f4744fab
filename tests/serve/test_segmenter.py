"""A few sizes of the network's input hold every photograph."""

import itertools
from typing import Any

import numpy as np
import pytest

from segret_jax.config import EvalConfig
from segret_jax.evaluation.inference import Predictor
from segret_jax.evaluation.plan import tilings
from segret_jax.serve import segmenter as segmenters
from segret_jax.serve.segmenter import Segmenter
from tests.serve import stand_in

SIDES = (1, 2, 37, 224, 360, 480, 1000, 1333, 4000, 9000)


class Plain(Predictor):
    """What a Segmenter asks of a predictor before it predicts."""

    def __init__(self, config: EvalConfig, min_side: int):
        self.config, self.min_side = config, min_side


@pytest.mark.parametrize(
    ("settings", "min_side", "most"),
    [
        ({"resize_target": (384, 288)}, 1, 5),
        ({"resize_target": (2048, 512)}, 1, 8),
        ({"resize_target": (512, 384), "multiple_of": 32}, 224, 5),
        ({"resize_target": (1024, 512), "mode": "slide", "window": (512, 512)}, 1, 6),
        ({"resize_target": (384, 288), "scales": (0.5, 1.0)}, 1, 10),
    ],
)
def test_photographs_of_every_shape_use_the_compiled_sizes(
    monkeypatch, settings: dict[str, Any], min_side: int, most: int
):
    config = EvalConfig(**settings)
    seen: list[Any] = []

    def segment(*_: Any, padding: Any) -> Any:
        seen.append(padding)
        return stand_in.segment(np.zeros((1, 1, 3), np.uint8))

    monkeypatch.setattr(segmenters, "segment", segment)
    made = Segmenter(Plain(config, min_side), stand_in.TABLE)
    assert len(made.sizes) <= most
    for size in itertools.product(SIDES, SIDES):
        made(np.broadcast_to(np.uint8(0), (*size, 3)))
        padding = seen.pop()
        for tiling in tilings(size, config, min_side=min_side):
            padded = padding[tiling.tile]
            assert padded in made.sizes
            assert all(side <= limit for side, limit in zip(tiling.tile, padded, strict=True))
