"""Inference against the released code's outputs, and against the chain taken step by step."""

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from segret_jax.config import EvalConfig, ModelConfig
from segret_jax.data.transforms import normalize, resize_image
from segret_jax.errors import InputError
from segret_jax.evaluation.inference import Predictor
from segret_jax.evaluation.plan import make_plan
from segret_jax.models.factory import ModelBundle, abstract, build
from segret_jax.models.layers import resize_bilinear
from tests import golden_weights as golden

EXPECTED = golden.load("inference_tiny_19")
IMAGE = EXPECTED["image_rgb"]
WHOLE = EvalConfig(resize_target=(600, 128), multiple_of=32)
CASES = {
    "whole": WHOLE,
    "resize": EvalConfig(resize_target=(600, 120), multiple_of=1),
    "slide": dataclasses.replace(WHOLE, mode="slide", window=(96, 96), stride=(64, 64)),
    "msflip": dataclasses.replace(WHOLE, scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True),
}


def mesh(num_devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:num_devices]), ("data",))


@pytest.fixture(scope="module")
def model() -> Any:
    """The tiny model with 19 classes and the formula's weights."""
    patch = pytest.MonkeyPatch()
    shapes = golden.keys("segret_tiny")
    head = "decode_head.linear_pred"
    shapes |= {
        f"{head}.weight": (19, *shapes[f"{head}.weight"][1:]), f"{head}.bias": (19,),
    }  # fmt: skip
    patch.setattr(golden, "keys", lambda name: shapes)
    graph, *trees = abstract(ModelConfig(matmul_precision="highest"), 19)
    try:
        return graph, *map(golden.filled, trees)
    finally:
        patch.undo()


@pytest.mark.parametrize(
    "case", ["whole", "resize", "slide", pytest.param("msflip", marks=pytest.mark.slow)]
)
def test_probabilities_and_predictions_equal_the_original_but_for_ties(model, case):
    predictor = Predictor(ModelBundle(*model), CASES[case], mesh=mesh(1))
    probabilities = predictor.probabilities(IMAGE)
    expected = EXPECTED[f"{case}/prob"].transpose(1, 2, 0)
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-5)
    (prediction,) = predictor.predict([predictor.prepare(IMAGE)])
    differ = prediction.label_map != EXPECTED[f"{case}/pred"]
    assert prediction.tied[differ].all()
    assert prediction.tied.sum() < 20
    np.testing.assert_array_equal(
        prediction.label_map[~prediction.tied], probabilities.argmax(-1)[~prediction.tied]
    )


