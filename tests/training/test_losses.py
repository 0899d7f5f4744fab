"""Cross-entropy, class weights, OHEM against NumPy, and what ignored pixels must not do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from segret_jax.config import TrainConfig
from segret_jax.errors import InputError
from segret_jax.parallel.mesh import data_mesh
from segret_jax.training.losses import (
    check_class_weights,
    cross_entropy,
    hard_pixels,
    loss_normalizer,
)
from tests.models.test_layers import bilinear, noise

NORMALIZERS = ["all_pixels", "valid_pixels"]


def make_label(ignored: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, (2, 8, 12))
    label[rng.random(label.shape) < ignored] = 255
    return label.astype(np.uint8)


LOGITS, LABEL = 3 * noise(2, 2, 3, 5), make_label()


OPTIONS = ("normalizer", "class_weights", "ohem_threshold", "ohem_min_kept")


@functools.partial(jax.jit, static_argnames=OPTIONS)
def run(logits, label, normalizer="all_pixels", **options):
    """Loss, accuracy and the gradient in the logits."""
    f = functools.partial(cross_entropy, **options)
    pixels = loss_normalizer(label, normalizer)
    (loss, accuracy), grad = jax.value_and_grad(f, has_aux=True)(logits, label, pixels)
    return loss, accuracy, grad


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_loss_equals_the_formula(normalizer):
    logits = bilinear(LOGITS.astype(np.float64), (8, 12))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    valid = LABEL != 255
    assert 20 < valid.sum() < valid.size - 20
    losses = [-log_p[at][LABEL[at]] for at in zip(*np.nonzero(valid), strict=True)]
    count = LABEL.size if normalizer == "all_pixels" else valid.sum()
    loss, accuracy, _ = run(LOGITS, LABEL, normalizer)
    np.testing.assert_allclose(loss, sum(losses) / count, rtol=1e-5)
    # Of all pixels, whatever the normalizer: ignored ones count as wrong.
    np.testing.assert_allclose(accuracy, 100 * (logits.argmax(-1) == LABEL).mean(), rtol=1e-6)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_ignored_pixels_change_neither_loss_nor_gradient(normalizer):
    logits, label = noise(1, 8, 12, 5), LABEL[:1]  # at the label's size: nothing is mixed
    ignored = label == 255
    loss, _, grad = run(logits, label, normalizer)
    changed, _, changed_grad = run(
        np.where(ignored[..., None], 50 * noise(1, 8, 12, 5, seed=3), logits), label, normalizer
    )
    np.testing.assert_allclose(changed, loss, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(grad)[ignored], 0)
    np.testing.assert_allclose(changed_grad, grad, rtol=1e-6)
    assert (np.abs(grad).max(-1)[~ignored] > 0).all()


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_batch_without_labels_has_loss_and_gradient_zero(normalizer):
    loss, accuracy, grad = run(LOGITS, np.full_like(LABEL, 255), normalizer)
    assert (loss, accuracy) == (0, 0)
    np.testing.assert_array_equal(grad, 0)


def test_classes_can_be_permuted():
    permutation = np.array([3, 0, 4, 1, 2])  # class c of the new order was permutation[c]
    lookup = np.full(256, 255, np.uint8)
    lookup[permutation] = np.arange(5)
    loss, accuracy, grad = run(LOGITS, LABEL, "all_pixels")
    permuted = run(LOGITS[..., permutation], lookup[LABEL], "all_pixels")
    np.testing.assert_allclose(permuted[0], loss, rtol=1e-6)
    assert permuted[1] == accuracy
    np.testing.assert_allclose(permuted[2], grad[..., permutation], rtol=1e-5, atol=1e-7)


def test_large_and_bfloat16_logits_are_computed_in_float32():
    logits = jnp.asarray(100 * noise(2, 8, 12, 5), jnp.bfloat16)
    loss, _, grad = run(logits, LABEL, "all_pixels")
    exact, _, _ = run(logits.astype(jnp.float32), LABEL, "all_pixels")
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, exact, rtol=1e-6)
    assert np.isfinite(np.asarray(grad, np.float32)).all()


def test_class_254_is_a_class():
    """With 255 classes the largest is not taken for the ignored label beside it."""
    label = np.full((1, 2, 2), 254, np.uint8)
    loss, _, _ = run(np.zeros((1, 2, 2, 255), np.float32), label, "all_pixels")
    assert loss == pytest.approx(np.log(255), rel=1e-5)


# Class weights and OHEM

WEIGHTS = (0.5, 2.0, 0.0, 1.25, 3.0)


def pixel_losses(logits: np.ndarray, label: np.ndarray, weights: tuple, kept: np.ndarray) -> list:
    """The weighted loss of each labeled pixel that is kept, one after the other."""
    losses = []
    for at in np.ndindex(label.shape):
        if label[at] != 255 and kept[at]:
            probability = np.exp(logits[at]) / np.exp(logits[at]).sum()
            losses.append(-weights[label[at]] * np.log(probability[label[at]]))
    return losses


def kept_by_sorting(probability, valid, threshold: float, min_kept: int) -> np.ndarray:
    """OHEM by its definition: raise the threshold to the last of the least probable pixels."""
    ranked = sorted(probability[valid].tolist())
    num_kept = min(min_kept * len(valid), len(ranked))
    last = ranked[num_kept - 1] if num_kept else 0
    return valid & ((probability < threshold) | (probability <= last))


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize(
    ("class_weights", "ohem"),
    [(WEIGHTS, (0.0, 1)), ((), (0.3, 5)), ((), (0.05, 30)), (WEIGHTS, (0.05, 30))],
)
def test_weights_and_ohem_equal_the_formula(normalizer, class_weights, ohem):
    logits = bilinear(LOGITS.astype(np.float64), (8, 12))
    valid, kept = LABEL != 255, np.ones(LABEL.shape, bool)
    if ohem[0]:
        softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        probability = np.take_along_axis(softmax, (LABEL % 5).astype(int)[..., None], -1)[..., 0]
        kept = kept_by_sorting(probability, valid, *ohem)
        assert 2 * ohem[1] <= kept.sum() < valid.sum()
        assert (kept.sum() == 60) == (ohem[1] == 30)  # the other cases go by the threshold
    losses = pixel_losses(logits, LABEL, class_weights or (1.0,) * 5, kept)
    count = LABEL.size if normalizer == "all_pixels" else valid.sum()
    options = {"ohem_threshold": ohem[0], "ohem_min_kept": ohem[1], "class_weights": class_weights}
    loss, accuracy, _ = run(LOGITS, LABEL, normalizer, **options)
    np.testing.assert_allclose(loss, sum(losses) / count, rtol=1e-5)
    assert accuracy == run(LOGITS, LABEL, normalizer)[1]


def test_weights_of_one_and_ohem_that_keeps_all_change_nothing():
    plain = run(LOGITS, LABEL)
    for options in ({"class_weights": (1.0,) * 5}, {"ohem_threshold": 0.3, "ohem_min_kept": 96}):
        for value, expected in zip(run(LOGITS, LABEL, **options), plain, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-9)


def test_dropped_pixels_have_no_gradient_and_kept_ones_their_own():
    logits, label = noise(2, 8, 12, 5), LABEL  # at the label's size: nothing is mixed
    _, _, plain = run(logits, label)
    _, _, grad = run(logits, label, ohem_threshold=0.2, ohem_min_kept=20)
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    probability = np.take_along_axis(softmax, (label % 5).astype(int)[..., None], -1)[..., 0]
    kept = kept_by_sorting(probability, label != 255, 0.2, 20)
    assert 40 <= kept.sum() < (label != 255).sum()
    np.testing.assert_allclose(grad, np.where(kept[..., None], plain, 0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_batch_without_labels_has_loss_and_gradient_zero_under_all_options(normalizer):
    options = {"class_weights": WEIGHTS, "ohem_threshold": 0.7, "ohem_min_kept": 30}
    loss, accuracy, grad = run(LOGITS, np.full_like(LABEL, 255), normalizer, **options)
    assert (loss, accuracy) == (0, 0)
    np.testing.assert_array_equal(grad, 0)


TINY = 1e-40  # a float32 below the smallest normal one
PROBABILITIES = np.array([[[0.9, 0.5, 0.5, TINY]], [[0.5, 0.2, 0.0, 1.0]]], np.float32)


@pytest.mark.parametrize(
    ("threshold", "min_kept", "kept"),
    [
        (0.3, 1, "0001 0110"),  # three below the threshold, two wanted
        (0.5, 1, "0001 0110"),  # at the threshold is not below it
        (0.1, 1, "0001 0010"),  # the two least probable of the batch, not one of each image
        (0.1, 2, "0111 1110"),  # the fourth ties with two more
        (0.6, 2, "0111 1110"),
        (0.1, 3, "0111 1110"),
        (0.1, 4, "1111 1111"),
        (0.1, 100, "1111 1111"),  # more than there are
        (0.1, 2**40, "1111 1111"),
    ],
)
def test_ohem_keeps_the_hard_pixels_and_at_least_so_many(threshold, min_kept, kept):
    expected = np.array([[[c == "1" for c in row]] for row in kept.split()])
    valid = np.ones(PROBABILITIES.shape, bool)
    select = jax.jit(functools.partial(hard_pixels, threshold=threshold, min_kept=min_kept))
    np.testing.assert_array_equal(select(PROBABILITIES, valid), expected)
    # Pixels without a label are never kept and take no place among those that are.
    valid[0, 0, 3] = valid[1, 0, 2] = False
    again = kept_by_sorting(PROBABILITIES, valid, threshold, min_kept)
    np.testing.assert_array_equal(select(PROBABILITIES, valid), again)


def test_ohem_agrees_with_sorting_on_many_values():
    rng = np.random.default_rng(0)
    neighbors = (0x3E000000 + rng.permutation(600)).astype(np.int32).view(np.float32)
    spread = rng.random(600, np.float32) ** 20  # down to denormals
    probability = np.concatenate([neighbors, spread]).reshape(4, 20, 15)
    valid = rng.random(probability.shape) < 0.8
    for min_kept in (1, 17, 150, 151, 152, 153, 239, 300):
        kept = hard_pixels(
            jnp.asarray(probability), jnp.asarray(valid), threshold=1e-30, min_kept=min_kept
        )
        expected = kept_by_sorting(probability, valid, 1e-30, min_kept)
        np.testing.assert_array_equal(kept, expected)


def test_ohem_chooses_among_the_batch_of_all_devices():
    logits = noise(2, 8, 12, 5) * np.array([1, 9], np.float32)[:, None, None, None]
    sharded = NamedSharding(data_mesh(), PartitionSpec("data"))
    options = {"class_weights": WEIGHTS, "ohem_threshold": 0.01, "ohem_min_kept": 20}
    assert data_mesh().size == 2
    one = run(logits, LABEL, **options)
    two = run(*jax.device_put((logits, LABEL), sharded), **options)
    np.testing.assert_allclose(two[0], one[0], rtol=1e-6)
    np.testing.assert_allclose(two[2], one[2], rtol=1e-6, atol=1e-9)
    kept = [int((np.abs(image).max(-1) > 0).sum()) for image in np.asarray(two[2])]
    assert abs(kept[0] - kept[1]) > 5  # not chosen image by image


def test_a_loss_that_is_not_finite_is_not_dropped():
    logits = noise(2, 8, 12, 5)
    logits[0, 3, 3] = np.nan
    label = np.where(LABEL == 255, 0, LABEL).astype(np.uint8)
    assert np.isnan(run(logits, label, ohem_threshold=0.1, ohem_min_kept=3)[0])


def test_the_count_of_class_weights_is_checked():
    check_class_weights(TrainConfig(), 150)
    check_class_weights(TrainConfig(class_weights=WEIGHTS), 5)
    with pytest.raises(InputError, match="class_weights has 5 numbers; give one for each of the 4"):
        check_class_weights(TrainConfig(class_weights=WEIGHTS), 4)
