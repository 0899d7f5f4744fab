"""Resize the model's logits to the image's own size, as released, in blocks of pixels.

Everything up to the softmax is linear and acts on rows and columns separately. For each axis of
each tile (the network's whole input, or a window of it) the chain

    image ← resize ← divide by the overlap count ← place the window ← resize ← logits

is one sparse matrix with four weights per row, which the host multiplies together. It contains both
resizes: a single resize to the image misses the released probabilities by 3e-3.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from segret_jax.evaluation.plan import Size, Tiling

NUM_WEIGHTS = 4
BLOCK = (64, 256)  # pixels computed at once: 11 MB for 171 classes


class InterpolationMatrix(NamedTuple):
    """A sparse matrix: out[i] = Σ_t weights[i, t] · in[indices[i, t]]; or one for each image."""

    indices: np.ndarray  # int [n, t] or [b, n, t]
    weights: np.ndarray  # float

    def part(self, start: int, length: int) -> "InterpolationMatrix":
        """Return the rows of each image's matrix from `start` on."""
        return InterpolationMatrix(*(array[:, start : start + length] for array in self))

    @property
    def used(self) -> Bool[np.ndarray, " b"]:
        """Return whether each image's matrix has weights other than 0."""
        return np.any(self.weights, (1, 2))


class Tile(NamedTuple):
    """One tile of each image of a batch: its logits, and the matrices from them to the image."""

    logits: Array  # [b, h, w, k]
    rows: InterpolationMatrix  # [b, H, 4]; zero for an image that has no such tile
    columns: InterpolationMatrix  # [b, W, 4]


def bilinear_matrix(num_out: int, num_in: int) -> InterpolationMatrix:
    """Return the resize of `num_in` values to `num_out`: half-pixel centers, no antialiasing."""
    source = np.clip((np.arange(num_out) + 0.5) * num_in / num_out - 0.5, 0, num_in - 1)
    low = np.floor(source).astype(np.int64)
    high = np.minimum(low + 1, num_in - 1)
    weight = source - low  # of the higher one
    return InterpolationMatrix(np.stack([low, high], 1), np.stack([1 - weight, weight], 1))


def tile_matrices(
    num_out: int, num_network: int, starts: tuple[int, ...], tile: int, num_logits: int
) -> list[InterpolationMatrix]:
    """Return for each tile of an axis the matrix from its logits to the image.

    The axis has `num_out` pixels in the image and `num_network` in the network's input; the tiles
    are `tile` pixels long, begin there at `starts` and give `num_logits` values each. The sum of
    their products is the average of the tiles where they overlap.
    """
    to_image, to_tile = bilinear_matrix(num_out, num_network), bilinear_matrix(tile, num_logits)
    count = np.zeros(num_network)
    for start in starts:
        count[start : start + tile] += 1
    averaged = to_image.weights / count[to_image.indices]
    products = []
    for start in starts:
        index = to_image.indices - start
        inside = (index >= 0) & (index < tile)
        placed = InterpolationMatrix(np.where(inside, index, 0), np.where(inside, averaged, 0))
        products.append(_product(placed, to_tile))
    return products


def _product(outer: InterpolationMatrix, inner: InterpolationMatrix) -> InterpolationMatrix:
    """Return the matrix that applies `inner`, then `outer`."""
    indices = inner.indices[outer.indices].reshape(len(outer.indices), -1)
    weights = outer.weights[..., None] * inner.weights[outer.indices]
    return InterpolationMatrix(
        indices.astype(np.int32), weights.reshape(indices.shape).astype(np.float32)
    )


def image_matrices(
    size: Size, tiling: Tiling, number: int, *, logits: Size, mirrored: bool
) -> tuple[InterpolationMatrix, InterpolationMatrix]:
    """Return the matrices of rows and of columns from one tile's logits to an image of `size`.

    `logits` is the size of each tile's logits. The matrices of a mirrored view also mirror its
    scores back, at the image's size.
    """
    row, column = divmod(number, len(tiling.lefts))
    starts = tiling.tops, tiling.lefts
    axes = zip(size, tiling.size, starts, tiling.tile, logits, strict=True)
    rows, columns = (tile_matrices(*axis) for axis in axes)
    if mirrored:
        return rows[row], InterpolationMatrix(*(array[::-1] for array in columns[column]))
    return rows[row], columns[column]