def test_the_average_of_images_is_the_mean_of_their_probabilities(model):
    predictor = Predictor(ModelBundle(*model), CASES["whole"], mesh=mesh(1))
    images = [IMAGE, IMAGE[::-1].copy(), 255 - IMAGE]
    *others, last = (predictor.scores([predictor.prepare(image)]) for image in images)
    mean = last.averaged(others)
    expected = np.mean([predictor.probabilities(image) for image in images], 0)
    np.testing.assert_allclose(mean.probabilities(np.float32)[0], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(mean.confidence()[0], expected.max(-1), rtol=0, atol=1e-3)
    (prediction,) = mean.predictions()
    chosen = ~prediction.tied
    np.testing.assert_array_equal(prediction.label_map[chosen], expected.argmax(-1)[chosen])


def network_input(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    return normalize(predictor.prepare(image).scales[0][0])


@pytest.mark.parametrize("case", ["whole", "resize"])
def test_network_input_equals_the_original(model, case):
    predictor = Predictor(ModelBundle(*model), CASES[case], mesh=mesh(1))
    expected = EXPECTED[f"{case}/network_input"].transpose(1, 2, 0)
    np.testing.assert_allclose(network_input(predictor, IMAGE), expected, rtol=0, atol=1e-6)


def test_goldens_distinguish_one_resize_of_the_logits_from_two(model):
    """Going directly from stride 4 to the image misses the original: the tolerance is no alibi."""
    predictor = Predictor(ModelBundle(*model), WHOLE, mesh=mesh(1))
    (pixels, *_) = predictor.prepare(IMAGE).scales[0]
    logits = predictor.programs.network(predictor.variables, pixels[None], None)
    direct = jax.nn.softmax(resize_bilinear(logits, IMAGE.shape[:2])[0])
    expected = EXPECTED["whole/prob"].transpose(1, 2, 0)
    assert np.abs(np.asarray(direct) - expected).max() > 1e-3


def test_goldens_distinguish_one_resize_of_the_image_from_two():
    """(100, 150) keeps its ratio at (128, 192): no second resize. Of (90, 150) there is one."""
    image = np.ascontiguousarray(IMAGE[:90])
    predictor = Predictor.__new__(Predictor)
    predictor.config, predictor.min_side, predictor.takes_size = WHOLE, 1, False
    twice = network_input(predictor, image)
    assert twice.shape == (128, 224, 3)
    np.testing.assert_array_equal(
        twice, normalize(resize_image(resize_image(image, (128, 213)), (128, 224)))
    )
    assert not np.array_equal(twice, normalize(resize_image(image, (128, 224))))


SMALL = EvalConfig(resize_target=(64, 32))
WINDOWS = EvalConfig(
    resize_target=(80, 40), multiple_of=1, mode="slide", window=(32, 48), stride=(20, 31),
    scales=(0.5, 1.0), flip=True,
)  # fmt: skip


def images(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]


@pytest.fixture
def small(mini: Any) -> Any:
    """A small model that sees different classes in different pixels."""
    graph, params, stats = build(ModelConfig(), 5, seed=0)
    params = jax.tree.map(lambda p: p + 0.1 * golden.noise("p", p.shape), params)
    params["decoder"]["classify"]["bias"] *= 0
    return graph, params, stats


@pytest.mark.parametrize("size", [(1, 1), (70, 300)])
def test_images_of_any_size_keep_it(small, size):
    (image,) = images(size)
    predictor = Predictor(ModelBundle(*small), SMALL, mesh=mesh(1))
    pred, probabilities = predictor.label_map(image), predictor.probabilities(image)
    assert (pred.shape, pred.dtype) == (size, np.uint8)
    np.testing.assert_array_equal(pred, probabilities.argmax(-1))
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-6)
    assert size == (1, 1) or len(np.unique(pred)) > 1


def resized(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolate linearly between pixel centers, along one axis after the other."""
    for axis, num_out in enumerate(size):
        old, new = ((np.arange(n) + 0.5) / n for n in (scores.shape[axis], num_out))
        scores = np.apply_along_axis(lambda v: np.interp(new, old, v), axis, scores)  # noqa: B023
    return scores


def step_by_step(predictor: Predictor, image: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """Sliding window, scales and flip as mmsegmentation has them, each resize by itself.

    `sides` are those that the network takes, in ascending order.
    """
    config, views, size = predictor.config, [], image.shape[:2]
    long, short = config.resize_target
    for scale in config.scales:
        ratio = min(int(long * scale) / max(size), int(short * scale) / min(size))
        h, w = (int(side * ratio + 0.5) for side in size)
        x = resize_image(image, (h, w))
        h, w = (next(n for n in sides if n >= side) for side in (h, w))
        th, tw = min(h, config.window[0]), min(w, config.window[1])
        (sy, sx), x = config.stride, resize_image(x, (h, w))
        for x, mirror in ((x, slice(None)), (x[:, ::-1], slice(None, None, -1))):  # noqa: B020
            total, count = np.zeros((h, w, 5)), np.zeros((h, w, 1))
            for i in range(max(h - th + sy - 1, 0) // sy + 1):
                for j in range(max(w - tw + sx - 1, 0) // sx + 1):
                    y2, x2 = min(i * sy + th, h), min(j * sx + tw, w)
                    window = np.s_[y2 - th : y2, x2 - tw : x2]
                    tile = x[window][None]
                    logits = predictor.programs.network(predictor.variables, tile, None)
                    total[window] += resized(np.asarray(logits[0]), (th, tw))
                    count[window] += 1
            scores = np.exp(resized(total / count, size))
            views.append((scores / scores.sum(-1, keepdims=True))[:, mirror])
    return np.mean(views, axis=0)


@pytest.mark.parametrize(
    ("size", "multiple", "min_side"),
    [
        ((45, 37), 1, 1),  # smaller than the window at one scale
        ((5, 70), 16, 20),  # 40x3 and 80x6, which the network takes from 32 on
    ],
)
def test_windows_at_two_scales_mirrored_too_are_averaged_as_described(
    small, size, multiple, min_side
):
    (image,) = images(size)
    config = dataclasses.replace(WINDOWS, multiple_of=multiple)
    predictor = Predictor(ModelBundle(*small), config, min_side=min_side, mesh=mesh(1))
    sides = [n for n in range(min_side, 99) if n % multiple == 0]
    expected = step_by_step(predictor, image, sides)
    np.testing.assert_allclose(predictor.probabilities(image), expected, atol=2e-6)
    first, second = np.sort(expected, axis=-1)[..., :-3:-1].transpose(2, 0, 1)
    clear = first - second > 1e-5
    np.testing.assert_array_equal(predictor.label_map(image)[clear], expected.argmax(-1)[clear])


def test_one_window_is_the_whole(small):
    (image,) = images((50, 70))
    slide = dataclasses.replace(SMALL, mode="slide", window=(64, 64), stride=(9, 9))
    np.testing.assert_array_equal(
        Predictor(ModelBundle(*small), slide, mesh=mesh(1)).probabilities(image),
        Predictor(ModelBundle(*small), SMALL, mesh=mesh(1)).probabilities(image),
    )


def test_sizes_of_images_compile_nothing(small):
    """12 sizes of image, 2 of the network's input."""
    sizes = [(30 + i, 60 + 2 * i) for i in range(6)] + [(60 + i, 50 + i) for i in range(6)]
    predictor = Predictor(ModelBundle(*small), SMALL, mesh=mesh(1))
    for program in predictor.programs:
        program.clear_cache()
    for image in images(*sizes):
        predictor.label_map(image)
    assert len(make_plan(dict(enumerate(sizes)), SMALL, 1, stride=4).passes) == 2
    compiled = {name: p._cache_size() for name, p in predictor.programs._asdict().items()}
    assert compiled == {
        "network": 2,
        "rows": 2,
        "columns": 2,
        "average": 0,
        "best": 1,
        "highest": 0,
    }


def test_prediction_does_not_depend_on_earlier_images(small):
    one, other = images((32, 64), (32, 64))
    predictor = Predictor(ModelBundle(*small), SMALL, mesh=mesh(1))
    alone = predictor.probabilities(one)
    assert not np.array_equal(predictor.probabilities(other), alone)
    np.testing.assert_array_equal(predictor.probabilities(one), alone)


def test_across_batch_sizes_logits_agree_and_only_ties_may_differ(small):
    batch = images((32, 64), (30, 61), (64, 128), (40, 80), (33, 65))
    one, many = (
        Predictor(ModelBundle(*small), dataclasses.replace(SMALL, batch_size=n), mesh=mesh(1))
        for n in (1, 5)
    )
    prepared = [one.prepare(image) for image in batch]
    pixels = np.stack([image.scales[0][0] for image in prepared])
    together = many.programs.network(many.variables, pixels, None)
    alone = jnp.concatenate([one.programs.network(one.variables, p[None], None) for p in pixels])
    assert golden.relative_error(together, np.asarray(alone)) < 1e-5
    for image, found in zip(prepared, many.predict(prepared), strict=True):
        (expected,) = one.predict([image])
        differ = found.label_map != expected.label_map
        assert (found.tied | expected.tied)[differ].all()
        assert found.label_map.shape == image.size


ON_EIGHT_DEVICES = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from tests.fast_compile import compile_fast
compile_fast()
from segret_jax.config import EvalConfig, ModelConfig
from segret_jax.data.class_table import load_class_table
from segret_jax.data.synthetic import SyntheticSource
from segret_jax.evaluation.evaluate import evaluate
from segret_jax.evaluation.inference import Predictor
from segret_jax.models.factory import ModelBundle, build
from segret_jax.models.segret import variants

variants.VARIANTS["tiny"] = variants.Variant(
    widths=(8,) * 4, depths=(1,) * 4, heads=(2,) * 4, decay_spans=(4.0,) * 4, ffn_ratios=(2,) * 4,
    decomposed=(True, False, False, False), layer_scale=(False,) * 4, drop_path=0.0,
    decoder_channels=8,
)
rng = np.random.default_rng(0)
graph, params, stats = build(ModelConfig(), 8, seed=0)
params = jax.tree.map(lambda p: p + 0.5 * rng.standard_normal(p.shape, np.float32), params)
model = graph, params, stats
pixels = rng.integers(0, 256, (16, 32, 64, 3), np.uint8)
scenes = SyntheticSource(seed=0, num_images=13, size=(32, 64))
logits, counts = [], []
for n in (1, 2, 4, 8):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:n]), ("data",))
    config = EvalConfig(resize_target=(64, 32), batch_size=2)
    predictor = Predictor(ModelBundle(*model), config, mesh=mesh)
    result = evaluate(predictor, scenes, load_class_table("synthetic"))
    counts.append(result.confusion.counts)
    batches = np.split(pixels, 16 // predictor.batch_size)
    run = predictor.programs.network
    network = [run(predictor.variables, batch, None) for batch in batches]
    logits.append(np.concatenate(network))
assert logits[0].std() > 1e-3
assert all(np.array_equal(logits[0], other) for other in logits[1:])
assert counts[0].sum() == 13 * 32 * 64, counts[0].sum()
assert np.count_nonzero(counts[0].sum(0)) > 1, counts[0].sum(0)
assert all(np.array_equal(counts[0], other) for other in counts[1:])
print("equal")
"""


@pytest.mark.slow
def test_logits_and_confusion_matrix_are_equal_to_the_bit_on_1_2_4_and_8_devices():
    run = [sys.executable, "-W", "error", "-c", ON_EIGHT_DEVICES]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr


def test_two_devices_predict_what_one_does(small):
    """The third batch of two devices has one image only."""
    config = dataclasses.replace(SMALL, flip=True)
    batch = images((32, 64), (30, 61), (64, 128), (40, 80), (33, 65))
    one, two = (Predictor(ModelBundle(*small), config, mesh=mesh(n)) for n in (1, 2))
    prepared = [one.prepare(image) for image in batch]
    parts = [prepared[:2], prepared[2:4], prepared[4:]]
    together = [prediction for part in parts for prediction in two.predict(part)]
    assert two.batch_size == 2
    for image, found in zip(prepared, together, strict=True):
        (expected,) = one.predict([image])
        np.testing.assert_array_equal(found.label_map, expected.label_map)
        np.testing.assert_array_equal(found.tied, expected.tied)
    np.testing.assert_array_equal(two.probabilities(batch[0]), one.probabilities(batch[0]))


def test_ties_are_found(small):
    graph, params, stats = small
    classify = jax.tree.map(jnp.zeros_like, params["decoder"]["classify"])
    tie = classify | {"bias": jnp.array([0.0, 2.0, 2.0 - 1e-6, 1.0, 0.0])}
    clear = classify | {"bias": jnp.array([0.0, 2.0, 1.999, 1.0, 0.0])}
    (image,) = images((32, 64))
    for config in (SMALL, dataclasses.replace(SMALL, flip=True)):
        for head, expected in ((tie, True), (clear, False)):
            weights = params | {"decoder": params["decoder"] | {"classify": head}}
            predictor = Predictor(ModelBundle(graph, weights, stats), config, mesh=mesh(1))
            (prediction,) = predictor.predict([predictor.prepare(image)])
            assert (prediction.label_map == 1).all()
            assert (prediction.tied == expected).all()


def test_nan_output_is_rejected(small):
    graph, params, stats = small
    broken = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    predictor = Predictor(ModelBundle(graph, broken, stats), SMALL, mesh=mesh(1))
    with pytest.raises(InputError, match="the network's output is not a number: the weights are"):
        predictor.label_map(images((32, 64))[0])


def test_weights_are_arguments_and_not_compiled_in(small):
    graph, params, stats = small
    image = np.full((32, 64, 3), 120, np.uint8)
    before = Predictor(ModelBundle(*small), SMALL, mesh=mesh(1)).probabilities(image)
    zeros = jax.tree.map(jnp.zeros_like, params)
    changed = Predictor(ModelBundle(graph, zeros, stats), SMALL, mesh=mesh(1))
    np.testing.assert_allclose(changed.probabilities(image), 1 / 5)
    assert np.abs(before - 1 / 5).max() > 1e-3


def test_the_forecast_counts_weights_and_held_logits(small):
    predictor = Predictor(ModelBundle(*small), SMALL, mesh=mesh(1))
    plan = make_plan({0: (32, 64)}, SMALL, 1, stride=4)
    assert predictor.forecast(plan).startswith("about 0.1 GB of memory per device; the network al")
    held = dataclasses.replace(plan, held_logits=10**8)  # x 5 classes x 4 bytes
    assert predictor.forecast(held).startswith("about 2.0 GB")
    passes = dataclasses.replace(plan, passes={(32, 64): 10**9})
    assert int(predictor.forecast(passes).split()[-1].split(":")[0]) >= 100  # hours
