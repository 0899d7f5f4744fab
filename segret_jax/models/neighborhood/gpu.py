"""Neighborhood attention on an NVIDIA GPU: Pallas kernels whose logits stay on the chip.

A program has a tile of queries of one head, and goes through the keys of their windows block by
block, with an online softmax (as FlashAttention-2; Dao, 2023, arXiv 2307.08691). For the gradients
of k and v it has a tile of keys, and goes through the queries whose windows contain them. A product
covers all pairs of a tile and a block; those outside the windows are masked.

Matrix products need sides that are powers of 2, and windows are narrow: the sizes below are chosen
so that few pairs are masked. To mask a pair and to read its bias costs as much as its softmax: a
program does both once for the same tile of several images.

Logits are to the base 2 inside, since the chip computes powers of 2; the logarithm of the softmax's
denominator is stored to the base e. Letters as in `neighborhood.formulas`; the kernels see arrays
[b, h, w, n, d] as [b·h·w·n, d].
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from segret_jax.models.kernels import TRITON_CAPABILITY
from segret_jax.models.layers import MapSize
from segret_jax.models.neighborhood.formulas import Bias, Heads, window_side, window_starts
from segret_jax.models.neighborhood.ranges import keys_of, queries_of

LOG2_E = math.log2(math.e)
TILE = 8  # rows and columns of a tile: 64 pixels, the rows of a matrix product
BLOCK = (2, 16)  # rows and columns of a block
MAX_WINDOW = 11
OFFSETS = 32  # a power of 2 from the number of relative positions along an axis, 2k − 1, on
MAX_WIDTH = 64  # of heads
# A program has as many images, up to 4, as fit into registers: those with heads of that many bytes
# in all, by compiling for an H100. But it leaves two programs for each of its multiprocessors.
IMAGE_BYTES, MIN_PROGRAMS = 256, 264
# Finite, so that a query without keys in a block has no NaN; a key in its window outweighs it.
MASKED = -1e30

LogTotal = Float[Array, "b h w n"]


def fits(q: Heads, bias: Bias, capability: float | None) -> bool:
    """Return whether the Triton kernels support these inputs.

    Requires float32 or bfloat16, windows of up to 11×11, heads of up to 64 channels, and compute
    capability 8.0 or newer; None stands for an unknown one and passes.
    """
    has_triton = capability is None or capability >= TRITON_CAPABILITY
    is_small = window_side(bias) <= MAX_WINDOW and q.shape[-1] <= MAX_WIDTH
    return has_triton and is_small and q.dtype in (jnp.float32, jnp.bfloat16)


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

    Products of float32 are TF32, or with `full_precision` three of them, which is right to 1e-6.
    `interpret` runs the kernels anywhere, slowly.
    """
    run = functools.partial(_call, bias=bias, size=size, options=(full_precision, interpret))
    return run(_forward, (q, k, v), (q, _numbers(q)))


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
    run = functools.partial(_call, bias=bias, size=size, options=(full_precision, interpret))
    images = q, k, v, out_grad, log_total
    partial_sums = _partial_sums(q, bias)
    q_grad, mean, bias_grads = run(
        _gradients_of_queries, (*images, out), (q, _numbers(q), partial_sums)
    )
    k_grad, v_grad = run(_gradients_of_keys, (*images, mean), (k, v))
    return q_grad, k_grad, v_grad, jnp.sum(bias_grads, (0, 1, 2))


def _numbers(q: Heads) -> jax.ShapeDtypeStruct:
    """Return the form of an array of one number per query."""
    return jax.ShapeDtypeStruct(q.shape[:-1], jnp.float32)


def _partial_sums(q: Heads, bias: Bias) -> jax.ShapeDtypeStruct:
    """Return the form of each program's gradient of the bias; atomic sums would not repeat."""
    _, *programs = _grid(q, window_side(bias))
    return jax.ShapeDtypeStruct((*programs[::-1], *bias.shape), jnp.float32)


def _tile_columns(window: int) -> int:
    """Return the columns of a tile in use: so many that their windows are a block wide."""
    return min(TILE, BLOCK[1] - window + 1)


