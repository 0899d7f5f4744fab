"""Cross-entropy of logits against labels several times their size, without the resized logits.

Those would be the largest array of training: 16 images of 512x512 and 150 classes take 2.5 GB, and
several such arrays are needed at once. Here they are made for a block of label rows at a time. As
the loss is a scalar, its gradient is known but for a factor: it is computed in the same pass, and
nothing needs to be kept, or made again, for the backward one.

Shapes: b batch, h w logits, k classes, H W labels.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

from segret_jax.data.class_table import IGNORE
from segret_jax.evaluation.rescale import bilinear_taps

BLOCK_SIZE = 2**19  # resized logits of one image in a block


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def weighted_loss(
    logits: Float[Array, "b h w k"],
    label: UInt8[Array, "b H W"],
    weight: Float[Array, "b H W"],
    block_size: int = BLOCK_SIZE,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the sum of weight · cross-entropy over pixels, and the number of correct pixels.

    A label whose weight is 0 may be of no class. Has a gradient in the logits only.
    """
    return _with_gradient(logits, label, weight, block_size)[0]


def _with_gradient(
    logits: Array, label: Array, weight: Array, block_size: int
) -> tuple[tuple[Array, Array], Array]:
    columns = _resize_matrix(label.shape[2], logits.shape[2])

    def add(carry: tuple[Array, Array, Array], block: _Block) -> tuple[Any, None]:
        loss, correct, gradient = carry
        rows = lax.dynamic_slice_in_dim(logits, block.start, block.matrix.shape[1], axis=1)
        resized, transpose = jax.vjp(lambda x: _resize(x, block.matrix, columns), rows)
        of_pixel, is_correct, slope = _cross_entropy(resized, block.label)
        counts = block.weight != 0  # and what is left out may even be infinite
        loss += jnp.sum(jnp.where(counts, block.weight * of_pixel, 0), (1, 2))
        correct += jnp.sum(is_correct, (1, 2), dtype=jnp.float32)
        slope = jnp.where(counts[..., None], block.weight[..., None] * slope, 0)
        before = lax.dynamic_slice_in_dim(gradient, block.start, rows.shape[1], axis=1)
        after = before + transpose(slope)[0]
        gradient = lax.dynamic_update_slice_in_dim(gradient, after, block.start, axis=1)
        return (loss, correct, gradient), None

    of_image = jnp.zeros(logits.shape[0], jnp.float32)  # so that devices add up once, in the end
    start = of_image, of_image, jnp.zeros_like(logits, jnp.float32)
    (loss, correct, gradient), _ = lax.scan(add, start, _blocks(logits, label, weight, block_size))
    return (jnp.sum(loss), jnp.sum(correct)), gradient.astype(logits.dtype)


def _backward(block_size: int, gradient: Array, cotangents: tuple[Array, Array]) -> Any:
    return cotangents[0].astype(gradient.dtype) * gradient, None, None


weighted_loss.defvjp(_with_gradient, _backward)


def pixel_losses(
    logits: Float[Array, "b h w k"], label: UInt8[Array, "b H W"], block_size: int = BLOCK_SIZE
) -> Float[Array, "b H W"]:
    """Return each pixel's cross-entropy; of no meaning where the label is of no class."""
    columns = _resize_matrix(label.shape[2], logits.shape[2])

    def of_block(block: _Block) -> Array:
        rows = lax.dynamic_slice_in_dim(logits, block.start, block.matrix.shape[1], axis=1)
        return _cross_entropy(_resize(rows, block.matrix, columns), block.label)[0]

    blocks = _blocks(logits, label, jnp.zeros(label.shape), block_size)
    found = jnp.moveaxis(lax.map(of_block, blocks), 0, 1)  # [b, blocks, rows, W]
    return found.reshape(label.shape[0], -1, label.shape[2])[:, : label.shape[1]]


class _Block(NamedTuple):
    """Some label rows, or with a leading axis all such blocks."""

    start: Any  # the first of the rows of logits that they lie between
    matrix: Any  # [R, r], by which they are resized
    label: Array  # [b, R, W]
    weight: Array  # [b, R, W]


def _blocks(logits: Array, label: Array, weight: Array, block_size: int) -> _Block:
    """Divide the label's rows into blocks; the last one is filled up with ignored rows."""
    b, height, width = label.shape
    rows = min(height, max(1, block_size // (width * logits.shape[-1])))
    count = -(-height // rows)
    filling = count * rows - height

    resize = np.pad(_resize_matrix(height, logits.shape[1]), ((0, filling), (0, 0)), "edge")
    resize = resize.reshape(count, rows, -1)
    used = [np.flatnonzero(matrix.any(0)) for matrix in resize]
    length = max(u[-1] - u[0] + 1 for u in used)
    starts = np.minimum([u[0] for u in used], logits.shape[1] - length)
    matrices = np.stack([m[:, s : s + length] for m, s in zip(resize, starts, strict=True)])

    def parts(x: Array, fill: int) -> Array:
        x = jnp.pad(x, ((0, 0), (0, filling), (0, 0)), constant_values=fill)
        return jnp.moveaxis(x.reshape(b, count, rows, width), 1, 0)

    return _Block(
        jnp.asarray(starts), jnp.asarray(matrices), parts(label, IGNORE), parts(weight, 0)
    )


def _resize_matrix(num_out: int, num_in: int) -> np.ndarray:
    """Return the bilinear resize of an axis as a matrix [num_out, num_in]."""
    taps, matrix = bilinear_taps(num_out, num_in), np.zeros((num_out, num_in), np.float32)
    np.add.at(matrix, (np.arange(num_out)[:, None], taps.indices), taps.weights)
    return matrix


def _resize(x: Array, rows: Array, columns: np.ndarray) -> Array:
    """Resize logits [b, r, w, k] to label pixels [b, R, W, k], in float32."""
    highest = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    x = highest("Rr,brwk->bRwk", rows, x.astype(jnp.float32))
    return highest("Ww,bRwk->bRWk", columns, x)


def _cross_entropy(logits: Array, label: Array) -> tuple[Array, Array, Array]:
    """Return each pixel's loss, whether its class is the best, and the slope [b, R, W, k]."""
    # Sums over the class axis rather than an indexed read, which accelerators are slow at.
    is_class = jnp.arange(logits.shape[-1], dtype=label.dtype) == label[..., None]
    best = jnp.max(logits, -1, keepdims=True)
    exponentials = jnp.exp(logits - best)
    total = jnp.sum(exponentials, -1, keepdims=True)
    score = jnp.sum(jnp.where(is_class, logits, 0), -1)
    loss = jnp.log(total[..., 0]) + best[..., 0] - score
    is_correct = (score == best[..., 0]) & (label < logits.shape[-1])
    return loss, is_correct, exponentials / total - is_class
