"""Retention along the lines of an image on a GPU: Pallas kernels whose scores stay on the chip.

A program has a block of queries (or of keys) of one line, as one head of one image sees it, and
goes through the line's keys (or queries) block by block, as FlashAttention-2 does (Dao, 2023, arXiv
2307.08691). It reads q, k and v where they lie, so nothing is laid out by line before.

Scores and logarithms are to the base 2 inside, as the chip computes powers of 2; the logarithm of
the softmax's denominator is stored to the base e. Letters as in `retention.blocked`, and a
for the lines of an image: its rows, its columns, or one.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from segret_jax.models.kernels import TRITON_CAPABILITY
from segret_jax.models.retention.decay import Decay, LogDecay

LOG2_E = math.log2(math.e)
LONGEST_IN_ONE_BLOCK = 128  # keys of a line that fit into one block
WIDTHS = (16, 32)  # of heads: those of all variants; a product needs a power of 2 from 16 on


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Sizes (powers of 2 from 16 on) and what the compiler is told."""

    queries: int
    keys: int
    warps: int
    stages: int = 2


def fits(q: Array, k: Array, v: Array, decay: Decay, capability: float | None) -> bool:
    """Return whether the Triton kernels support these inputs on a GPU of this `capability`.

    Requires additive decay, one common dtype other than float64, a head width of 16 or 32, and
    compute capability 8.0 or newer; None stands for an unknown one and passes.
    """
    if capability is not None and capability < TRITON_CAPABILITY:
        return False
    is_of_one_dtype = q.dtype == k.dtype == v.dtype != jnp.float64
    return decay is Decay.ADDITIVE and q.shape[-1] in WIDTHS and is_of_one_dtype


def forward(
    q: Float[Array, "b h w n d"],
    k: Float[Array, "b h w n d"],
    v: Float[Array, "b h w n d"],
    log_decay: LogDecay,
    *,
    along: str,
    full_precision: bool,
    interpret: bool = False,
) -> tuple[Float[Array, "b h w n d"], Float[Array, "a n b l"]]:
    """Return the output and L, the logarithm of the softmax's denominator.

    Lines are along w, h or hw. Products of float32 are TF32, or with
    `full_precision` three of them, which is right to 1e-6. `interpret` runs the kernels anywhere, slowly.
    """
    run = _Run(along, q.shape, log_decay, full_precision, interpret)
    size = _power_of_2(run.length)
    blocks = _Blocks(64, 64, warps=4)
    if run.length <= LONGEST_IN_ONE_BLOCK:
        blocks = _Blocks(min(size, 64), size, warps=4 if size > 32 else 2)
    like = jax.ShapeDtypeStruct(run.view(q).shape, q.dtype)
    log_total = jax.ShapeDtypeStruct((run.lines, run.heads, run.images, run.length), jnp.float32)
    num_blocks = pl.cdiv(run.length, blocks.queries)
    out, log_total = run(_forward, blocks, num_blocks, (q, k, v), (), (like, log_total))
    return out.reshape(q.shape), log_total


def backward(
    q: Float[Array, "b h w n d"],
    k: Float[Array, "b h w n d"],
    v: Float[Array, "b h w n d"],
    out: Float[Array, "b h w n d"],
    log_total: Float[Array, "a n b l"],
    out_grad: Float[Array, "b h w n d"],
    log_decay: LogDecay,
    *,
    along: str,
    full_precision: bool,
    interpret: bool = False,
) -> tuple[Array, Array, Array]:
    """Return the gradients of q, k and v; see `forward`."""
    run = _Run(along, q.shape, log_decay, full_precision, interpret)
    images = (q, k, v, out, out_grad)
    like = jax.ShapeDtypeStruct(run.view(q).shape, q.dtype)
    if run.length <= LONGEST_IN_ONE_BLOCK:
        size = _power_of_2(run.length)
        blocks = _Blocks(min(size, 64), size, warps=2)
        grads = run(_gradients_of_keys, blocks, 1, images, (log_total,), (like,) * 3)
    else:
        blocks = _Blocks(64, 128, warps=4, stages=3)
        num_blocks = pl.cdiv(run.length, blocks.keys)
        of_keys = run(_gradients_of_keys, blocks, num_blocks, images, (log_total,), (like,) * 2)
        blocks = _Blocks(64, 64, warps=4, stages=3)
        num_blocks = pl.cdiv(run.length, blocks.queries)
        of_queries = run(_gradient_of_queries, blocks, num_blocks, images, (log_total,), (like,))
        grads = (*of_keys, *of_queries)
    k_grad, v_grad, q_grad = (t.reshape(q.shape) for t in grads)
    return q_grad, k_grad, v_grad


def _power_of_2(length: int) -> int:
    return max(16, pl.next_power_of_2(length))