def stack_matrices(
    matrices: Sequence[InterpolationMatrix | None], num_rows: int, multiple: int
) -> InterpolationMatrix:
    """Put one matrix per image into [b, n, 4], n being `num_rows` up to a multiple.

    None and the rows past a matrix's end become zero.
    """
    shape = (len(matrices), -(-num_rows // multiple) * multiple, NUM_WEIGHTS)
    stacked = InterpolationMatrix(np.zeros(shape, np.int32), np.zeros(shape, np.float32))
    for i, matrix in enumerate(matrices):
        if matrix is not None:
            stacked.indices[i, : len(matrix.indices)] = matrix.indices
            stacked.weights[i, : len(matrix.weights)] = matrix.weights
    return stacked


Multiply = Callable[[Array, np.ndarray, np.ndarray], Array]


def blocks(
    views: Sequence[Sequence[Tile]], multiply_rows: Multiply, multiply_columns: Multiply
) -> Iterator[tuple[Size, list[Array]]]:
    """Yield the top left pixel of each block of the images and each view's logits [b, *BLOCK, k].

    Logits beyond an image's edges mean nothing. The functions are those below, compiled.
    """
    height, width = views[0][0].rows.indices.shape[1], views[0][0].columns.indices.shape[1]
    for top in range(0, height, BLOCK[0]):
        row_blocks = [_row_blocks(view, top, multiply_rows) for view in views]
        for left in range(0, width, BLOCK[1]):
            logits = [_sum(tiles, left, multiply_columns) for tiles in row_blocks]
            within = [scores for scores in logits if scores is not None]
            if within:  # a block outside of every image is so in every view
                yield (top, left), within


def _row_blocks(view: Sequence[Tile], top: int, multiply_rows: Multiply) -> list[Tile]:
    """Return the tiles within a block of rows: these are the image's, the columns the tile's."""
    parts = ((tile, tile.rows.part(top, BLOCK[0])) for tile in view)
    return [Tile(multiply_rows(t.logits, *p), p, t.columns) for t, p in parts if p.used.any()]


def _sum(tiles: Sequence[Tile], left: int, multiply_columns: Multiply) -> Array | None:
    total = None
    for tile in tiles:
        columns = tile.columns.part(left, BLOCK[1])
        if (tile.rows.used & columns.used).any():
            scores = multiply_columns(tile.logits, *columns)
            total = scores if total is None else total + scores
    return total


def multiply_rows(
    x: Float[Array, "b h w k"], indices: Int32[Array, "b n t"], weights: Float32[Array, "b n t"]
) -> Float[Array, "b n w k"]:
    """Multiply each image's matrix with the rows of `x`."""
    return jax.vmap(_multiply)(x, indices, weights)


def multiply_columns(
    x: Float[Array, "b h w k"], indices: Int32[Array, "b n t"], weights: Float32[Array, "b n t"]
) -> Float[Array, "b h n k"]:
    """Multiply each image's matrix with the columns of `x`."""
    return jax.vmap(jax.vmap(_multiply, (0, None, None)))(x, indices, weights)


def _multiply(x: Array, indices: Array, weights: Array) -> Array:
    """Gather and add rows; matrices are arguments, so that another image size compiles nothing.

    `image_matrices` makes indices in bounds for logits of the size that `Predictor` checks.
    """
    weights = weights.reshape(*weights.shape, *(1,) * (x.ndim - 1))
    rows = (x.at[indices[:, t]].get(mode="promise_in_bounds") for t in range(NUM_WEIGHTS))
    return functools.reduce(jnp.add, (weights[:, t] * row for t, row in enumerate(rows)))


def assemble(parts: Iterable[tuple[Size, Array]], size: Size) -> np.ndarray:
    """Put blocks [b, n, m, ...] together to [b, h, w, ...], cut to `size`."""
    whole = np.empty(0)
    for (top, left), part in parts:
        pixels = np.asarray(part)[:, : size[0] - top, : size[1] - left]
        if not whole.size:
            whole = np.zeros((len(pixels), *size, *pixels.shape[3:]), pixels.dtype)
        whole[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
    return whole
