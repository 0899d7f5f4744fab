"""The two forms of `retention.formulas`, computed by blocks of scores that are never stored.

A block covers several sequences, or several queries of one, with a bounded number of scores: on CPU
few enough to stay in the cache, on a TPU those that `retention.tpu` keeps on the chip. On an NVIDIA
GPU `retention.gpu` does the same without rearranging the image into sequences.

The backward pass recomputes the scores from q, k and one number per query, L, the logarithm of the
softmax's denominator (as in FlashAttention; Dao et al., 2022, arXiv 2205.14135). With scores s,
softmax p and weights w:

    p = exp(s − L),  dV = wᵀ dO,  ds = w ∘ (dO Vᵀ) − p·(dO · O),  dQ = ds K,  dK = dsᵀ Q

where w is p, or p ∘ D if the decay comes after the softmax. Letters as in `retention.sequences`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from segret_jax.models.kernels import ANY_PLATFORM, Platform, by_image, on_each_device
from segret_jax.models.layers import MapSize, accum_dtype
from segret_jax.models.retention.decay import Decay, LogDecay
from segret_jax.models.retention.formulas import Heads, Values
from segret_jax.models.retention.sequences import Arrays, AxialSequences

CACHED_SCORES = 2**20  # of a block on CPU, over all images: 4 MB


def blocked_retention(
    q: Heads,
    k: Heads,
    v: Values,
    log_decay: LogDecay,
    *,
    decomposed: bool,
    decay: Decay = Decay.ADDITIVE,
    max_scores: int = 2**25,
    platform: Platform = ANY_PLATFORM,
    size: MapSize | None = None,
) -> Values:
    """Compute `decomposed_retention` or `whole_retention` by blocks.

    Scores and softmax are float32 (float64 for float64), whatever the dtype of q, k and v. On
    several GPUs or TPUs the caller says how the images are split, as XLA cannot split a kernel: by
    `jax.shard_map`, or by a mesh in context (`jax.set_mesh`) over all of whose axes they are split,
    in equal numbers.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        log_decay: The negative constant of each head (`head_log_decay`).
        decomposed: Whether to attend along rows, then columns; else over the whole image.
        decay: Whether the decay enters before or after the softmax.
        max_scores: The scores of each image in a block, but at least those of one query. Blocks
            are smaller on CPU, to stay in the cache; the GPU and TPU kernels choose their own.
        platform: The devices (`kernels.platform_of`). GPUs of a compute capability below 8.0
            compute by blocks, without the Triton kernels.
        size: The true height and width of padded arrays; None: those of the arrays.

    Returns:
        The attended values, in the dtype of v.
    """
    # The backward pass is traced after the caller's precision context has ended: pass it along.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]

    true = None if size is None else jnp.stack([jnp.asarray(side, jnp.int32) for side in size])

    def attend(along: str, v: Array) -> Array:
        options = (log_decay, decay, max_scores, platform, precision)
        return _attend(q, k, v, true, AxialSequences(along, q.shape, *options))

    return attend("h", attend("w", v)) if decomposed else attend("hw", v)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q: Array, k: Array, v: Array, size: Array | None, sequences: AxialSequences) -> Array:
    return _forward(q, k, v, size, sequences)[0]


def _forward(
    q: Array, k: Array, v: Array, size: Array | None, sequences: AxialSequences
) -> tuple[Array, Any]:
    def by_blocks(size: Array | None, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        q, k, v = map(sequences.to_sequences, (q, k, v))
        (out, log_total), _ = _by_blocks(_forward_of_block, sequences, size, (q,), (k, v))
        return sequences.to_image(out), log_total

    out, log_total = _by_platform("forward", by_blocks, sequences, size, q, k, v)
    return out, (size, q, k, v, out, log_total)


def _backward(sequences: AxialSequences, saved: Any, out_grad: Array) -> tuple[Any, ...]:
    # The barrier keeps XLA from saving the forward pass's sequences instead of remaking them.
    saved = lax.optimization_barrier(saved)

    def by_blocks(size: Array | None, *saved: Array) -> tuple[Array, ...]:
        *images, log_total, out_grad = saved
        q, k, v, out, out_grad = map(sequences.to_sequences, (*images, out_grad))
        queries = (q, out, out_grad, log_total)
        grads = _by_blocks(_backward_of_block, sequences, size, queries, (k, v))
        pairs = zip((q, k, v), jax.tree.leaves(grads), strict=True)
        return tuple(sequences.to_image(grad.astype(t.dtype)) for t, grad in pairs)

    grads = _by_platform("backward", by_blocks, sequences, *saved, out_grad)
    return *grads, None


_attend.defvjp(_forward, _backward)


def _by_platform(name: str, by_blocks: Callable, sequences: AxialSequences, *arrays: Any) -> Any:
    """Apply `forward` or `backward` of `gpu` on NVIDIA GPUs, if they fit, else `by_blocks`."""
    if sequences.platform.is_cpu:
        return by_blocks(*arrays)
    from segret_jax.models.retention import gpu  # Pallas is not imported where nothing needs it

    _, q, k, v, *_ = arrays
    if not gpu.fits(sequences, q, k, v):
        return by_blocks(*arrays)
    on_gpu = functools.partial(_on_gpu, getattr(gpu, name), sequences)
    return lax.platform_dependent(*arrays, cuda=on_gpu, default=by_blocks)


# As _by_blocks, below.
@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _on_gpu(
    kernel: Callable, sequences: AxialSequences, size: Array | None, *arrays: Array
) -> tuple[Array, ...]:
    image, log_total = by_image(0), by_image(1)
    in_specs = PartitionSpec(), *(image if t.ndim == 5 else log_total for t in arrays)
    out_specs = (image, log_total) if len(arrays) == 3 else (image,) * 3  # forward, backward
    return on_each_device(functools.partial(kernel, sequences), in_specs, out_specs)(size, *arrays)


def _forward_of_block(
    sequences: AxialSequences,
    queries: Arrays,
    keys: Arrays,
    log_decay: Array,
    size: Any,
    start: Any,
) -> tuple[Arrays, Arrays]:
    (q,), (k, v) = queries, keys
    scores, bias = sequences.scores(q, k, log_decay, size, start)
    highest = jnp.max(scores, -1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, -1, keepdims=True)
    if sequences.decay is Decay.POST_SOFTMAX:
        weights *= jnp.exp(bias)
    out = sequences.product("bqk,bkd->bqd", weights.astype(v.dtype), v) / total
    return (out.astype(v.dtype), highest + jnp.log(total)), ()


def _backward_of_block(
    sequences: AxialSequences,
    queries: Arrays,
    keys: Arrays,
    log_decay: Array,
    size: Any,
    start: Any,
) -> tuple[Arrays, Arrays]:
    (q, out, out_grad, log_total), (k, v) = queries, keys
    scores, bias = sequences.scores(q, k, log_decay, size, start)
    softmax = jnp.exp(scores - log_total)
    weights = softmax * jnp.exp(bias) if sequences.decay is Decay.POST_SOFTMAX else softmax
    weights_grad = sequences.product("bqd,bkd->bqk", out_grad, v)
    mean = jnp.sum(out_grad.astype(scores.dtype) * out, -1, keepdims=True)
    scores_grad = (weights * weights_grad - softmax * mean).astype(q.dtype)
    q_grad = sequences.product("bqk,bkd->bqd", scores_grad, k)
    k_grad = sequences.product("bqk,bqd->bkd", scores_grad, q)
    v_grad = sequences.product("bqk,bqd->bkd", weights.astype(v.dtype), out_grad)
    return (q_grad,), (k_grad, v_grad)


# Inlined into its caller, but traced once for all layers of one shape.
@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _by_blocks(
    of_block: Callable,
    sequences: AxialSequences,
    size: Array | None,
    queries: Arrays,
    keys: Arrays,
) -> tuple[Arrays, Arrays]:
    """Apply `of_block(sequences, queries, keys, log_decay, size, start)` to some queries at a time.

    The queries of a call are of one sequence. It returns arrays for its queries, and arrays for the
    keys of the sequence, which are summed over its blocks.
    """
    count, b, length, _ = queries[0].shape
    log_decay = jnp.tile(jnp.asarray(sequences.log_decay), count // len(sequences.log_decay))
    log_decay = log_decay.astype(accum_dtype(queries[0].dtype))

    def at_most(scores: int, queries: Arrays, keys: Arrays) -> Any:
        def of_sequence(sequence: tuple[Any, Any, Array]) -> Any:
            most = max(1, scores // length)
            return _by_queries(functools.partial(of_block, sequences), *sequence, size, most)

        per_block = scores // length**2
        if per_block >= count:
            return jax.vmap(of_sequence)((queries, keys, log_decay))
        return lax.map(of_sequence, (queries, keys, log_decay), batch_size=max(1, per_block))

    cpu = functools.partial(at_most, min(sequences.max_scores, CACHED_SCORES // b))
    if sequences.platform.is_cpu:
        return cpu(queries, keys)
    from segret_jax.models.retention import tpu

    def on_tpu(queries: Arrays, keys: Arrays) -> Any:
        precision = "highest" if sequences.full_precision(queries[0].dtype) else "default"
        known = dataclasses.replace(sequences, precision=precision)
        kernel = functools.partial(tpu.by_kernel, functools.partial(of_block, known))
        images, whole = by_image(1), PartitionSpec()
        run = on_each_device(kernel, (images, images, whole, whole), images)
        return run(queries, keys, log_decay, size)

    others = functools.partial(at_most, sequences.max_scores)
    kernels = on_tpu if tpu.fits(queries, keys) else others
    return lax.platform_dependent(queries, keys, cpu=cpu, tpu=kernels, default=others)


def _by_queries(
    of_block: Callable, queries: Any, keys: Any, log_decay: Array, size: Any, block_size: int
) -> Any:
    b, length, _ = queries[0].shape
    if block_size >= length:
        return of_block(queries, keys, log_decay, size, 0)
    num_blocks = -(-length // block_size)
    block_size = -(-length // num_blocks)

    def split(t: Array) -> Array:
        t = jnp.pad(t, ((0, 0), (0, num_blocks * block_size - length), (0, 0)))
        return jnp.moveaxis(t.reshape(b, num_blocks, block_size, -1), 1, 0)

    def concatenate(t: Array) -> Array:
        return jnp.moveaxis(t, 0, 1).reshape(b, num_blocks * block_size, -1)[:, :length]

    def add(total: Any, block: Any) -> Any:
        for_queries, for_keys = of_block(block[0], keys, log_decay, size, block[1])
        return jax.tree.map(jnp.add, total, for_keys), for_queries

    blocks = tuple(map(split, queries)), jnp.arange(num_blocks, dtype=jnp.int32) * block_size
    first = tuple(t[0] for t in blocks[0])
    _, sums = jax.eval_shape(of_block, first, keys, log_decay, size, 0)
    zero = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), sums)
    for_keys, for_queries = lax.scan(add, zero, blocks)
    return jax.tree.map(concatenate, for_queries), for_keys
