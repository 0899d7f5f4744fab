"""Whole-image inference against the released code's input, probabilities and predictions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from segret_jax.config import EvalConfig, ModelConfig
from segret_jax.data.transforms import normalise, resize_image
from segret_jax.evaluation.inference import Predictor
from segret_jax.models.layers import resize_bilinear
from segret_jax.training.state import abstract, build
from tests import golden_weights as golden

EXPECTED = golden.load("inference_tiny_19")
IMAGE = EXPECTED["image_rgb"]
CASES = {
    "whole": EvalConfig(resize_target=(600, 128), multiple_of=32),
    "resize": EvalConfig(resize_target=(600, 120), multiple_of=1),
}


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


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def predictor(model: Any, case: str) -> Predictor:
    return Predictor(*model, CASES[case])


@pytest.fixture(scope="module")
def probabilities(predictor: Predictor) -> np.ndarray:
    return predictor.probabilities(IMAGE)


def test_the_network_sees_what_the_original_saw(predictor, case):
    expected = EXPECTED[f"{case}/network_input"].transpose(1, 2, 0)
    np.testing.assert_allclose(predictor.network_input(IMAGE), expected, rtol=0, atol=1e-6)


def test_probabilities_equal_the_original(probabilities, case):
    expected = EXPECTED[f"{case}/prob"].transpose(1, 2, 0)
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)


def test_predictions_equal_the_original_but_for_ties(predictor, probabilities, case):
    pred, expected = predictor.label_map(IMAGE), EXPECTED[f"{case}/pred"]
    differ = pred != expected
    first, second = np.sort(probabilities, axis=-1)[..., :-3:-1].transpose(2, 0, 1)
    assert (first - second)[differ].max(initial=0) < 1e-5
    assert differ.mean() < 1e-3
    assert (pred == probabilities.argmax(-1)).mean() > 0.999


def test_the_goldens_tell_one_resize_of_the_logits_from_two(model, predictor, case):
    """Going directly from stride 4 to the image misses the original: the tolerance is no alibi."""
    graph, *variables = model
    x = predictor.network_input(IMAGE)[None]
    logits = jax.jit(lambda v, x: nnx.merge(graph, *v)(x))(variables, x)
    direct = jax.nn.softmax(resize_bilinear(logits, IMAGE.shape[:2])[0])
    expected = EXPECTED[f"{case}/prob"].transpose(1, 2, 0)
    assert np.abs(np.asarray(direct) - expected).max() > 1e-3


def test_the_goldens_tell_one_resize_of_the_image_from_two():
    """(100, 150) keeps its ratio at (128, 192): no second resize. Of (90, 150) there is one."""
    image = np.ascontiguousarray(IMAGE[:90])
    predictor = Predictor.__new__(Predictor)
    predictor.config = CASES["whole"]
    twice = predictor.network_input(image)
    assert twice.shape == (128, 224, 3)
    np.testing.assert_array_equal(
        twice, normalise(resize_image(resize_image(image, (128, 213)), (128, 224)))
    )
    assert not np.array_equal(twice, normalise(resize_image(image, (128, 224))))


@pytest.fixture
def small(mini: Any) -> Predictor:
    config = EvalConfig(resize_target=(64, 32), multiple_of=32)
    graph, params, stats = build(ModelConfig(), 5, seed=0)
    params = jax.tree.map(lambda p: p + 0.1 * golden.noise("p", p.shape), params)
    return Predictor(graph, params, stats, config)


@pytest.mark.parametrize("size", [(1, 1), (90, 7)])
def test_images_of_any_size_keep_it(small, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    pred, probabilities = small.label_map(image), small.probabilities(image)
    assert (pred.shape, pred.dtype) == (size, np.uint8)
    np.testing.assert_array_equal(pred, probabilities.argmax(-1))


def test_an_image_is_predicted_as_it_is_whatever_came_before(small):
    rng = np.random.default_rng(1)
    one, other = rng.integers(0, 256, (2, 32, 64, 3)).astype(np.uint8)
    alone = small.probabilities(one)
    assert not np.array_equal(small.probabilities(other), alone)
    np.testing.assert_array_equal(small.probabilities(one), alone)


def test_weights_are_arguments_and_not_compiled_in(small):
    image = np.full((32, 64, 3), 120, np.uint8)
    before = small.probabilities(image)
    params, stats = small.variables
    changed = Predictor(small.graph, jax.tree.map(jnp.zeros_like, params), stats, small.config)
    np.testing.assert_allclose(changed.probabilities(image), 1 / 5)
    assert np.abs(before - 1 / 5).max() > 1e-3
