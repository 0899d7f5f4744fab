"""Pixel-wise cross-entropy at the label's resolution."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from segret_jax.data.datasets import IGNORE
from segret_jax.models.layers import resize_bilinear


def cross_entropy(
    logits: Float[Array, "b h w k"],
    label: UInt8[Array, "b label_h label_w"],
    *,
    normalizer: str = "all_pixels",
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the mean loss and the pixel accuracy in percent.

    Logits are first resized to the label. Ignored pixels (255) contribute nothing, but
    `all_pixels`, the released code's mean, divides by them too; `valid_pixels` does not. The
    accuracy is of all pixels, ignored ones counted as wrong, as the released code logs it.
    """
    logits = resize_bilinear(logits, (label.shape[1], label.shape[2])).astype(jnp.float32)
    valid = label != IGNORE
    # A sum over the class axis rather than an indexed read, whose gradient would be a scatter.
    is_class = jnp.arange(logits.shape[-1], dtype=label.dtype) == label[..., None]
    score = jnp.sum(jnp.where(is_class, logits, 0), axis=-1)
    loss = jnp.where(valid, jax.nn.logsumexp(logits, axis=-1) - score, 0)
    count = jnp.maximum(jnp.sum(valid), 1) if normalizer == "valid_pixels" else label.size
    correct = jnp.argmax(logits, axis=-1) == label
    return jnp.sum(loss) / count, 100 * jnp.mean(correct)
