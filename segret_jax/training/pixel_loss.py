"""Cross-entropy of logits against labels several times their size, without the resized logits.

Those would be the largest array of training: 16 images of 512x512 and 150 classes take 2.5 GB, and
several such arrays are needed at once. Here they are computed for a block of rows at a time. As the
loss is a scalar, its gradient is known up to a factor: the forward pass computes it too, and the
backward pass needs no stored or recomputed activations.

The image is divided into cells. A cell lies between four neighboring logits, or beside the outer
ones, and has positions for the label pixels in it; a position without a pixel is ignored. Labels
are usually four times as large as logits, and then a position has the same offset in every cell,
so that resizing is a few sums of shifted arrays.

Shapes: b batch, h w logits, k classes (at most 255), H W labels; n blocks of i rows of j cells,
s t rows and columns of positions. j comes after both, so that one position of all cells of a row
is contiguous.
"""

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from segret_jax.data.class_table import IGNORE

BLOCK_SIZE = 2**20  # resized logits of one image in a block, or those of one row of cells


@partial(jax.custom_vjp, nondiff_argnums=(3,))
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
    cells = _Cells(logits.shape, label.shape, block_size)
    padded = cells.pad(logits)

    def add(carry: tuple[Array, Array, Array], block: Any) -> tuple[Any, None]:
        loss, correct, gradient = carry
        first_row, row_weights, label, weight = block
        resized = cells.resize(padded, first_row, row_weights)
        of_pixel, is_correct, grad = _cross_entropy(resized, label)
        is_counted = weight != 0  # the losses of other pixels may even be infinite
        loss += jnp.sum(jnp.where(is_counted, weight * of_pixel, 0), (1, 2, 3, 4))
        correct += jnp.sum(is_correct, (1, 2, 3, 4), dtype=jnp.float32)
        grad = jnp.where(is_counted[..., None], weight[..., None] * grad, 0)
        before = lax.dynamic_slice_in_dim(gradient, first_row, cells.rows_per_block + 1, axis=1)
        after = before + cells.resize_transposed(grad, row_weights)
        gradient = lax.dynamic_update_slice_in_dim(gradient, after, first_row, axis=1)
        return (loss, correct, gradient), None

    per_image = jnp.zeros(logits.shape[0], jnp.float32)  # so that devices add up once, in the end
    zeros = per_image, per_image, jnp.zeros_like(padded, jnp.float32)
    blocks = (*cells.blocks(), cells.to_cells(label, IGNORE), cells.to_cells(weight, 0))
    (loss, correct, gradient), _ = lax.scan(add, zeros, blocks)
    return (jnp.sum(loss), jnp.sum(correct)), cells.pad_transposed(gradient).astype(logits.dtype)


def _backward(block_size: int, gradient: Array, cotangents: tuple[Array, Array]) -> Any:
    return cotangents[0].astype(gradient.dtype) * gradient, None, None


weighted_loss.defvjp(_with_gradient, _backward)


def pixel_losses(
    logits: Float[Array, "b h w k"], label: UInt8[Array, "b H W"], block_size: int = BLOCK_SIZE
) -> Float[Array, "b H W"]:
    """Return each pixel's cross-entropy; meaningless where the label is no class."""
    cells = _Cells(logits.shape, label.shape, block_size)
    padded = cells.pad(logits)

    def of_block(block: Any) -> Array:
        first_row, row_weights, label = block
        return _cross_entropy(cells.resize(padded, first_row, row_weights), label)[0]

    return cells.from_cells(lax.map(of_block, (*cells.blocks(), cells.to_cells(label, IGNORE))))


class _Axis(NamedTuple):
    """One axis of the label by the cells of that axis, of which there is one more than logits."""

    length: int  # of the label
    pixels: np.ndarray  # int [cells, positions]: of the label; `length` in an empty position
    weights: np.ndarray  # [cells or 1, positions]: of a cell's second logit; the first has the rest


