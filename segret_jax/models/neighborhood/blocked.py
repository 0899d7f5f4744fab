"""Neighborhood attention by tiles of queries, with few logits in memory.

A tile of t×t queries needs the keys of at most (t+k−1)×(t+k−1) pixels, which are read as one tile:
its logits are a dense product, those outside of a query's window are masked. All tiles of a row of
tiles are computed together, one row after the other.

The backward pass computes the logits again from q, k and one number per query, L, the logarithm of
the softmax's denominator. With logits S and softmax p:

    p = exp(S − L),  dV = pᵀ dO,  dS = p·(dO Vᵀ − dO·O),  dQ = dS K,  dK = dSᵀ Q

and dB is the sum of dS over the pairs at each relative position.

Letters of products: t tiles of a row of tiles; g tiles and heads, as one axis; i j a query's row
and column in its tile, y x a key's; o a row or column of the bias.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from segret_jax.models.layers import MapSize, accum_dtype
from segret_jax.models.neighborhood.formulas import (
    Bias,
    Heads,
    relative_index,
    window_side,
    window_starts,
)

TILE = 8  # pixels of a side
MASKED = -1e30  # a logit outside of the window

LogTotal = Float[Array, "b h w n"]


def forward(
    q: Heads, k: Heads, v: Heads, bias: Bias, size: MapSize | None, *, precision: str | None = None
) -> tuple[Heads, LogTotal]:
    """Return the output and L, the logarithm of the softmax's denominator.

    Arguments as of `formulas.neighborhood_attention`; `precision` is that of the products.
    """
    tiles = _Tiles(q.shape, bias, size, precision)

    def row(number: Array, arrays: tuple[Array, Array]) -> tuple[Array, Array]:
        joined, log_totals = arrays
        q, k, v = jnp.split(joined, 3, axis=3)
        scores = tiles.scores(number, q, k)
        highest = jnp.max(scores, -1, keepdims=True)
        weights = jnp.exp(scores - highest)
        total = jnp.sum(weights, -1, keepdims=True)
        values = tiles.keys(v, number)
        out = tiles.product("bgqk,bgkd->bgqd", weights.astype(v.dtype), values) / total
        joined = tiles.put(number, joined, out.astype(joined.dtype))
        return joined, tiles.put(number, log_totals, highest + jnp.log(total))

    # One padded array and one operand of the loop. The output takes the place of its queries: `put`
    # writes from the first head on, and no other row of tiles reads these.
    joined = tiles.pad(jnp.concatenate([q, k, v], 3))
    arrays = joined, tiles.pad(q[..., :1].astype(tiles.dtype))
    joined, log_totals = lax.fori_loop(0, tiles.rows.num_tiles, row, arrays)
    out, *_ = jnp.split(tiles.crop(joined), 3, axis=3)
    return out.astype(v.dtype), tiles.crop(log_totals)[..., 0]


def backward(
    q: Heads,
    k: Heads,
    v: Heads,
    bias: Bias,
    size: MapSize | None,
    out: Heads,
    log_total: LogTotal,
    out_grad: Heads,
    *,
    precision: str | None = None,
) -> tuple[Heads, Heads, Heads, Bias]:
    """Return the gradients of q, k, v and bias; see `forward`."""
    tiles = _Tiles(q.shape, bias, size, precision)
    dtype = accum_dtype(q.dtype)

    def row(number: Array, sums: Any) -> Any:
        queries, grads, outs = (tiles.queries(t, number) for t in (q, out_grad, out))
        keys, values = (tiles.keys(t, number) for t in (k, v))
        # Beyond the array the softmax is 0.
        total = tiles.queries(log_total[..., None], number, fill=jnp.inf)
        softmax = jnp.exp(tiles.scores(number, q, k) - total)
        mean = jnp.sum(grads.astype(dtype) * outs, -1, keepdims=True)
        scores_grad = softmax * (tiles.product("bgqd,bgkd->bgqk", grads, values) - mean)
        narrow = scores_grad.astype(q.dtype)
        key_grad = tiles.product("bgqk,bgqd->bgkd", narrow, queries)
        value_grad = tiles.product("bgqk,bgqd->bgkd", softmax.astype(v.dtype), grads)
        q_grad, k_grad, v_grad, bias_grad = sums
        k_grad, v_grad = tiles.add(number, (k_grad, v_grad), (key_grad, value_grad))
        bias_grad += tiles.bias_grad(number, scores_grad)
        q_grad = tiles.put(number, q_grad, tiles.product("bgqk,bgkd->bgqd", narrow, keys))
        return q_grad, k_grad, v_grad, bias_grad

    zeros = tuple(jnp.zeros(t.shape, dtype) for t in (k, v, bias))
    sums = tiles.pad(q.astype(dtype)), *zeros
    q_grad, k_grad, v_grad, bias_grad = lax.fori_loop(0, tiles.rows.num_tiles, row, sums)
    q_grad = tiles.crop(q_grad).astype(q.dtype)
    return q_grad, k_grad.astype(k.dtype), v_grad.astype(v.dtype), bias_grad


class _Axis(NamedTuple):
    """The tiles along an axis."""

    num_tiles: int
    side: int  # of a tile of queries
    key_side: int  # of a tile of keys
    # Arrays of NumPy where the true size is known: XLA compiles no kernels to compute constants.
    starts: Any  # [t], of the tiles of keys
    offset: Any  # [t, side, key_side], of keys from queries, as a row or column of the bias
    is_inside: Any  # of the query's window, as `offset`


def _axis(length: int, true_length: Any, window: int) -> _Axis:
    xp = np if isinstance(true_length, int) else jnp
    side, key_side = min(TILE, length), min(TILE + window - 1, length)
    num_tiles = -(-length // side)
    first = xp.arange(num_tiles) * side
    starts = xp.clip(first - window // 2, 0, xp.maximum(true_length - key_side, 0))
    queries = (first[:, None] + xp.arange(side)[None])[..., None]
    keys = (starts[:, None] + xp.arange(key_side)[None])[:, None]
    from_start = keys - window_starts(queries, true_length, window)
    is_inside = (from_start >= 0) & (from_start < window)
    offset = relative_index(keys, queries, window)
    return _Axis(num_tiles, side, key_side, starts, offset, is_inside)


# Indices that may count from the end would take operations of their own, also in the loops.
_slice = functools.partial(lax.dynamic_slice, allow_negative_indices=False)
_update = functools.partial(lax.dynamic_update_slice, allow_negative_indices=False)


def _rows(x: Heads, first: Array, number: int) -> Array:
    return lax.dynamic_slice_in_dim(x, first, number, 1, allow_negative_indices=False)


def _take(x: Array, index: Any, axis: int) -> Array:
    where = (*(slice(None),) * axis, jnp.asarray(index))
    return x.at[where].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _at(table: Any, index: Array) -> Array:
    table = jnp.asarray(table)
    return lax.dynamic_index_in_dim(table, index, keepdims=False, allow_negative_indices=False)


class _Tiles:
    """The tiles of an image, and the products between them."""

    def __init__(self, shape: tuple[int, ...], bias: Array, size: Any, precision: Any):
        self.shape, self.precision, window = shape, precision, window_side(bias)
        self.rows, self.columns = (
            _axis(length, true, window)
            for length, true in zip(shape[1:3], size or shape[1:3], strict=True)
        )
        self.dtype = accum_dtype(bias.dtype)
        # Masks of columns are in the table; a row of tiles adds those of its rows.
        by_column = _take(jnp.moveaxis(bias, 2, 0).astype(self.dtype), self.columns.offset, 0)
        is_inside = self.columns.is_inside[..., None, None]
        self.bias_by_column = jnp.where(is_inside, by_column, MASKED)  # [t, j, x, n, o]

    def product(self, letters: str, x: Array, y: Array) -> Array:
        dtype = accum_dtype(x.dtype)
        return jnp.einsum(letters, x, y, precision=self.precision, preferred_element_type=dtype)

    def queries(self, x: Heads, row: Array, *, fill: float = 0.0) -> Float[Array, "b g q d"]:
        """Return a row of tiles of queries, with `fill` beyond the array."""
        rows, columns, (b, _, _, n, _) = self.rows, self.columns, self.shape
        x = _rows(self.pad(x, fill=fill), row * rows.side, rows.side)
        x = x.reshape(b, rows.side, columns.num_tiles, columns.side, n, x.shape[-1])
        x = jnp.einsum("bitjnd->btnijd", x)
        return x.reshape(b, columns.num_tiles * n, -1, x.shape[-1])

    def keys(self, x: Heads, row: Array) -> Float[Array, "b g k d"]:
        """Return the tiles of keys of a row of tiles of queries."""
        slab = _rows(x, _at(self.rows.starts, row), self.rows.key_side)
        columns = self.columns.starts[:, None] + np.arange(self.columns.key_side)[None]
        tiles = jnp.einsum("bytxnd->btnyxd", _take(slab, columns, 2))
        return tiles.reshape(len(x), -1, tiles.shape[3] * tiles.shape[4], x.shape[-1])

    def scores(self, row: Array, q: Heads, k: Heads) -> Float[Array, "b g q k"]:
        scores = self.product("bgqd,bgkd->bgqk", self.queries(q, row), self.keys(k, row))
        bias = jnp.where(
            _at(self.rows.is_inside, row)[None, None, None, None],
            _take(self.bias_by_column, _at(self.rows.offset, row), 4),  # [t, j, x, n, i, y]
            MASKED,
        )
        bias = jnp.einsum("tjxniy->tnijyx", bias)
        return scores + bias.reshape(1, *scores.shape[1:])

    def bias_grad(self, row: Array, scores_grad: Float[Array, "b g q k"]) -> Bias:
        rows, columns = self.rows, self.columns
        n, side = self.bias_by_column.shape[3:]
        sides = rows.side, columns.side, rows.key_side, columns.key_side
        grad = scores_grad.sum(0).reshape(columns.num_tiles, n, *sides)
        of_rows = jax.nn.one_hot(_at(rows.offset, row), side, dtype=grad.dtype)  # [i, y, o]
        of_columns = jax.nn.one_hot(columns.offset, side, dtype=grad.dtype)  # [t, j, x, o]
        grad = jnp.einsum("tnijyx,iyo->notjx", grad, of_rows, precision="highest")
        return jnp.einsum("notjx,tjxp->nop", grad, of_columns, precision="highest")

    def add(self, row: Array, sums: Any, tiles: Any) -> Any:
        """Add tiles of keys where they came from."""
        (b, _, _, n, _), rows, columns = self.shape, self.rows, self.columns
        sides = rows.key_side, columns.key_side

        def add_tile(number: Array, sums: Any) -> Any:
            def add(total: Array, grads: Array) -> Array:
                tile = grads.reshape(b, columns.num_tiles, n, *sides, -1)[:, number]
                tile = jnp.einsum("bnyxd->byxnd", tile)
                corner = (0, _at(rows.starts, row), _at(columns.starts, number), 0, 0)
                old = _slice(total, corner, tile.shape)
                return _update(total, old + tile, corner)

            return jax.tree.map(add, sums, tiles)

        return lax.fori_loop(0, columns.num_tiles, add_tile, sums)

    def pad(self, x: Heads, *, fill: float = 0.0) -> Float[Array, "b _h _w n d"]:
        """Return an array padded to the size of all tiles of queries, if it is not yet.

        Results are written over such an array. (Zeros for them would be made at the program's
        start, and held until then.)
        """
        below, right = (
            axis.num_tiles * axis.side - length
            for axis, length in zip((self.rows, self.columns), x.shape[1:3], strict=True)
        )
        widths = ((0, 0), (0, below), (0, right), (0, 0), (0, 0))
        return jnp.pad(x, widths, constant_values=fill)

    def put(self, row: Array, image: Heads, tiles: Array) -> Heads:
        """Put a row of tiles of queries where they came from."""
        rows, columns, (b, _, _, n, _) = self.rows, self.columns, self.shape
        tiles = tiles.reshape(b, columns.num_tiles, n, rows.side, columns.side, -1)
        tiles = jnp.einsum("btnijd->bitjnd", tiles).reshape(b, rows.side, -1, n, tiles.shape[-1])
        return _update(image, tiles, (0, row * rows.side, 0, 0, 0))

    def crop(self, image: Array) -> Array:
        return image[:, : self.shape[1], : self.shape[2]]
