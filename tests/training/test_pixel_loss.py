"""The loss by cells and blocks against the plain one in float64: values, gradients, odd sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segret_jax.models.layers import resize_bilinear
from segret_jax.training.pixel_loss import BLOCK_SIZE, pixel_losses, weighted_loss
from tests.models.test_layers import noise

SIZES = [
    ((2, 3), (8, 12)),
    ((4, 3), (16, 12)),
    ((5, 7), (17, 26)),
    ((9, 4), (9, 4)),
    ((13, 6), (5, 11)),
    ((1, 1), (3, 2)),
]


def reference(logits, label, weight):
    """As one would write it: resize, soft-max, pick."""
    resized = resize_bilinear(logits, label.shape[1:])
    picked = jnp.take_along_axis(jax.nn.log_softmax(resized), label[..., None].astype(int), -1)
    losses = -picked[..., 0]
    return jnp.sum(weight * losses), (losses, jnp.sum(jnp.argmax(resized, -1) == label))


@pytest.mark.parametrize("block_size", [1, 100, 301, 700, BLOCK_SIZE])
@pytest.mark.parametrize(("of_logits", "of_label"), SIZES)
def test_blocks_give_the_plain_loss_and_gradient(of_logits, of_label, block_size):
    rng = np.random.default_rng(1)
    logits, k = 3 * noise(2, *of_logits, 5), 5
    label = rng.integers(0, k, (2, *of_label)).astype(np.uint8)
    weight = rng.uniform(0.5, 2, label.shape).astype(np.float32)
    with jax.enable_x64(True):
        wide = jnp.asarray(logits, jnp.float64), jnp.asarray(label), jnp.asarray(weight)
        (loss, (losses, correct)), grad = jax.value_and_grad(reference, has_aux=True)(*wide)

    run = jax.jit(jax.value_and_grad(weighted_loss, has_aux=True), static_argnums=3)
    (found, found_correct), found_grad = run(logits, label, weight, block_size)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    assert found_correct == correct
    np.testing.assert_allclose(found_grad, grad, atol=1e-5 * np.abs(grad).max())
    of_pixels = jax.jit(pixel_losses, static_argnums=2)(logits, label, block_size)
    np.testing.assert_allclose(of_pixels, losses, rtol=1e-5, atol=1e-5)


def test_pixels_of_weight_zero_may_have_infinite_loss():
    logits = jnp.asarray(noise(1, 4, 4, 5)).at[0, 3, 3].set(jnp.inf)
    label = jnp.zeros((1, 16, 16), jnp.uint8)
    weight = jnp.ones(label.shape).at[:, 10:, 10:].set(0)  # those between it and its neighbors
    loss, grad = jax.value_and_grad(lambda x: weighted_loss(x, label, weight, 100)[0])(logits)
    assert jnp.isfinite(loss)
    assert jnp.all(jnp.isfinite(grad))


def test_gradient_is_scaled_by_the_cotangent():
    logits, label = jnp.asarray(noise(1, 2, 2, 3)), jnp.ones((1, 4, 4), jnp.uint8)
    weight = jnp.ones(label.shape)
    grad = jax.grad(lambda x, factor: factor * weighted_loss(x, label, weight)[0])
    np.testing.assert_allclose(grad(logits, 3.0), 3 * grad(logits, 1.0), rtol=1e-6)


def test_no_array_of_all_resized_logits_is_held():
    """150 classes at 512x512 take 157 MB for each image."""
    logits = jax.ShapeDtypeStruct((1, 128, 128, 150), jnp.float32)
    label = jax.ShapeDtypeStruct((1, 512, 512), jnp.uint8)
    weight = jax.ShapeDtypeStruct((1, 512, 512), jnp.float32)
    grad = jax.jit(jax.grad(weighted_loss, has_aux=True)).lower(logits, label, weight).compile()
    assert grad.memory_analysis().temp_size_in_bytes < 40e6