def _axis(length: int, num_logits: int) -> _Axis:
    """Divide an axis as the bilinear resize with half-pixel centers does.

    Pixel p of the label lies at (p + 1/2)·num_logits/length − 1/2, and cell c from c − 1 to c.
    """
    cell = np.arange(num_logits + 2)[:, None]  # the last one is only where the one before it ends
    first = -(-((2 * cell - 1) * length - num_logits) // (2 * num_logits))  # its first pixel
    first, end = first[:-1], first[1:]
    pixels = first + np.arange(np.max(end - first))
    weights = ((2 * pixels + 1) * num_logits - (2 * cell[:-1] - 1) * length) / (2 * length)
    if np.all(weights == weights[0]):
        weights = weights[:1]
    inside = (pixels < end) & (pixels >= 0) & (pixels < length)
    return _Axis(length, np.where(inside, pixels, length), weights.astype(np.float32))


class _Cells:
    """The division of images into cells, and of these into blocks of a few rows."""

    def __init__(self, logits: tuple[int, ...], label: tuple[int, ...], block_size: int):
        self.rows, self.columns = _axis(label[1], logits[1]), _axis(label[2], logits[2])
        self.num_rows = len(self.rows.pixels)
        logits_of_row = self.rows.pixels.shape[1] * self.columns.pixels.size * logits[3]
        self.rows_per_block = min(self.num_rows, max(1, block_size // logits_of_row))
        self.num_blocks = -(-self.num_rows // self.rows_per_block)
        self.padding = self.num_blocks * self.rows_per_block - self.num_rows

    def pad(self, logits: Float[Array, "b h w k"]) -> Float[Array, "b _ _ k"]:
        """Repeat the outer logits, so that each cell has four, and fill up the last block."""
        padded = jnp.pad(logits, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
        return jnp.pad(padded, ((0, 0), (0, self.padding), (0, 0), (0, 0)))

    def pad_transposed(self, x: Float[Array, "b _ _ k"]) -> Float[Array, "b h w k"]:
        x = x[:, : self.num_rows + 1]
        x = x[:, 1:-1].at[:, 0].add(x[:, 0]).at[:, -1].add(x[:, -1])
        return x[:, :, 1:-1].at[:, :, 0].add(x[:, :, 0]).at[:, :, -1].add(x[:, :, -1])

    def blocks(self) -> tuple[Array, Array | None]:
        """Return each block's first row and its rows' weights; None if all rows have the same."""
        starts = jnp.arange(self.num_blocks) * self.rows_per_block
        if len(self.rows.weights) == 1:
            return starts, None
        weights = np.pad(self.rows.weights, ((0, self.padding), (0, 0)))
        return starts, jnp.asarray(weights.reshape(self.num_blocks, self.rows_per_block, -1))

    def to_cells(self, pixels: Shaped[Array, "b H W"], empty: int) -> Shaped[Array, "n b i s t j"]:
        """Arrange the label's pixels by the positions of n blocks; `empty` fills empty ones."""
        no_rows = ((0, self.padding), (0, 0))
        rows = np.pad(self.rows.pixels, no_rows, constant_values=self.rows.length)
        pixels = jnp.pad(pixels, ((0, 0), (0, 1), (0, 1)), constant_values=empty)
        positions = pixels[:, rows][..., self.columns.pixels.T]
        return jnp.moveaxis(
            positions.reshape(-1, self.num_blocks, self.rows_per_block, *positions.shape[2:]), 1, 0
        )

    def from_cells(self, positions: Shaped[Array, "n b i s t j"]) -> Shaped[Array, "b H W"]:
        """Undo `to_cells`."""
        rows, columns = (
            np.flatnonzero(axis.pixels < axis.length) for axis in (self.rows, self.columns)
        )
        _, b, _, _, t, j = positions.shape
        positions = positions.transpose(1, 0, 2, 3, 5, 4).reshape(b, -1, j * t)
        return positions[:, rows][:, :, columns]

    def resize(
        self, padded: Float[Array, "b _ _ k"], first_row: Array, row_weights: Array | None
    ) -> Float[Array, "b i s t j k"]:
        """Resize padded logits to the positions of one block, in float32."""
        down, right = self._weights(row_weights)
        logits = lax.dynamic_slice_in_dim(padded, first_row, self.rows_per_block + 1, axis=1)
        logits = logits.astype(jnp.float32)
        rows = logits[:, :-1, None] * (1 - down) + logits[:, 1:, None] * down
        rows = rows[:, :, :, None]
        return rows[..., :-1, :] * (1 - right) + rows[..., 1:, :] * right

    def resize_transposed(
        self, positions: Float[Array, "b i s t j k"], row_weights: Array | None
    ) -> Float[Array, "b _ _ k"]:
        # Added one by one: on CPU the sums that autodiff makes can be ten times slower.
        down, right = self._weights(row_weights)

        def of_columns(weights: Array) -> Array:
            return reduce(
                jnp.add,
                (positions[:, :, :, t] * weights[:, :, :, t] for t in range(positions.shape[3])),
            )

        rows = _overlapping(of_columns(1 - right), of_columns(right), axis=3)

        def of_rows(weights: Array) -> Array:
            count = range(positions.shape[2])
            return reduce(jnp.add, (rows[:, :, s] * weights[:, :, s] for s in count))

        return _overlapping(of_rows(1 - down), of_rows(down), axis=1)

    def _weights(self, row_weights: Array | None) -> tuple[Array, Array]:
        """Return those of logits below, [1 i|1 s 1 1], and to the right, [1 1 1 t j|1 1]."""
        down = jnp.asarray(self.rows.weights) if row_weights is None else row_weights
        right = jnp.asarray(self.columns.weights).T
        return down[None, :, :, None, None], right[None, None, None, :, :, None]


def _overlapping(first: Array, second: Array, *, axis: int) -> Array:
    """Add what belongs to the first and the second logits of cells, in a row of logits."""

    def pad(x: Array, before: int, after: int) -> Array:
        return jnp.pad(x, [(before, after) if n == axis else (0, 0) for n in range(x.ndim)])

    return pad(first, 0, 1) + pad(second, 1, 0)


def _cross_entropy(
    logits: Float[Array, "*positions k"], label: UInt8[Array, "*positions"]
) -> tuple[Float[Array, "*positions"], Bool[Array, "*positions"], Float[Array, "*positions k"]]:
    """Return each pixel's loss, whether its class is the best, and the grad."""
    # Sums over the class axis rather than an indexed read, which accelerators are slow at.
    classes = jnp.arange(logits.shape[-1], dtype=label.dtype)
    is_class = jnp.expand_dims(classes, tuple(range(label.ndim))) == label[..., None]
    best = jnp.max(logits, -1, keepdims=True)
    exponentials = jnp.exp(logits - best)
    total = jnp.sum(exponentials, -1, keepdims=True)
    score = jnp.sum(jnp.where(is_class, logits, 0), -1)
    loss = jnp.log(total[..., 0]) + best[..., 0] - score
    is_correct = (score == best[..., 0]) & (label < logits.shape[-1])
    return loss, is_correct, exponentials / total - is_class
