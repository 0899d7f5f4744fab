"""Matrices and blocks against resizes and windows taken one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segret_jax.evaluation.plan import Tiling, window_starts
from segret_jax.evaluation.rescale import (
    BLOCK,
    InterpolationMatrix,
    Tile,
    assemble,
    bilinear_matrix,
    blocks,
    image_matrices,
    multiply_columns,
    multiply_rows,
    stack_matrices,
    tile_matrices,
)


def dense(sparse: InterpolationMatrix, num_in: int) -> np.ndarray:
    matrix = np.zeros((len(sparse.indices), num_in))
    for i, (indices, weights) in enumerate(zip(*sparse, strict=True)):
        for index, weight in zip(indices, weights, strict=True):
            matrix[i, index] += weight
    return matrix


def resized(values: np.ndarray, num_out: int) -> np.ndarray:
    """Interpolate along the first axis between pixel centers, in a loop."""
    out = []
    for i in range(num_out):
        x = min(max((i + 0.5) * len(values) / num_out - 0.5, 0), len(values) - 1)
        low = int(x)
        high = min(low + 1, len(values) - 1)
        out.append((1 - (x - low)) * values[low] + (x - low) * values[high])
    return np.array(out)


def released(tiles: list[np.ndarray], tiling: Tiling, size: tuple[int, int]) -> np.ndarray:
    """Resize each tile's logits, add up, divide by the overlap, resize to the image."""
    total, count = np.zeros((*tiling.size, tiles[0].shape[-1])), np.zeros((*tiling.size, 1))
    height, width = tiling.tile
    for number, logits in enumerate(tiles):
        top, left = tiling.corner(number)
        rows = resized(logits, height)
        total[top : top + height, left : left + width] += resized(
            rows.swapaxes(0, 1), width
        ).swapaxes(0, 1)
        count[top : top + height, left : left + width] += 1
    return resized(resized(total / count, size[0]).swapaxes(0, 1), size[1]).swapaxes(0, 1)


@pytest.mark.parametrize(("num_out", "num_in"), [(7, 3), (3, 7), (1, 5), (5, 1), (90, 24), (8, 8)])
def test_bilinear_matrix_equals_the_resize_of_jax(num_out, num_in):
    matrix = dense(bilinear_matrix(num_out, num_in), num_in)
    np.testing.assert_allclose(matrix, resized(np.eye(num_in), num_out), atol=1e-12)
    by_jax = jax.image.resize(jnp.eye(num_in), (num_out, num_in), "bilinear", antialias=False)
    np.testing.assert_allclose(matrix, by_jax, atol=3e-6)  # JAX works in float32


@pytest.mark.parametrize(
    ("num_out", "network", "tile", "stride"),
    [(50, 64, 64, 64), (131, 70, 32, 20), (31, 45, 17, 3), (1, 40, 16, 16), (9, 9, 8, 1)],
)
def test_tile_matrices_equal_the_released_chain_of_resizes(num_out, network, tile, stride):
    starts, num_logits = window_starts(network, tile, stride), -(-tile // 4)
    rng = np.random.default_rng(0)
    tiles = [rng.standard_normal((num_logits, 1, 2)) for _ in starts]
    tiling = Tiling((network, 1), (tile, 1), starts)
    matrices = tile_matrices(num_out, network, starts, tile, num_logits)
    summed = sum(
        dense(matrix, num_logits) @ logits[:, 0]
        for matrix, logits in zip(matrices, tiles, strict=True)
    )
    np.testing.assert_allclose(summed, released(tiles, tiling, (num_out, 1))[:, 0], atol=1e-6)


def test_blocks_of_images_of_different_sizes_are_assembled_to_each_image():
    """The second has other windows than the first, and fewer: its last tiles count nothing."""
    rng = np.random.default_rng(1)
    cases = {(70, 300): Tiling((32, 100), (32, 64), (0,), (0, 36)),
             (200, 40): Tiling((96, 64), (32, 64), (0, 32, 64), (0,))}  # fmt: skip
    logits = rng.standard_normal((3, 2, 8, 16, 5)).astype(np.float32)
    tiles = []
    for number in range(3):
        pairs = [
            image_matrices(size, tiling, number, logits=(8, 16), mirrored=False)
            if number < tiling.num_tiles
            else (None, None)
            for size, tiling in cases.items()
        ]
        rows, columns = zip(*pairs, strict=True)
        tiles.append(
            Tile(
                jnp.asarray(logits[number]),
                stack_matrices(rows, 200, multiple=BLOCK[0]),
                stack_matrices(columns, 300, multiple=BLOCK[1]),
            )
        )
    found = dict(blocks([tiles], jax.jit(multiply_rows), jax.jit(multiply_columns)))
    # Of 4 x 2 blocks the wide image has the upper two rows, the tall one the left column.
    assert set(found) == {(0, 0), (0, 256), (64, 0), (64, 256), (128, 0), (192, 0)}
    whole = assemble(((corner, view) for corner, (view,) in found.items()), (200, 300))
    for i, (size, tiling) in enumerate(cases.items()):
        expected = released([t[i] for t in logits[: tiling.num_tiles]], tiling, size)
        np.testing.assert_allclose(whole[i, : size[0], : size[1]], expected, atol=1e-5)


def test_a_mirrored_view_is_mirrored_back():
    tiling = Tiling((32, 100), (32, 64), (0,), (0, 36))
    for number in range(2):
        (rows, columns), (same_rows, mirrored) = (
            image_matrices((20, 33), tiling, number, logits=(8, 16), mirrored=m)
            for m in (False, True)
        )
        np.testing.assert_array_equal(dense(mirrored, 16), dense(columns, 16)[::-1])
        np.testing.assert_array_equal(dense(same_rows, 8), dense(rows, 8))
