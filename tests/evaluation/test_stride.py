"""Models whose logits are at another stride than 4: predicted right, or refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from segret_jax.config import EvalConfig
from segret_jax.data.transforms import normalize
from segret_jax.evaluation.inference import Predictor
from segret_jax.evaluation.plan import make_plan
from segret_jax.models.factory import ModelBundle
from tests.evaluation.test_rescale import released

WHOLE = EvalConfig(resize_target=(64, 32), multiple_of=16)
SLIDE = EvalConfig(
    resize_target=(90, 45), multiple_of=1, mode="slide", window=(32, 40), stride=(20, 31)
)


class Strided(nnx.Module):
    """Logits that are averages of cells of `stride` pixels, some columns too few if `cut`."""

    def __init__(self, stride: int, *, cut: int = 0):
        self.stride, self.cut = stride, cut
        self.mix = nnx.Param(jnp.eye(3, 4) * 2)

    def __call__(self, image: jax.Array) -> jax.Array:
        b, h, w, _ = image.shape
        rows, columns = -h % self.stride, -w % self.stride
        image = jnp.pad(image, ((0, 0), (0, rows), (0, columns), (0, 0)), "edge")
        cells = image.reshape(b, (h + rows) // self.stride, self.stride, -1, self.stride, 3)
        logits = cells.mean((2, 4)) @ self.mix[...]
        return logits[:, :, : logits.shape[2] - self.cut]


def predictor_of(model: Strided, config: EvalConfig) -> Predictor:
    graph, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    trees: Any = map(nnx.to_pure_dict, (params, statistics))
    return Predictor(
        ModelBundle(graph, *trees), config, mesh=Mesh(np.array(jax.devices()[:1]), ("data",))
    )


def picture(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)


@pytest.mark.parametrize("stride", [2, 8])
@pytest.mark.parametrize("config", [WHOLE, SLIDE], ids=["whole", "slide"])
def test_logits_at_any_stride_are_resized_as_by_loops(stride, config):
    image, model = picture((47, 85)), Strided(stride)
    predictor = predictor_of(model, config)
    (pixels, tiling, _), (h, w) = predictor.prepare(image).scales[0], (47, 85)
    network = normalize(pixels)
    tiles = []
    for number in range(tiling.num_tiles):
        top, left = tiling.corner(number)
        tile = network[top : top + tiling.tile[0], left : left + tiling.tile[1]]
        tiles.append(np.asarray(model(tile[None]))[0])
    expected = released(tiles, tiling, (h, w))
    expected = np.exp(expected) / np.exp(expected).sum(-1, keepdims=True)
    np.testing.assert_allclose(predictor.probabilities(image), expected, atol=1e-5)


@pytest.mark.parametrize(("stride", "cells"), [(2, 16 * 32), (4, 8 * 16), (8, 4 * 8), (5, 7 * 13)])
def test_the_plan_counts_logits_at_the_model_s_stride(stride, cells):
    assert make_plan({0: (32, 64)}, WHOLE, 1, stride=stride).held_logits == cells


def test_logits_that_contradict_the_stride_are_rejected():
    predictor = predictor_of(Strided(8, cut=1), WHOLE)
    refusal = r"logits of an input of 32x64 are 4x7, but the model's stride is 8: expected 4x8"
    with pytest.raises(ValueError, match=refusal):
        predictor.label_map(picture((32, 64)))
