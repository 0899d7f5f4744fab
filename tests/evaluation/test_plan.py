"""Windows, network sizes and batches, settled from the sizes of the images."""

import itertools
from collections import Counter

import numpy as np
import pytest

from segret_jax.config import EvalConfig
from segret_jax.evaluation.plan import Tiling, logits_size, make_plan, tilings, window_starts
from tests import golden_weights as golden

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
GOLDENS = {
    "whole": EvalConfig(resize_target=(600, 128)),
    "resize": EvalConfig(resize_target=(600, 120), multiple_of=1),
    "msflip": EvalConfig(resize_target=(600, 128), scales=SCALES, flip=True),
}


@pytest.mark.parametrize("case", GOLDENS)
def test_network_sizes_equal_the_original(case):
    config = GOLDENS[case]
    sizes = [tiling.size for tiling in tilings((100, 150), config)]
    expected = golden.load("inference_tiny_19")[f"{case}/sizes"]
    np.testing.assert_array_equal(np.repeat(sizes, 1 + config.flip, axis=0), expected)


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 5), (8, 1), (3, 2)])
def test_windows_cover_every_pixel_in_the_specified_number(window, stride):
    for length in range(window, 40):
        starts = window_starts(length, window, stride)
        assert len(starts) == max(length - window + stride - 1, 0) // stride + 1
        assert starts[0] == 0
        assert starts[-1] == length - window
        assert all(0 < b - a <= stride for a, b in itertools.pairwise(starts))


def test_a_tile_is_the_window_or_the_image_where_that_is_smaller():
    config = EvalConfig(
        resize_target=(96, 32), multiple_of=1, mode="slide", window=(40, 40), stride=(24, 24)
    )
    (wide,) = tilings((32, 90), config)
    assert wide == Tiling((32, 90), (32, 40), (0,), (0, 24, 48, 50))
    assert (wide.num_tiles, logits_size(wide.tile, 4)) == (4, (8, 10))
    assert [wide.corner(i) for i in range(4)] == [(0, 0), (0, 24), (0, 48), (0, 50)]
    (tall,) = tilings((90, 32), config)
    assert [tall.corner(i) for i in range(4)] == [(0, 0), (24, 0), (48, 0), (50, 0)]


def test_short_sides_are_stretched_to_one_that_the_network_takes():
    """Of 10x160 pixels 128x2048 are left, and 64x1024 at half the scale."""
    config = EvalConfig(scales=(0.5, 1.0))
    half, full = tilings((10, 160), config, min_side=193)
    assert half == Tiling((224, 1024), (224, 1024))
    assert full == Tiling((224, 2048), (224, 2048))
    plan = make_plan({0: (10, 160)}, config, 1, stride=4, min_side=193)
    assert plan.passes == {(224, 1024): 1, (224, 2048): 1}
    assert plan.held_logits == 56 * 256 + 56 * 512
    assert plan.num_stretched == 1
    assert make_plan({0: (300, 400)}, config, 1, stride=4, min_side=193).num_stretched == 0
    assert tilings((300, 400), config, min_side=193) == tilings((300, 400), config)

    slide = EvalConfig(mode="slide", window=(256, 512), stride=(256, 400))
    (tiling,) = tilings((160, 10), slide, min_side=193)
    assert (tiling.size, tiling.tile) == ((2048, 224), (256, 224))
    assert (len(tiling.tops), tiling.lefts) == (8, (0,))


def images(count: int) -> dict[int, tuple[int, int]]:
    rng = np.random.default_rng(0)
    return {3 * i: (int(h), int(w)) for i, (h, w) in enumerate(rng.integers(20, 70, (count, 2)))}


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_each_image_is_in_one_batch_with_others_whose_tiles_have_its_sizes(mode):
    config = EvalConfig(
        resize_target=(64, 32), mode=mode, window=(32, 48), stride=(16, 32),
        scales=(1.0, 1.5), flip=True,
    )  # fmt: skip
    sizes = images(50)
    plan = make_plan(sizes, config, 4, stride=4)
    assert sorted(itertools.chain.from_iterable(plan.batches)) == sorted(sizes)
    passes: Counter[tuple[int, int]] = Counter()
    kinds = []
    for batch in plan.batches:
        scales = [tilings(sizes[i], config) for i in batch]
        (kind,) = {tuple(tiling.tile for tiling in image) for image in scales}
        kinds.append(kind)
        for scale, tile in enumerate(kind):
            passes[tile] += 2 * max(image[scale].num_tiles for image in scales)
        assert len(batch) <= 4
    assert plan.passes == passes
    partial = Counter(
        kind for kind, batch in zip(kinds, plan.batches, strict=True) if len(batch) < 4
    )
    assert max(partial.values()) == 1  # only the last of a kind is not full
    assert [kind for kind, _ in itertools.groupby(kinds)] == list(dict.fromkeys(kinds))
    pixels = [sum(h * w for h, w in kind) for kind in kinds]
    assert pixels == sorted(pixels, reverse=True)


def test_plan_describes_itself_and_counts_held_logits():
    config = EvalConfig(
        resize_target=(64, 32), mode="slide", window=(32, 32), stride=(32, 16), flip=True
    )
    plan = make_plan({0: (32, 64), 1: (32, 50), 2: (31, 20)}, config, 2, stride=4)
    assert plan.held_logits == 2 * 3 * 8 * 8
    assert plan.describe() == (
        "3 images in 2 batches, 12 passes of the network; sizes of its input to compile: 1 (32x32)"
    )
    config = EvalConfig(resize_target=(64, 32), scales=(1.0, 2.0))
    plan = make_plan({0: (32, 64), 1: (32, 32), 2: (10, 20)}, config, 1, stride=4)
    assert plan.describe().endswith(
        "in 3 batches, 6 passes of the network; sizes of its input to compile: 4 (32x32 to 64x128)"
    )
    assert (plan.largest, plan.held_logits) == ((64, 128), 8 * 16 + 16 * 32)
    assert plan.passes == {(64, 128): 2, (32, 64): 2, (64, 64): 1, (32, 32): 1}
    assert plan.pixels == 2 * 64 * 128 + 2 * 32 * 64 + 64 * 64 + 32 * 32