@dataclasses.dataclass(frozen=True)
class _Run:
    """One call of a kernel over all lines of all images."""

    along: str  # w, h or hw
    shape: tuple[int, ...]  # [b h w n d]
    log_decay: LogDecay
    full_precision: bool
    interpret: bool

    @property
    def images(self) -> int:
        return self.shape[0]

    @property
    def heads(self) -> int:
        return self.shape[3]

    @property
    def lines(self) -> int:
        return {"w": self.shape[1], "h": self.shape[2], "hw": 1}[self.along]

    @property
    def length(self) -> int:
        return self.shape[1] * self.shape[2] // self.lines

    def view(self, x: Array) -> Array:
        """Return an image whose rows or columns are the lines."""
        b, h, w, n, d = self.shape
        return x.reshape(b, 1, h * w, n, d) if self.along == "hw" else x

    def __call__(
        self,
        kernel: Callable,
        blocks: _Blocks,
        num_blocks: int,
        images: tuple[Array, ...],
        others: tuple[Array, ...],
        results: tuple[jax.ShapeDtypeStruct, ...],
    ) -> Any:
        """Run `kernel(line, *refs)`, whose refs are of whole arrays, once for each block."""

        def of_block(log_decay: Any, *refs: Any) -> None:
            head, index, block, image = map(pl.program_id, range(4))
            kernel(_Line(self, blocks, log_decay[head], head, index, block, image), *refs)

        log_decay = jnp.asarray(self.log_decay, jnp.float32) * LOG2_E
        return pl.pallas_call(
            of_block,
            # Heads vary fastest: they lie side by side in memory.
            grid=(self.heads, self.lines, num_blocks, self.images),
            out_shape=results,
            compiler_params=triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
            interpret=self.interpret,
            name=kernel.__name__.strip("_"),
        )(log_decay, *map(self.view, images), *others)


@dataclasses.dataclass(frozen=True)
class _Line:
    """The line of a program, and which block of it is its own."""

    run: _Run
    blocks: _Blocks
    log_decay: Any  # to the base 2
    head: Any
    index: Any
    block: Any
    image: Any

    def load(self, ref: Any, start: Any, size: int) -> Array:
        """Read [size, d] of an image, with zeros beyond the line's end."""
        return triton.load(self._at(ref, start, size), **self._inside(start, size, 2, other=0.0))

    def store(self, ref: Any, start: Any, value: Array) -> None:
        at = self._at(ref, start, len(value))
        triton.store(at, value.astype(ref.dtype), **self._inside(start, len(value), 2))

    def load_log_total(self, ref: Any, start: Any, size: int) -> Array:
        """Read L of some queries; beyond the line's end infinity, so that their softmax is 0."""
        at = ref.at[self.index, self.head, self.image, pl.ds(start, size)]
        return LOG2_E * triton.load(at, **self._inside(start, size, 1, other=jnp.inf))

    def store_log_total(self, ref: Any, start: Any, value: Array) -> None:
        at = ref.at[self.index, self.head, self.image, pl.ds(start, len(value))]
        triton.store(at, value / LOG2_E, **self._inside(start, len(value), 1))

    def _at(self, ref: Any, start: Any, size: int) -> Any:
        rows, columns = self.index, pl.ds(start, size)
        if self.run.along == "h":
            rows, columns = columns, rows
        return ref.at[self.image, rows, columns, self.head, :]

    def _inside(self, start: Any, size: int, ndim: int, **other: float) -> dict[str, Any]:
        if self.run.length % size == 0:
            return {}
        inside = start + jnp.arange(size) < self.run.length
        return {"mask": inside.reshape(-1, *[1] * (ndim - 1)), **other}

    def product(self, a: Array, b: Array, **transposed: bool) -> Array:
        precision: Any = lax.Precision.DEFAULT  # not that of a context, which may have ended
        if self.run.full_precision and not self.run.interpret:  # on CPU it is so anyway
            precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        return triton.dot(a, b, precision=precision, **transposed)

    def scores(self, q: Array, k: Array, q_start: Any, k_start: Any) -> Float[Array, "q k"]:
        own, others = self._places(q_start, len(q)), self._places(k_start, len(k))
        distance = sum(jnp.abs(a[:, None] - b) for a, b in zip(own, others, strict=True))
        scores = LOG2_E * self.product(q, k, trans_b=True) + self.log_decay * distance
        if self.run.length % len(k):
            scores = jnp.where(k_start + jnp.arange(len(k)) < self.run.length, scores, -jnp.inf)
        return scores

    def _places(self, start: Any, size: int) -> tuple[Array, ...]:
        index = start + jnp.arange(size, dtype=jnp.int32)
        width = jnp.int32(self.run.shape[2])
        is_image = self.run.along == "hw"
        places = (lax.div(index, width), lax.rem(index, width)) if is_image else (index,)
        return tuple(place.astype(jnp.float32) for place in places)

    def gradients(
        self, q: Array, k: Array, v: Array, query: tuple[Array, ...], q_start: Any, k_start: Any
    ) -> tuple[Float[Array, "q k"], Float[Array, "q k"]]:
        """Return the softmax and the gradient of the scores."""
        out, out_grad, log_total = query
        softmax = jnp.exp2(self.scores(q, k, q_start, k_start) - log_total[:, None])
        softmax_grad = self.product(out_grad, v, trans_b=True)
        mean = jnp.sum(out_grad.astype(jnp.float32) * out, -1, keepdims=True)
        return softmax.astype(v.dtype), (softmax * (softmax_grad - mean)).astype(q.dtype)

    def through(self, size: int, step: Callable, carry: Any) -> Any:
        """Apply `step(start, carry)` to each block of so many queries, or keys, of the line."""
        num_blocks = pl.cdiv(self.run.length, size)
        if num_blocks == 1:
            return step(0, carry)
        return lax.fori_loop(0, num_blocks, lambda i, carry: step(i * size, carry), carry)


