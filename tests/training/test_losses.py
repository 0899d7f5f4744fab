"""Cross-entropy and pixel accuracy against NumPy, and what ignored pixels must not do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segret_jax.training.losses import cross_entropy
from tests.models.test_layers import bilinear, noise

NORMALIZERS = ["all_pixels", "valid_pixels"]


def make_label(ignored: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, (2, 8, 12))
    label[rng.random(label.shape) < ignored] = 255
    return label.astype(np.uint8)


LOGITS, LABEL = 3 * noise(2, 2, 3, 5), make_label()


@functools.partial(jax.jit, static_argnames="normalizer")
def run(logits, label, normalizer):
    """Loss, accuracy and the gradient in the logits."""
    f = functools.partial(cross_entropy, normalizer=normalizer)
    (loss, accuracy), grad = jax.value_and_grad(f, has_aux=True)(logits, label)
    return loss, accuracy, grad


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_equals_the_formula(normalizer):
    logits = bilinear(LOGITS.astype(np.float64), (8, 12))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    valid = LABEL != 255
    assert 20 < valid.sum() < valid.size - 20
    losses = [-log_p[at][LABEL[at]] for at in zip(*np.nonzero(valid), strict=True)]
    count = LABEL.size if normalizer == "all_pixels" else valid.sum()
    loss, accuracy, _ = run(LOGITS, LABEL, normalizer)
    np.testing.assert_allclose(loss, sum(losses) / count, rtol=1e-5)
    # Of all pixels, whatever the normaliser: ignored ones count as wrong.
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
