"""The two forms of `retention.formulas`, computed by blocks whose scores are used up at once.

A block is of several lines, or of several queries of one, with a bounded number of scores: on CPU
so few that they stay in the cache, on a TPU those that `retention.tpu` keeps on the chip. On
an NVIDIA GPU `retention.gpu` does the same without laying images out by line.

No scores are kept for the backward pass, which makes them again from q, k and one number per query,
L, the logarithm of the softmax's denominator (as in FlashAttention; Dao et al., 2022, arXiv
2205.14135). With scores s, softmax p and weights w:

    p = exp(s − L),  dV = wᵀ dO,  ds = w ∘ (dO Vᵀ) − p·(dO · O),  dQ = ds K,  dK = dsᵀ Q

where w is p, or p ∘ D if the decay comes after the softmax.

A line is a row, a column or the whole image as one head sees it: there are g of them. Products
have the letters b for images, q and k for the queries and keys of a line (both l long), d for the
head width.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from segret_jax.models.layers import accum_dtype
from segret_jax.models.retention import gpu as retention_gpu
from segret_jax.models.retention.decay import Decay, LogDecay
from segret_jax.models.retention.tpu import Arrays, by_kernel, fits

CACHED_SCORES = 2**20  # of a block on CPU, of all images: 4 MB


def blocked_retention(
    q: Float[Array, "b h w n d"],
    k: Float[Array, "b h w n d"],
    v: Float[Array, "b h w n d"],
    log_decay: LogDecay,
    *,
    decomposed: bool,
    decay: Decay = Decay.ADDITIVE,
    max_scores: int = 2**25,
    capability: float | None = None,
) -> Float[Array, "b h w n d"]:
    """Return `decomposed_retention` or `whole_retention`, by blocks.

    A block has at most `max_scores` scores of each image, or those of one query. On CPU it is
    smaller, so that it stays in the cache; on GPU and TPU the kernels, where they fit, choose.
    GPUs of a compute `capability` that is too low for the kernels (`kernels.platform_of`)
    use blocks; None stands for one that is high enough.
    Scores and softmax are float32 (float64 for float64), whatever the dtype of q, k and v.

    On several GPUs or TPUs the caller says how the images are split, as XLA cannot split a kernel:
    by `jax.shard_map`, or by a mesh in context (`jax.set_mesh`), over all of whose axes they are,
    in equal numbers.
    """
    # The backward pass is traced after the caller's precision context has ended: take it along.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]

    def attend(along: str, v: Array) -> Array:
        lines = AxialSequences(along, q.shape, log_decay, decay, max_scores, capability, precision)
        return _attend(q, k, v, lines)

    return attend("h", attend("w", v)) if decomposed else attend("hw", v)


@dataclasses.dataclass(frozen=True)
class AxialSequences:
    """How an image is divided: into lines along w (rows), h (columns) or hw (all of it)."""

    along: str
    shape: tuple[int, ...]  # [b h w n d]
    log_decay: LogDecay
    decay: Decay
    max_scores: int
    capability: float | None
    precision: str | None

    @property
    def order(self) -> str:
        across = "".join(axis for axis in "hwn" if axis not in self.along)
        return f"{across}b{self.along}d"

    def sizes(self, axes: str) -> tuple[int, ...]:
        size = dict(zip("bhwnd", self.shape, strict=True))
        return tuple(size[axis] for axis in axes)

    def to_sequences(self, x: Float[Array, "b h w n d"]) -> Float[Array, "g b l d"]:
        b, d = self.sizes("bd")
        x = jnp.einsum(f"bhwnd->{self.order}", x)
        return x.reshape(-1, b, math.prod(self.sizes(self.along)), d)

    def to_image(self, lines: Float[Array, "g b l d"]) -> Float[Array, "b h w n d"]:
        return jnp.einsum(f"{self.order}->bhwnd", lines.reshape(self.sizes(self.order)))

    def log_decays(self, num_lines: int) -> Float[Array, " g"]:
        return jnp.tile(jnp.asarray(self.log_decay), num_lines // len(self.log_decay))

    def full_precision(self, dtype: jnp.dtype) -> bool:
        """Tell whether a kernel's products are to be of full precision.

        Kernels have no "high", and for bfloat16, whose products are exact, no "highest" either.
        """
        names = ("high", "highest", "tensorfloat32", "float32")
        return self.precision in names and dtype == jnp.float32

    def product(self, letters: str, x: Array, y: Array) -> Array:
        dtype = accum_dtype(x.dtype)
        return jnp.einsum(letters, x, y, precision=self.precision, preferred_element_type=dtype)

    def scores(
        self, q: Float[Array, "b q d"], k: Float[Array, "b k d"], log_decay: Array, start: Any
    ) -> tuple[Float[Array, "b q k"], Float[Array, "q k"]]:
        """Return the scores of a line's queries from place `start` on, and the logarithm of D."""
        own = self._places(start + lax.broadcasted_iota(jnp.int32, (q.shape[1], 1), 0))
        others = self._places(lax.broadcasted_iota(jnp.int32, (1, k.shape[1]), 1))
        distance = sum(jnp.abs(a - b) for a, b in zip(own, others, strict=True))
        bias = log_decay * distance
        scores = self.product("bqd,bkd->bqk", q, k)
        return scores + bias if self.decay is Decay.ADDITIVE else scores, bias

    def _places(self, index: Array) -> tuple[Array, ...]:
        if len(self.along) == 1:
            return (index,)
        width = np.int32(self.sizes("w")[0])
        return lax.div(index, width), lax.rem(index, width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(q: Array, k: Array, v: Array, lines: AxialSequences) -> Array:
    return _forward(q, k, v, lines)[0]


def _forward(q: Array, k: Array, v: Array, lines: AxialSequences) -> tuple[Array, Any]:
    def by_blocks(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        q, k, v = (lines.to_sequences(t) for t in (q, k, v))
        (out, log_total), _ = _by_blocks(_forward_of_block, lines, (q,), (k, v))
        return lines.to_image(out), log_total

    if retention_gpu.fits(q, k, v, lines.decay, lines.capability):
        on_gpu = functools.partial(_forward_on_gpu, lines)
        out, log_total = lax.platform_dependent(q, k, v, cuda=on_gpu, default=by_blocks)
    else:
        out, log_total = by_blocks(q, k, v)
    return out, (q, k, v, out, log_total)


# As _by_blocks, below.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _forward_on_gpu(lines: AxialSequences, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    def forward(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        out, log_total = retention_gpu.forward(
            q,
            k,
            v,
            lines.log_decay,
            along=lines.along,
            full_precision=lines.full_precision(q.dtype),
        )
        return out, log_total.reshape(-1, *log_total.shape[-2:], 1)

    image, line = _by_image(0), _by_image(1)
    return _on_each_device(forward, (image,) * 3, (image, line))(q, k, v)


def _forward_of_block(
    lines: AxialSequences, queries: Arrays, keys: Arrays, log_decay: Array, start: Any
) -> tuple[Arrays, Arrays]:
    (q,), (k, v) = queries, keys
    scores, bias = lines.scores(q, k, log_decay, start)
    highest = jnp.max(scores, -1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, -1, keepdims=True)
    if lines.decay is Decay.POST_SOFTMAX:
        weights *= jnp.exp(bias)
    out = lines.product("bqk,bkd->bqd", weights.astype(v.dtype), v) / total
    return (out.astype(v.dtype), highest + jnp.log(total)), ()


def _backward(lines: AxialSequences, saved: Any, out_grad: Array) -> tuple[Array, Array, Array]:
    # The barrier keeps XLA from saving the forward pass's lines instead of making them again.
    saved = lax.optimization_barrier(saved)

    def by_blocks(*saved: Array) -> tuple[Array, Array, Array]:
        *images, log_total, out_grad = saved
        q, k, v, out, out_grad = (lines.to_sequences(t) for t in (*images, out_grad))
        queries = (q, out, out_grad, log_total)
        (q_grad,), (k_grad, v_grad) = _by_blocks(_backward_of_block, lines, queries, (k, v))
        return (
            lines.to_image(q_grad.astype(q.dtype)),
            lines.to_image(k_grad.astype(k.dtype)),
            lines.to_image(v_grad.astype(v.dtype)),
        )

    q, k, v, *_ = saved
    if retention_gpu.fits(q, k, v, lines.decay, lines.capability):
        on_gpu = functools.partial(_backward_on_gpu, lines)
        return lax.platform_dependent(*saved, out_grad, cuda=on_gpu, default=by_blocks)
    return by_blocks(*saved, out_grad)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _backward_on_gpu(lines: AxialSequences, *saved: Array) -> tuple[Array, Array, Array]:
    def backward(*saved: Array) -> tuple[Array, Array, Array]:
        q, k, v, out, log_total, out_grad = saved
        _, b, length, _ = log_total.shape
        return retention_gpu.backward(
            q, k, v, out, log_total.reshape(-1, q.shape[3], b, length), out_grad,
            lines.log_decay, along=lines.along, full_precision=lines.full_precision(q.dtype),
        )  # fmt: skip

    image, line = _by_image(0), _by_image(1)
    return _on_each_device(backward, (*[image] * 4, line, image), (image,) * 3)(*saved)


def _backward_of_block(
    lines: AxialSequences, queries: Arrays, keys: Arrays, log_decay: Array, start: Any
) -> tuple[Arrays, Arrays]:
    (q, out, out_grad, log_total), (k, v) = queries, keys
    scores, bias = lines.scores(q, k, log_decay, start)
    softmax = jnp.exp(scores - log_total)
    weights = softmax * jnp.exp(bias) if lines.decay is Decay.POST_SOFTMAX else softmax
    weights_grad = lines.product("bqd,bkd->bqk", out_grad, v)
    mean = jnp.sum(out_grad.astype(scores.dtype) * out, -1, keepdims=True)
    scores_grad = (weights * weights_grad - softmax * mean).astype(q.dtype)
    q_grad = lines.product("bqk,bkd->bqd", scores_grad, k)
    k_grad = lines.product("bqk,bqd->bkd", scores_grad, q)
    v_grad = lines.product("bqk,bqd->bkd", weights.astype(v.dtype), out_grad)
    return (q_grad,), (k_grad, v_grad)


_attend.defvjp(_forward, _backward)


# Compiled in one with its caller; traced once for all layers of one shape.
@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _by_blocks(
    of_block: Callable, lines: AxialSequences, queries: Arrays, keys: Arrays
) -> tuple[Arrays, Arrays]:
    """Apply `of_block(lines, queries, keys, log_decay, start)` to all queries, some at a time.

    Its queries are of one line. It returns what belongs to them, and what belongs to the line's
    keys: parts of a sum over blocks.
    """
    num_lines, b, length, _ = queries[0].shape
    log_decay = lines.log_decays(num_lines).astype(accum_dtype(queries[0].dtype))

    def at_most(scores: int, queries: Arrays, keys: Arrays) -> Any:
        def of_line(line: tuple[Any, Any, Array]) -> Any:
            queries, keys, log_decay = line
            most = max(1, scores // length)
            return _by_queries(functools.partial(of_block, lines), queries, keys, log_decay, most)

        lines_per_block = scores // length**2
        if lines_per_block >= num_lines:
            return jax.vmap(of_line)((queries, keys, log_decay))
        return lax.map(of_line, (queries, keys, log_decay), batch_size=max(1, lines_per_block))

    def on_tpu(queries: Arrays, keys: Arrays) -> Any:
        precision = "highest" if lines.full_precision(queries[0].dtype) else "default"
        known = dataclasses.replace(lines, precision=precision)
        kernel = functools.partial(by_kernel, functools.partial(of_block, known))
        line = _by_image(1)
        run = _on_each_device(kernel, (line, line, PartitionSpec()), line)
        return run(queries, keys, log_decay)

    cpu = functools.partial(at_most, min(lines.max_scores, CACHED_SCORES // b))
    others = functools.partial(at_most, lines.max_scores)
    tpu = on_tpu if fits(queries, keys) else others
    return lax.platform_dependent(queries, keys, cpu=cpu, tpu=tpu, default=others)


def _on_each_device(kernel: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """Run a kernel, which XLA cannot split, on each device of a mesh in context with its images."""
    if not _split_axes():
        return kernel
    # A kernel does not declare over which axes its results vary.
    return jax.shard_map(kernel, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _by_image(axis: int) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, _split_axes())


def _split_axes() -> tuple[str, ...]:
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.axis_names if mesh.are_all_axes_auto and not mesh.empty else ()


def _by_queries(
    of_block: Callable, queries: Any, keys: Any, log_decay: Array, block_size: int
) -> Any:
    b, length, _ = queries[0].shape
    if block_size >= length:
        return of_block(queries, keys, log_decay, 0)
    num_blocks = -(-length // block_size)
    size = -(-length // num_blocks)

    def divided(t: Array) -> Array:
        t = jnp.pad(t, ((0, 0), (0, num_blocks * size - length), (0, 0)))
        return jnp.moveaxis(t.reshape(b, num_blocks, size, -1), 1, 0)

    def together(t: Array) -> Array:
        return jnp.moveaxis(t, 0, 1).reshape(b, num_blocks * size, -1)[:, :length]

    def add(total: Any, block: Any) -> Any:
        for_queries, for_keys = of_block(block[0], keys, log_decay, block[1])
        return jax.tree.map(jnp.add, total, for_keys), for_queries

    blocks = tuple(map(divided, queries)), jnp.arange(num_blocks, dtype=jnp.int32) * size
    first = tuple(t[0] for t in blocks[0])
    _, sums = jax.eval_shape(of_block, first, keys, log_decay, 0)
    zero = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), sums)
    for_keys, for_queries = lax.scan(add, zero, blocks)
    return jax.tree.map(together, for_queries), for_keys