def _forward(line: _Line, q_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any, total_ref: Any) -> None:
    num_queries, num_keys = line.blocks.queries, line.blocks.keys
    start = line.block * num_queries
    q = line.load(q_ref, start, num_queries)

    def step(k_start: Any, carry: tuple[Array, Array, Array]) -> Any:
        out, highest, total = carry
        k, v = (line.load(ref, k_start, num_keys) for ref in (k_ref, v_ref))
        scores = line.scores(q, k, start, k_start)
        new = jnp.maximum(highest, jnp.max(scores, -1))
        weights, shrink = jnp.exp2(scores - new[:, None]), jnp.exp2(highest - new)
        out = shrink[:, None] * out + line.product(weights.astype(v.dtype), v)
        return out, new, shrink * total + jnp.sum(weights, -1)

    zero = jnp.zeros(num_queries, jnp.float32)
    first = jnp.zeros(q.shape, jnp.float32), zero - jnp.inf, zero
    out, highest, total = line.through(num_keys, step, first)
    line.store(out_ref, start, out / total[:, None])
    line.store_log_total(total_ref, start, highest + jnp.log2(total))


def _gradients_of_keys(
    line: _Line,
    q_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any, out_grad_ref: Any, total_ref: Any,
    k_grad_ref: Any, v_grad_ref: Any, *q_grad_ref: Any,
) -> None:  # fmt: skip
    """Make the gradients of k and v, and that of q, if it is given and the keys are all."""
    num_queries, num_keys = line.blocks.queries, line.blocks.keys
    k_start = line.block * num_keys
    k, v = (line.load(ref, k_start, num_keys) for ref in (k_ref, v_ref))

    def step(start: Any, carry: tuple[Array, Array]) -> Any:
        k_grad, v_grad = carry
        q, out, out_grad = (
            line.load(r, start, num_queries) for r in (q_ref, out_ref, out_grad_ref)
        )
        query = out, out_grad, line.load_log_total(total_ref, start, num_queries)
        softmax, scores_grad = line.gradients(q, k, v, query, start, k_start)
        for ref in q_grad_ref:
            line.store(ref, start, line.product(scores_grad, k))
        return (
            k_grad + line.product(scores_grad, q, trans_a=True),
            v_grad + line.product(softmax, out_grad, trans_a=True),
        )

    zero = jnp.zeros(k.shape, jnp.float32)
    k_grad, v_grad = line.through(num_queries, step, (zero, zero))
    line.store(k_grad_ref, k_start, k_grad)
    line.store(v_grad_ref, k_start, v_grad)


def _gradient_of_queries(
    line: _Line,
    q_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any, out_grad_ref: Any, total_ref: Any,
    q_grad_ref: Any,
) -> None:  # fmt: skip
    num_queries, num_keys = line.blocks.queries, line.blocks.keys
    start = line.block * num_queries
    q, out, out_grad = (
        line.load(ref, start, num_queries) for ref in (q_ref, out_ref, out_grad_ref)
    )
    query = out, out_grad, line.load_log_total(total_ref, start, num_queries)

    def step(k_start: Any, q_grad: Array) -> Array:
        k, v = (line.load(ref, k_start, num_keys) for ref in (k_ref, v_ref))
        _, scores_grad = line.gradients(q, k, v, query, start, k_start)
        return q_grad + line.product(scores_grad, k)

    line.store(q_grad_ref, start, line.through(num_keys, step, jnp.zeros(q.shape, jnp.float32)))
