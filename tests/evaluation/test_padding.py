"""Padded inputs give the results of unpadded ones; few sizes are enough for many images."""

import dataclasses
import math
from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from benchmarks.padding import ade20k_like, wasted
from segret_jax.config import EvalConfig, ModelConfig, choose_family
from segret_jax.evaluation.inference import Predictor
from segret_jax.evaluation.padding import MAX_PROGRAMS, choose, ladder
from segret_jax.evaluation.plan import choose_padding, make_plan
from segret_jax.models.factory import ModelBundle, build
from segret_jax.models.families import FAMILIES
from segret_jax.models.kernels import platform_of
from tests import golden_weights as golden
from tests.conftest import slow, small_models

Size = tuple[int, int]

# Of a network's input: the smallest, odd ones, both orientations, extreme ratios.
SIZES = {
    "segret": [(1, 90), (33, 47), (1, 1), (90, 2), (64, 64)],
    "segman": [(230, 300), (224, 256), (20, 400), (300, 225), (224, 224)],
}
EVALUATION = {
    "segret": EvalConfig(resize_target=(96, 48), multiple_of=1),
    "segman": EvalConfig(resize_target=(480, 230)),
}
VIEWS: dict[str, dict[str, Any]] = {
    "whole": {},
    "slide": {"mode": "slide", "window": (32, 48), "stride": (20, 31)},
    "scales and flip": {"scales": (0.5, 1.25), "flip": True},
}


@pytest.fixture(scope="module", params=["segret", "segman"])
def family(request: pytest.FixtureRequest) -> tuple[str, ModelBundle]:
    """A small model of each family that sees different classes, with statistics of its own."""
    config = ModelConfig(matmul_precision="highest")
    choose_family(config, request.param)
    with small_models():
        graph, *trees = build(config, 5, seed=0, platform=platform_of(jax.devices()))

    def vary(path: Any, leaf: jax.Array) -> np.ndarray:
        noise = golden.noise(jax.tree_util.keystr(path), leaf.shape)
        return np.abs(leaf + 0.1 * noise) if "var" in str(path[-1]) else leaf + 0.1 * noise

    return request.param, ModelBundle(graph, *(jax.tree.map_with_path(vary, t) for t in trees))


def predictor_of(family: tuple[str, ModelBundle], **options: Any) -> Predictor:
    name, bundle = family
    if name == "segman" and "window" in options:
        options |= {"window": (224, 256), "stride": (150, 160)}
    config = dataclasses.replace(EVALUATION[name], **options)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    return Predictor(bundle, config, min_side=FAMILIES[name].min_side, mesh=mesh)


@pytest.mark.parametrize("case", ["two sizes", *slow(*VIEWS)])
def test_padding_changes_only_ties(family, case):
    """The padded sizes are those of the ladder, and those chosen for all sizes."""
    predictor, sizes = predictor_of(family, **VIEWS.get(case, {})), SIZES[family[0]]
    sizes = sizes[:2] if case == "two sizes" else sizes
    chosen = choose_padding(sizes, predictor.config, min_side=predictor.min_side)
    rng = np.random.default_rng(0)
    for size in sizes:
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        (expected,) = predictor.predict([predictor.prepare(image, padding={})])
        for padding in (None,) if case == "two sizes" else (None, chosen):
            (found,) = predictor.predict([predictor.prepare(image, padding=padding)])
            differ = found.label_map != expected.label_map
            assert (found.tied | expected.tied)[differ].all()
            assert found.tied.mean() < 0.01 or size == (1, 1)


def test_what_is_outside_of_the_true_size_does_not_matter(family):
    predictor = predictor_of(family)
    height, width = SIZES[family[0]][1]
    pixels = np.zeros((1, *ladder((height + 1, width + 1)), 3), np.uint8)
    pixels[:] = np.random.default_rng(0).integers(0, 256, pixels.shape)
    height, width = (height // 32 * 32, width // 32 * 32)
    black = pixels.copy()
    black[:, height:] = 0
    black[:, :, width:] = 0
    run, size = predictor.programs.network, (np.int32(height), np.int32(width))
    one, other = (np.asarray(run(predictor.variables, x, size)) for x in (pixels, black))
    height, width = height // predictor.stride, width // predictor.stride
    np.testing.assert_array_equal(one[:, :height, :width], other[:, :height, :width])


def test_a_rung_of_the_ladder_is_at_most_a_quarter_longer():
    sides = [ladder((side, 1))[0] for side in range(1, 3000)]
    assert sides == sorted(sides)
    assert all(side <= rung <= max(1.25 * side, 4) for side, rung in enumerate(sides, start=1))
    assert len(set(sides)) < 45
    assert all(ladder((side, side)) == (side, side) for side in {*sides})
    assert all(ladder((32 * i, 1))[0] % 32 == 0 for i in range(1, 90))


def test_a_set_like_ade20k_needs_four_programs():
    sizes, config = ade20k_like(), EvalConfig()
    assert len(sizes) == 2000
    assert len(set(sizes)) > 90
    padding = choose_padding(sizes, config)
    plan = make_plan(dict(enumerate(sizes)), config, 16, stride=4, padding=padding)
    assert len(plan.passes) <= MAX_PROGRAMS == 4
    assert any(len(batch) < 16 for batch in plan.batches)
    assert wasted(sizes, config) <= 0.22
    assert plan.pixels >= sum(math.prod(size) for size in sizes) / 16


def test_each_scale_has_few_programs():
    sizes, config = ade20k_like(), EvalConfig(scales=(0.5, 1.0, 1.75), flip=True)
    padding = choose_padding(sizes, config)
    plan = make_plan(dict(enumerate(sizes)), config, 4, stride=4, padding=padding)
    assert len(plan.passes) <= 3 * MAX_PROGRAMS
    assert wasted(sizes, config) <= 0.22


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_every_size_fits_into_one_of_few(limit):
    rng = np.random.default_rng(limit)
    counts = Counter({(int(h), int(w)): 3 for h, w in rng.integers(1, 900, (600, 2))})
    padding = choose(counts, limit)
    assert padding.keys() == counts.keys()
    assert len({padded or size for size, padded in padding.items()}) <= limit
    padded = [(size, padded or size) for size, padded in padding.items()]
    assert all(p[0] >= size[0] and p[1] >= size[1] for size, p in padded)


def test_few_sizes_are_not_padded():
    assert choose({(3, 4): 1, (4, 3): 9, (5, 5): 2}) == dict.fromkeys([(3, 4), (4, 3), (5, 5)])
    assert choose({}) == {}
    assert choose({(3, 4): 1, (4, 4): 9}, 1) == {(3, 4): (4, 4), (4, 4): (4, 4)}


def test_the_order_of_the_images_does_not_matter():
    sizes, config = ade20k_like()[::7], EvalConfig()
    assert choose_padding(sizes, config) == choose_padding(sizes[::-1], config)
