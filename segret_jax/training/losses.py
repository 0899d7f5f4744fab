"""Pixel-wise cross-entropy at the label's resolution, with class weights and hard examples."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, UInt8

from segret_jax.config import TrainConfig
from segret_jax.data.class_table import IGNORE
from segret_jax.errors import InputError
from segret_jax.training.pixel_loss import pixel_losses, weighted_loss

_INFINITY_BITS = 0x7F800000  # of a float32; ignored pixels are infinite


def check_class_weights(config: TrainConfig, num_classes: int) -> None:
    """Raise InputError unless `train.class_weights` is empty or has one weight per class."""
    if len(config.class_weights) not in (0, num_classes):
        raise InputError(
            f"train.class_weights has {len(config.class_weights)} numbers; give one for each of "
            f"the {num_classes} classes, in the order of their ids, or none"
        )


def loss_normalizer(label: UInt8[Array, "*batch h w"], normalizer: str) -> Float[Array, ""]:
    """Return the number of pixels that the sum of their losses is divided by.

    It does not depend on the weights of the classes or on OHEM, as in mmsegmentation 0.x, so that
    pixels which OHEM drops count as pixels without a loss.

    Args:
        label: The class ids of a batch.
        normalizer: The setting `train.loss_normalizer`: `all_pixels`, the released code's mean,
            counts the ignored pixels (255), `valid_pixels` does not.

    Returns:
        The number, at least 1.
    """
    if normalizer == "all_pixels":
        return jnp.float32(label.size)
    return jnp.maximum(jnp.sum(label != IGNORE), 1).astype(jnp.float32)


def cross_entropy(
    logits: Float[Array, "b h w k"],
    label: UInt8[Array, "b label_h label_w"],
    pixels: Float[Array, ""],
    *,
    class_weights: tuple[float, ...] = (),
    ohem_threshold: float = 0.0,
    ohem_min_kept: int = 1,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the loss and the accuracy of logits, which are first resized to the label.

    Args:
        logits: The logits, of any size up to that of the label.
        label: The class ids; 255 is ignored and contributes nothing to the loss.
        pixels: The divisor of the sum of the pixels' losses (`loss_normalizer`).
        class_weights: The factor of the loss of each class's pixels; empty: 1.
        ohem_threshold: The threshold of `hard_pixels`, which drops all other pixels; 0: keep all.
        ohem_min_kept: The pixels of an image that `hard_pixels` keeps at least.

    Returns:
        The loss, and the accuracy in percent of all pixels, ignored ones counted as wrong, as
        SegRet's released code logs it.
    """
    valid = label != IGNORE
    weight = valid.astype(jnp.float32)
    if ohem_threshold:
        probability = jnp.exp(-pixel_losses(lax.stop_gradient(logits), label))
        kept = hard_pixels(probability, valid, threshold=ohem_threshold, min_kept=ohem_min_kept)
        weight *= kept
    if class_weights:
        of_class = jnp.zeros(256).at[: len(class_weights)].set(jnp.array(class_weights))
        weight *= of_class[label]
    loss, num_correct = weighted_loss(logits, label, weight / pixels)
    return loss, 100 * num_correct / label.size


def hard_pixels(
    probability: Float[Array, "b h w"], valid: Bool[Array, "b h w"], threshold: float, min_kept: int
) -> Bool[Array, "b h w"]:
    """Select the valid pixels that online hard example mining trains on.

    mmsegmentation's OHEMPixelSampler is the same, but keeps fewer pixels in case of ties, and
    where fewer than `min_kept` · b are valid.

    Args:
        probability: The predicted probability of the pixel's own class. NaN is kept, for the
            training step to see.
        valid: Whether the pixel has a class.
        threshold: Pixels below it are kept.
        min_kept: At least the `min_kept` · b least probable valid pixels of the whole batch are
            kept, and those that tie with the last of them.

    Returns:
        Whether each pixel is selected.
    """
    num_kept = min(min_kept * valid.shape[0], valid.size)
    least = _kth_smallest(jnp.where(valid, probability, jnp.inf), num_kept)
    return valid & ~((probability >= threshold) & (probability > least))


def _kth_smallest(values: Float[Array, "b h w"], k: int) -> Float[Array, ""]:
    """Return the k-th smallest of float32 numbers that are not negative, counted from 1.

    Their bit patterns are in the same order, so 31 halvings find it exactly, each a sum over the
    batch. Sorting would gather the batch of all devices on each of them.
    """
    bits = lax.bitcast_convert_type(values, jnp.int32)

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = jnp.sum(bits <= middle) >= k
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    bounds = (jnp.int32(0), jnp.int32(_INFINITY_BITS))
    return lax.bitcast_convert_type(lax.fori_loop(0, 31, halve, bounds)[1], jnp.float32)