def _grid(q: Heads, window: int) -> tuple[int, int, int, int]:
    """Return the number of heads, of tiles along x and y, and of groups of images."""
    b, h, w, n, d = q.shape
    tiles = pl.cdiv(w, _tile_columns(window)), pl.cdiv(h, TILE)
    num_tiles, most = n * math.prod(tiles) * b, IMAGE_BYTES // (_padded_width(d) * q.dtype.itemsize)
    images = 4
    while images > 1 and (b % images or images > min(most, num_tiles // MIN_PROGRAMS)):
        images //= 2
    return n, *tiles, b // images  # Heads vary fastest: they are contiguous in memory.


def _call(
    kernel: Callable,
    inputs: tuple[Array, ...],
    results: tuple[Any, ...],
    *,
    bias: Bias,
    size: MapSize,
    options: tuple[bool, bool],
) -> Any:
    """Run `kernel(program, *refs)` for each tile; the refs are of whole inputs and results."""
    q, window, (full_precision, interpret) = inputs[0], window_side(bias), options
    shape, grid = q.shape, _grid(q, window)

    def of_tile(size_ref: Any, table_ref: Any, *refs: Any) -> None:
        kernel(
            _Program(
                shape, shape[0] // grid[3], window, full_precision and not interpret,
                kernel is not _gradients_of_keys, table_ref, size_ref[0], size_ref[1],
                *map(pl.program_id, range(4)),
            ),
            *refs,
        )  # fmt: skip

    def flat(t: Any) -> tuple[int, ...]:
        return (math.prod(shape[:4]), *t.shape[4:]) if t.shape[:4] == shape[:4] else t.shape

    flat_inputs = (t.reshape(flat(t)) for t in inputs)
    masked = (0, OFFSETS - bias.shape[-1])
    table = jnp.pad(LOG2_E * bias, ((0, 0), masked, masked), constant_values=MASKED)
    found = pl.pallas_call(
        of_tile,
        grid=grid,
        out_shape=[jax.ShapeDtypeStruct(flat(t), t.dtype) for t in results],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="neighborhood" + kernel.__name__,
    )(jnp.asarray(size, jnp.int32), table.reshape(len(bias), -1), *flat_inputs)
    return tuple(t.reshape(form.shape) for t, form in zip(found, results, strict=True))


@dataclasses.dataclass(frozen=True)
class _Pixels:
    """A rectangle of pixels, row by row."""

    y: Array
    x: Array
    is_stored: Array  # in the array
    is_inside: Array  # within the true size


@dataclasses.dataclass(frozen=True)
class _Program:
    """One program of a kernel: its tile, and what it reads and writes of the arrays."""

    shape: tuple[int, ...]
    num_images: int
    window: int
    full_precision: bool
    has_queries: bool  # rather than keys: the tile; the blocks are of the others
    table: Any  # the bias
    height: Any  # true
    width: Any
    head: Any
    tile_x: Any
    tile_y: Any
    group: Any  # of images

    @property
    def start(self) -> tuple[Any, Any]:
        return self.tile_y * TILE, self.tile_x * _tile_columns(self.window)

    @functools.cached_property
    def tile(self) -> _Pixels:
        return self._rectangle(*self.start, (TILE, TILE), _tile_columns(self.window))

    @property
    def images(self) -> list[Any]:
        return [self.group * self.num_images + i for i in range(self.num_images)]

    def _rectangle(self, y: Any, x: Any, sides: tuple[int, int], columns: int) -> _Pixels:
        """Return rows and columns from (y, x) on; the columns from `columns` on do not exist."""
        index = jnp.arange(math.prod(sides), dtype=jnp.int32)
        end = jnp.minimum(x + columns, self.shape[2])
        y, x = y + index // sides[1], x + index % sides[1]
        is_stored = (y < self.shape[1]) & (x < end)
        return _Pixels(y, x, is_stored, is_stored & (y < self.height) & (x < self.width))

    def fold(self, step: Callable, carry: Any) -> Any:
        """Apply `step(start, block, carry)` to each block that may share windows with the tile."""
        reach = keys_of if self.has_queries else queries_of
        sides, lengths = (TILE, _tile_columns(self.window)), (self.height, self.width)
        (y, y_end), (x, x_end) = (
            reach(start, start + side - 1, length, self.window)
            for start, side, length in zip(self.start, sides, lengths, strict=True)
        )
        blocks_y, blocks_x = (
            jnp.maximum((count + side - 1) // side, 0)
            for count, side in zip((y_end - y, x_end - x), BLOCK, strict=True)
        )

        def of_block(number: Any, carry: Any) -> Any:
            start = y + number // blocks_x * BLOCK[0], x + number % blocks_x * BLOCK[1]
            return step(start, self._rectangle(*start, BLOCK, BLOCK[1]), carry)

        return lax.fori_loop(0, blocks_y * blocks_x, of_block, carry)

    def bias(self, start: tuple[Any, Any]) -> Float[Array, "t p"]:
        """Return what to add to the logits of a tile and a block, with pairs masked."""
        rows, columns = map(self._table_index, self.start, start, BLOCK, (self.height, self.width))
        index = rows[:, None, :, None] * OFFSETS + columns[None, :, None]
        return triton.load(self.table.at[self.head, index.reshape(TILE**2, -1)])

    def _table_index(self, tile: Any, block: Any, side: int, length: Any) -> Int[Array, "t p"]:
        """Return along one axis the bias's index of a pair, or that of the masked ones."""
        first, second = tile + jnp.arange(TILE)[:, None], block + jnp.arange(side)[None]
        query, key = (first, second) if self.has_queries else (second, first)
        start = window_starts(query, length, self.window)
        is_inside = (key >= start) & (key < start + self.window)
        return jnp.where(is_inside, key - query + self.window - 1, OFFSETS - 1)

    def load(self, ref: Any, image: Any, pixels: _Pixels, *, other: float = 0.0) -> Array:
        """Read the pixels, [p, d] or [p]; `other` stands beyond the true size."""
        at, mask = self._at(ref, image, pixels, pixels.is_inside)
        return triton.load(at, mask=mask, other=other)

    def store(self, ref: Any, image: Any, value: Array) -> None:
        """Write the pixels of the tile."""
        at, mask = self._at(ref, image, self.tile, self.tile.is_stored)
        triton.store(at, value.astype(ref.dtype), mask=mask)

    def _at(self, ref: Any, image: Any, pixels: _Pixels, mask: Array) -> tuple[Any, Array]:
        _, h, w, n, d = self.shape
        index = ((image * h + pixels.y) * w + pixels.x) * n + self.head
        index = jnp.where(mask, index, len(ref))  # the interpreter writes masked elements, too
        if len(ref.shape) == 1:
            return ref.at[index], mask
        channel = jnp.arange(_padded_width(d), dtype=jnp.int32)[None]
        return ref.at[index[:, None], channel], mask[:, None] & (channel < d)

    def product(self, a: Array, b: Array, **transposed: bool) -> Array:
        precision: Any = lax.Precision.DEFAULT  # not that of a context, which may have ended
        if self.full_precision and a.dtype == jnp.float32:
            precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        return triton.dot(a, b, precision=precision, **transposed)

    def sum_by_offset(self, values: Float[Array, "t p"], start: Any, dtype: Any) -> Array:
        """Sum over all pairs of one relative position: first along x, then along y.

        A sum is a product with a matrix of ones and zeros: pairs by relative positions.
        """
        sides = (TILE, TILE, *BLOCK)
        pairs = values.reshape(sides).transpose(0, 2, 1, 3).reshape(TILE * BLOCK[0], -1)
        ones_y, ones_x = map(self._pairs_by_offset, start, self.start, BLOCK)
        rows = self.product(pairs.astype(dtype), ones_x.astype(dtype))
        return self.product(ones_y.astype(jnp.float32), rows, trans_a=True)

    def _pairs_by_offset(self, key_start: Any, query_start: Any, side: int) -> Array:
        pair = jnp.arange(TILE * side, dtype=jnp.int32)
        offset = key_start - query_start + pair % side - pair // side + self.window - 1
        return offset[:, None] == jnp.arange(OFFSETS, dtype=jnp.int32)[None]

    def store_offsets(self, ref: Any, value: Float[Array, "o o"]) -> None:
        index = jnp.arange(OFFSETS, dtype=jnp.int32)
        row, column = index[:, None], index[None]
        at = ref.at[self.group, self.tile_y, self.tile_x, self.head, row, column]
        triton.store(at, value, mask=(row < ref.shape[-1]) & (column < ref.shape[-1]))


def _padded_width(d: int) -> int:
    return max(16, pl.next_power_of_2(d))


def _forward(program: _Program, q_ref: Any, k_ref: Any, v_ref: Any, *out_refs: Any) -> None:
    queries = [program.load(q_ref, image, program.tile) for image in program.images]

    def step(start: Any, block: _Pixels, carry: Any) -> Any:
        bias = program.bias(start)

        def add(image: Any, q: Array, out: Array, highest: Array, total: Array) -> Any:
            k, v = (program.load(ref, image, block) for ref in (k_ref, v_ref))
            logits = LOG2_E * program.product(q, k, trans_b=True) + bias
            new = jnp.maximum(highest, jnp.max(logits, -1))
            weights, shrink = jnp.exp2(logits - new[:, None]), jnp.exp2(highest - new)
            out = shrink[:, None] * out + program.product(weights.astype(v.dtype), v)
            return out, new, shrink * total + jnp.sum(weights, -1)

        each = zip(program.images, queries, carry, strict=True)
        return [add(image, q, *sums) for image, q, sums in each]

    zero = jnp.zeros(TILE**2, jnp.float32)
    first = [(jnp.zeros(q.shape, jnp.float32), zero - jnp.inf, zero) for q in queries]
    sums = zip(program.images, program.fold(step, first), strict=True)
    for image, (out, highest, total) in sums:
        program.store(out_refs[0], image, out / total[:, None])
        program.store(out_refs[1], image, (highest + jnp.log2(total)) / LOG2_E)


def _gradients_of_queries(
    program: _Program,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_grad_ref: Any,
    total_ref: Any,
    out_ref: Any,
    q_grad_ref: Any,
    mean_ref: Any,
    bias_grad_ref: Any,
) -> None:
    """Compute the gradients of q and the bias, and of each query the mean of the softmax's."""
    tile, queries = program.tile, []
    for image in program.images:
        q, out, out_grad = (program.load(r, image, tile) for r in (q_ref, out_ref, out_grad_ref))
        log_total = program.load(total_ref, image, tile, other=jnp.inf)  # there softmax is 0
        mean = jnp.sum(out_grad.astype(jnp.float32) * out, -1)
        program.store(mean_ref, image, mean)
        queries.append((image, q, out_grad, LOG2_E * log_total[:, None], mean[:, None]))

    def step(start: Any, block: _Pixels, carry: Any) -> Any:
        (*q_grads, bias_grad), bias = carry, program.bias(start)
        logits_grads = jnp.zeros_like(bias)
        for i, (image, q, out_grad, log_total, mean) in enumerate(queries):
            k, v = (program.load(ref, image, block) for ref in (k_ref, v_ref))
            logits = LOG2_E * program.product(q, k, trans_b=True) + bias
            softmax_grad = program.product(out_grad, v, trans_b=True)
            logits_grad = jnp.exp2(logits - log_total) * (softmax_grad - mean)
            q_grads[i] += program.product(logits_grad.astype(q.dtype), k)
            logits_grads += logits_grad
        return *q_grads, bias_grad + program.sum_by_offset(logits_grads, start, q_ref.dtype)

    zeros = [jnp.zeros(q.shape, jnp.float32) for _, q, *_ in queries]
    *q_grads, bias_grad = program.fold(step, (*zeros, jnp.zeros((OFFSETS, OFFSETS), jnp.float32)))
    for image, q_grad in zip(program.images, q_grads, strict=True):
        program.store(q_grad_ref, image, q_grad)
    program.store_offsets(bias_grad_ref, bias_grad)


def _gradients_of_keys(
    program: _Program,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_grad_ref: Any,
    total_ref: Any,
    mean_ref: Any,
    *grad_refs: Any,
) -> None:
    keys = [
        tuple(program.load(ref, image, program.tile) for ref in (k_ref, v_ref))
        for image in program.images
    ]

    def step(start: Any, block: _Pixels, carry: Any) -> Any:
        bias = program.bias(start)

        def add(image: Any, k: Array, v: Array, k_grad: Array, v_grad: Array) -> Any:
            q, out_grad = (program.load(ref, image, block) for ref in (q_ref, out_grad_ref))
            log_total = program.load(total_ref, image, block, other=jnp.inf)  # there softmax is 0
            mean = program.load(mean_ref, image, block)
            logits = LOG2_E * program.product(k, q, trans_b=True) + bias
            softmax = jnp.exp2(logits - (LOG2_E * log_total)[None])
            softmax_grad = program.product(v, out_grad, trans_b=True)
            logits_grad = softmax * (softmax_grad - mean[None])
            k_grad += program.product(logits_grad.astype(q.dtype), q)
            return k_grad, v_grad + program.product(softmax.astype(v.dtype), out_grad)

        each = zip(program.images, keys, carry, strict=True)
        return [add(image, *of_keys, *grads) for image, of_keys, grads in each]

    first = [tuple(jnp.zeros(t.shape, jnp.float32) for t in pair) for pair in keys]
    for image, grads in zip(program.images, program.fold(step, first), strict=True):
        for ref, grad in zip(grad_refs, grads, strict=True):
            program.store(ref, image, grad)
