"""Neighborhood attention on a TPU: Pallas kernels whose logits stay on the chip.

A kernel goes through pairs of a tile (a block of queries, or for the gradients of k and v of keys)
and a block of the others near it, with an online softmax; logits are [keys, queries]. In the layout
of `neighborhood.layout` the bias of a pair is one row, shifted by a lane from each key to the next.

Images are the inner loop of a tile: the bias of its blocks is made for the first image and kept on
the chip for all, and its gradient is summed over them. Letters as in `neighborhood.formulas`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from segret_jax.models.layers import MapSize
from segret_jax.models.neighborhood.formulas import Bias, Heads, window_starts
from segret_jax.models.neighborhood.layout import MAX_LOGITS, FlatLayout, Table, flat_layout

# Finite, so that a query without keys in a block has no NaN; a key in its window outweighs it.
MASKED = -1e30

LogTotal = Float[Array, "b h w n"]


def fits(q: Heads, bias: Bias) -> bool:
    """Return whether the kernels support these inputs.

    Requires float32 or bfloat16, and rows of pixels that are short enough for the memory of a chip:
    up to 512 pixels with windows of 11×11.
    """
    return q.dtype in (jnp.float32, jnp.bfloat16) and flat_layout(q, bias).max_logits <= MAX_LOGITS


def forward(
    q: Heads,
    k: Heads,
    v: Heads,
    bias: Bias,
    size: MapSize,
    *,
    full_precision: bool,
    interpret: bool = False,
) -> tuple[Heads, LogTotal]:
    """Return the output and L, the logarithm of the softmax's denominator.

    Products of float32 are in one pass of bfloat16, or with `full_precision` in six, which is right
    to 1e-6. `interpret` runs the kernels anywhere, slowly.
    """
    layout = flat_layout(q, bias)
    run = _Call(layout, size, layout.table(bias), full_precision, interpret)
    queries, *keys = (layout.flatten(t, size) for t in (q, k, v))
    out, log_total = run(_forward, [queries], keys, [queries, layout.numbers(queries)])
    return layout.unflatten(out), layout.unflatten(log_total)[..., 0]


def backward(
    q: Heads,
    k: Heads,
    v: Heads,
    bias: Bias,
    size: MapSize,
    out: Heads,
    log_total: LogTotal,
    out_grad: Heads,
    *,
    full_precision: bool,
    interpret: bool = False,
) -> tuple[Heads, Heads, Heads, Bias]:
    """Return the gradients of q, k, v and bias; see `forward`."""
    layout = flat_layout(q, bias)
    run = _Call(layout, size, layout.table(bias), full_precision, interpret)
    mean = jnp.sum(out_grad.astype(jnp.float32) * out, -1, keepdims=True)
    queries = [layout.flatten(t, size) for t in (q, out_grad, mean)]
    # Beyond the true size softmax is 0.
    queries.append(layout.flatten(log_total[..., None], size, fill=jnp.inf))
    keys = [layout.flatten(t, size) for t in (k, v)]
    q_grad, table_grad = run(_gradients_of_queries, queries, keys, queries[:1])
    k_grad, v_grad = run(_gradients_of_keys, keys, queries, keys)
    q_grad, k_grad, v_grad = map(layout.unflatten, (q_grad, k_grad, v_grad))
    return q_grad, k_grad, v_grad, layout.bias_of(table_grad)


@dataclass(frozen=True)
class _Call:
    """The kernels on images of one layout."""

    layout: FlatLayout
    size: MapSize
    table: Table
    full_precision: bool
    interpret: bool

    def __call__(
        self, kernel: Callable, tiles: list[Array], blocks: list[Array], results: list[Any]
    ) -> tuple[Array, ...]:
        """Run `kernel(pair, *refs)` for each pair of a tile and a block.

        Returns arrays of tiles, which are like `results`, and of the gradients of queries that of
        the table.
        """
        layout, has_queries = self.layout, kernel is not _gradients_of_keys
        num_steps = layout.num_steps(has_queries=has_queries)
        for_table = [self.table] if kernel is _gradients_of_queries else []
        logits = pltpu.VMEM((num_steps, layout.block, layout.block), jnp.float32)
        sums = [pltpu.VMEM((t.shape[2], layout.block), jnp.float32) for t in results]
        specs = [self._specs(t, _tile_index) for t in (tiles, results)]
        found, table_grad = pl.pallas_call(
            functools.partial(self._run, kernel),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=3,
                grid=(len(self.table), layout.num_blocks, layout.shape[0], num_steps),
                in_specs=(self._of_head, specs[0], self._specs(blocks, _block_index)),
                out_specs=(specs[1], [self._of_head for _ in for_table]),
                scratch_shapes=(logits, sums, _scratch(kernel, logits)),
            ),
            out_shape=jax.tree.map(_form, (results, for_table)),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary")
            ),
            interpret=self.interpret,
            name="neighborhood" + kernel.__name__,
        )(
            *layout.block_ranges(self.size[0], has_queries=has_queries),
            jnp.asarray(self.size, jnp.int32), self.table, tiles, blocks,
        )  # fmt: skip
        return *found, *table_grad

    @property
    def _of_head(self) -> pl.BlockSpec:
        return pl.BlockSpec((1, *self.table.shape[1:]), lambda n, *_: (n, 0, 0, 0))

    def _specs(self, arrays: list[Any], index: Callable) -> list[pl.BlockSpec]:
        return [pl.BlockSpec((1, 1, t.shape[2], self.layout.block), index) for t in arrays]

    def _run(self, kernel: Callable, first: Any, last: Any, size: Any, *refs: Any) -> None:
        table, tiles, blocks, results, table_grads, *scratch = refs
        _, tile, image, step = map(pl.program_id, range(4))
        block, has_queries = first[tile] + step, kernel is not _gradients_of_keys
        pair = _Pair(
            self, has_queries, size[0], size[1], tile, block, step, image, block <= last[tile]
        )
        kernel(pair, table, tiles, blocks, results, *table_grads, scratch)


def _tile_index(n: Any, tile: Any, image: Any, step: Any, *_: Any) -> tuple[Any, ...]:
    return image, n, 0, tile


def _block_index(
    n: Any, tile: Any, image: Any, step: Any, first: Any, last: Any, size: Any
) -> tuple[Any, ...]:
    return image, n, 0, jnp.minimum(first[tile] + step, last[tile])


def _form(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _scratch(kernel: Callable, logits: Any) -> list[Any]:
    """Return what a kernel keeps besides the bias and its sums."""
    if kernel is _forward:
        return [pltpu.VMEM((1, logits.shape[-1]), jnp.float32)]
    return [logits] if kernel is _gradients_of_queries else []


@dataclass(frozen=True)
class _Pair:
    """One step of a kernel: a tile and a block, of queries and keys or of keys and queries."""

    call: _Call
    has_queries: bool  # rather than keys: the tile
    height: Any  # true
    width: Any
    tile: Any
    block: Any
    step: Any  # of the tile
    image: Any
    is_near: Any  # else the tile has no such block

    @property
    def layout(self) -> FlatLayout:
        return self.call.layout

    def at_start(self) -> Callable:
        return pl.when(self.step == 0)

    def at_end(self) -> Callable:
        return pl.when(self.step == self.layout.num_steps(has_queries=self.has_queries) - 1)

    def product(self, a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
        """Multiply matrices, contracting an axis of each."""
        return lax.dot_general(
            a,
            b,
            (((axis_a,), (axis_b,)), ((), ())),
            precision=lax.Precision.HIGHEST if self.call.full_precision else lax.Precision.DEFAULT,
            preferred_element_type=jnp.float32,
        )

    def logits(self, q: Array, k: Array, bias: Any) -> Float[Array, "p q"]:
        return self.product(k, q, 0, 0) + bias[self.step]

    def make_bias(self, table_ref: Any, bias: Any) -> None:
        """Write the bias of this pair for all images, with pairs masked, when at the first."""
        key, query = (self.block, self.tile) if self.has_queries else (self.tile, self.block)
        side = self.layout.block

        @pl.when((self.image == 0) & self.is_near)
        def _make() -> None:
            parts = [table_ref[0, i] for i in self.layout.table_blocks(query, key)]
            row = jnp.broadcast_to(jnp.concatenate(parts, 1), (side, 2 * side))
            is_inside = self._is_inside(key, query)
            bias[self.step] = jnp.where(is_inside, _shift_rows(row, 1)[:, side:], MASKED)

    def _is_inside(self, key: Any, query: Any) -> Array:
        """Return whether the window of a query contains a key."""
        side, window, found = self.layout.block, self.layout.window, []
        keys = self._pixels(key * side + lax.broadcasted_iota(jnp.int32, (side, 1), 0))
        queries = self._pixels(query * side + lax.broadcasted_iota(jnp.int32, (1, side), 1))
        for k, q, length in zip(keys, queries, (self.height, self.width), strict=True):
            start = window_starts(q, length, window)
            found += [k >= start, k < start + window]
        return functools.reduce(jnp.logical_and, found)

    def _pixels(self, index: Array) -> tuple[Array, Array]:
        """Return y and x of flattened pixels."""
        # In floats, since a TPU divides no integers; exact for up to 2²² pixels.
        y = ((index.astype(jnp.float32) + 0.5) * (1 / self.layout.row)).astype(jnp.int32)
        return y, index - y * self.layout.row

    def add_to_table(self, table_grad: Any, logits_grad: Float[Array, "p q"]) -> None:
        """Add the sums along the diagonals of this pair: the reverse of `make_bias`."""
        row = jnp.concatenate([jnp.zeros_like(logits_grad), logits_grad], 1)
        sums = jnp.split(jnp.sum(_shift_rows(row, -1), 0, keepdims=True), 2, 1)
        for i, part in zip(self.layout.table_blocks(self.tile, self.block), sums, strict=True):
            table_grad[0, i] += part


def _shift_rows(x: Float[Array, "r l"], sign: int) -> Array:
    """Rotate each row by its number: by its binary digits, as rotations of all rows."""
    row = lax.broadcasted_iota(jnp.int32, x.shape, 0)
    for digit in range((len(x) - 1).bit_length()):
        rotated = pltpu.roll(x, sign * 2**digit % x.shape[1], 1)
        x = jnp.where(row & 2**digit != 0, rotated, x)
    return x


def _forward(
    pair: _Pair, table_ref: Any, queries: Any, keys: Any, results: Any, scratch: Any
) -> None:
    (q_ref,), (k_ref, v_ref), (out_ref, total_ref) = queries, keys, results
    bias, (out, total), (highest,) = scratch
    pair.make_bias(table_ref, bias)

    @pair.at_start()
    def _start() -> None:
        out[...], total[...] = jnp.zeros_like(out), jnp.zeros_like(total)
        highest[...] = jnp.full_like(highest, -jnp.inf)

    @pl.when(pair.is_near)
    def _add() -> None:
        v = v_ref[0, 0]
        logits = pair.logits(q_ref[0, 0], k_ref[0, 0], bias)
        new = jnp.maximum(highest[...], jnp.max(logits, 0, keepdims=True))
        weights, shrink = jnp.exp(logits - new), jnp.exp(highest[...] - new)
        out[...] = shrink * out[...] + pair.product(v, weights.astype(v.dtype), 1, 0)
        total[...] = shrink * total[...] + jnp.sum(weights, 0, keepdims=True)
        highest[...] = new

    @pair.at_end()
    def _finish() -> None:
        out_ref[0, 0] = (out[...] / total[...]).astype(out_ref.dtype)
        total_ref[0, 0] = highest[...] + jnp.log(total[...])


def _gradients_of_queries(
    pair: _Pair,
    table_ref: Any,
    queries: Any,
    keys: Any,
    results: Any,
    table_grad: Any,
    scratch: Any,
) -> None:
    (k_ref, _), (q_grad_ref,) = keys, results
    bias, (q_grad,), (logits_grads,) = scratch
    pair.make_bias(table_ref, bias)

    @pl.when((pair.tile == 0) & (pair.image == 0) & (pair.step == 0))
    def _start_head() -> None:
        table_grad[...] = jnp.zeros_like(table_grad)

    @pair.at_start()
    def _start() -> None:
        q_grad[...] = jnp.zeros_like(q_grad)

    @pl.when(pair.is_near)
    def _add() -> None:
        k = k_ref[0, 0]
        _, logits_grad = _gradients(pair, queries, keys, bias)
        q_grad[...] += pair.product(k, logits_grad.astype(k.dtype), 1, 0)
        before = jnp.where(pair.image == 0, 0.0, logits_grads[pair.step])
        logits_grads[pair.step] = before + logits_grad

    @pl.when(pair.is_near & (pair.image == pair.layout.shape[0] - 1))
    def _finish_pair() -> None:
        pair.add_to_table(table_grad, logits_grads[pair.step])

    @pair.at_end()
    def _finish() -> None:
        q_grad_ref[0, 0] = q_grad[...].astype(q_grad_ref.dtype)


def _gradients_of_keys(
    pair: _Pair, table_ref: Any, keys: Any, queries: Any, results: Any, scratch: Any
) -> None:
    bias, sums, _ = scratch
    pair.make_bias(table_ref, bias)

    @pair.at_start()
    def _start() -> None:
        for ref in sums:
            ref[...] = jnp.zeros_like(ref)

    @pl.when(pair.is_near)
    def _add() -> None:
        q, out_grad = (ref[0, 0] for ref in queries[:2])
        softmax, logits_grad = _gradients(pair, queries, keys, bias)
        k_grad, v_grad = sums
        k_grad[...] += pair.product(q, logits_grad.astype(q.dtype), 1, 1)
        v_grad[...] += pair.product(out_grad, softmax.astype(q.dtype), 1, 1)

    @pair.at_end()
    def _finish() -> None:
        for ref, total in zip(results, sums, strict=True):
            ref[0, 0] = total[...].astype(ref.dtype)


def _gradients(pair: _Pair, queries: Any, keys: Any, bias: Any) -> tuple[Array, Array]:
    """Return the softmax and the gradient of the logits, [keys, queries]."""
    q, out_grad, mean, log_total = (ref[0, 0] for ref in queries)
    k, v = (ref[0, 0] for ref in keys)
    softmax = jnp.exp(pair.logits(q, k, bias) - log_total)
    return softmax, softmax * (pair.product(v, out_grad, 0, 0) - mean)
