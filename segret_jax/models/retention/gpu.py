"""Retention on an NVIDIA GPU: Pallas kernels whose scores stay on the chip.

A program has a block of queries (or of keys) of one sequence, as one head of one image sees it, and
goes through the sequence's keys (or queries) block by block, as FlashAttention-2 does (Dao, 2023,
arXiv 2307.08691). It reads q, k and v where they are in the image.

Scores and logarithms are to the base 2 inside, since the chip computes powers of 2; the logarithm
of the softmax's denominator is stored to the base e. Letters as in `retention.sequences`, and a for
the rows or columns of an image, or 1 for the whole of it.
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
from jaxtyping import Array, Float, Int32

from segret_jax.models.kernels import TRITON_CAPABILITY
from segret_jax.models.retention.decay import Decay
from segret_jax.models.retention.formulas import Heads
from segret_jax.models.retention.sequences import AxialSequences

LOG2_E = math.log2(math.e)
LONGEST_IN_ONE_BLOCK = 128  # keys of a sequence that fit into one block
TrueSize = Int32[Array, "2"] | None
WIDTHS = (16, 32)  # of heads: SegRet's; a product needs a power of 2 from 16 on


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Block sizes (powers of 2 from 16 on) and options of the compiler."""

    queries: int
    keys: int
    warps: int
    stages: int = 2


def fits(sequences: AxialSequences, q: Array, k: Array, v: Array) -> bool:
    """Return whether the Triton kernels support these inputs.

    Requires additive decay, one common dtype other than float64, one head width of 16 or 32, and
    compute capability 8.0 or newer; None stands for an unknown one and passes.
    """
    platform, has_width = sequences.platform, q.shape[-1] in WIDTHS
    has_triton = platform.capability is None or platform.capability >= TRITON_CAPABILITY
    is_of_one_dtype = q.dtype == k.dtype == v.dtype != jnp.float64
    is_alike = is_of_one_dtype and q.shape == v.shape
    has_triton = has_triton and not platform.is_cpu
    return has_triton and sequences.decay is Decay.ADDITIVE and has_width and is_alike


def forward(
    sequences: AxialSequences,
    size: TrueSize,
    q: Heads,
    k: Heads,
    v: Heads,
    *,
    interpret: bool = False,
) -> tuple[Heads, Float[Array, "g b l 1"]]:
    """Return the output and L, the logarithm of the softmax's denominator.

    `size` is the true height and width of padded arrays, or None.

    Products of float32 are TF32, or with `sequences.full_precision` three of them, which is right
    to 1e-6. `interpret` runs the kernels anywhere, slowly.
    """
    length, num_keys = sequences.length, _power_of_2(sequences.length)
    blocks = _Blocks(64, 64, warps=4)
    if length <= LONGEST_IN_ONE_BLOCK:
        blocks = _Blocks(min(num_keys, 64), num_keys, warps=4 if num_keys > 32 else 2)
    b, _, _, n, _ = q.shape
    log_total = jax.ShapeDtypeStruct((_count(sequences), n, b, length), jnp.float32)
    results = _like_images(sequences, q, 1), log_total
    (out,), log_total = _call(
        _forward, sequences, blocks, blocks.queries, size, ((q, k, v),), results, interpret
    )
    return out.reshape(q.shape), log_total.reshape(-1, b, length, 1)


def backward(
    sequences: AxialSequences,
    size: TrueSize,
    q: Heads,
    k: Heads,
    v: Heads,
    out: Heads,
    log_total: Float[Array, "g b l 1"],
    out_grad: Heads,
    *,
    interpret: bool = False,
) -> tuple[Heads, Heads, Heads]:
    """Return the gradients of q, k and v; see `forward`."""
    length = sequences.length
    log_total = log_total.reshape(-1, q.shape[3], q.shape[0], length)
    inputs = (q, k, v, out, out_grad), log_total

    def gradients(kernel: Callable, blocks: _Blocks, block_size: int, num_results: int) -> Any:
        results = (_like_images(sequences, q, num_results),)
        return _call(kernel, sequences, blocks, block_size, size, inputs, results, interpret)[0]

    if length <= LONGEST_IN_ONE_BLOCK:
        of_all = _power_of_2(length)
        blocks = _Blocks(min(of_all, 64), of_all, warps=2)
        grads = gradients(_gradients_of_keys, blocks, of_all, 3)
    else:
        of_keys = gradients(_gradients_of_keys, _Blocks(64, 128, warps=4, stages=3), 128, 2)
        of_queries = gradients(_gradient_of_queries, _Blocks(64, 64, warps=4, stages=3), 64, 1)
        grads = (*of_keys, *of_queries)
    k_grad, v_grad, q_grad = (t.reshape(q.shape) for t in grads)
    return q_grad, k_grad, v_grad


def _power_of_2(length: int) -> int:
    return max(16, pl.next_power_of_2(length))


def _count(sequences: AxialSequences) -> int:
    """Return the number of sequences of one image and head."""
    _, h, w, _, _ = sequences.shape
    return h * w // sequences.length


def _view(sequences: AxialSequences, x: Array) -> Array:
    """Return an image whose rows or columns are the sequences."""
    b, h, w, n, d = x.shape  # of this device's images
    return x.reshape(b, 1, h * w, n, d) if sequences.along == "hw" else x


def _like_images(sequences: AxialSequences, x: Array, count: int) -> tuple[Any, ...]:
    return (jax.eval_shape(lambda x: _view(sequences, x), x),) * count


def _call(
    kernel: Callable,
    sequences: AxialSequences,
    blocks: _Blocks,
    block_size: int,
    size: TrueSize,
    inputs: tuple[Any, ...],
    results: tuple[Any, ...],
    interpret: bool,
) -> Any:
    """Run `kernel(program, *refs)` for each block of `block_size` queries or keys.

    The refs are of whole inputs and results.
    """
    images, *others = inputs
    num_blocks = pl.cdiv(sequences.length, block_size)
    full_precision = sequences.full_precision(images[0].dtype)

    def of_block(scalars: Any, *refs: Any) -> None:
        log_decay, *sizes = scalars
        head, index, block, image = map(pl.program_id, range(4))
        true = (sizes[0][0], sizes[0][1]) if sizes else None
        position = (log_decay[head], true, head, index, block, image)
        kernel(_Program(sequences, blocks, full_precision and not interpret, *position), *refs)

    log_decay = jnp.asarray(sequences.log_decay, jnp.float32) * LOG2_E
    return pl.pallas_call(
        of_block,
        # Heads vary fastest: they are contiguous in memory.
        grid=(sequences.shape[3], _count(sequences), num_blocks, images[0].shape[0]),
        out_shape=results,
        compiler_params=triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )(
        (log_decay,) if size is None else (log_decay, size),
        tuple(_view(sequences, x) for x in images),
        *others,
    )


@dataclasses.dataclass(frozen=True)
class _Program:
    """One program of a kernel: the sequence and the block of it that are its own."""

    sequences: AxialSequences
    blocks: _Blocks
    full_precision: bool
    log_decay: Any  # to the base 2
    size: Any  # the true height and width of padded images, or None
    head: Any
    index: Any  # of the sequence
    block: Any
    image: Any

    def load(self, ref: Any, start: Any, size: int) -> Array:
        """Read [size, d] of an image, with zeros beyond the end of the sequence."""
        return triton.load(self._at(ref, start, size), **self._mask(start, size, 2, other=0.0))

    def load_keys(self, images: Any, start: Any) -> tuple[Array, Array]:
        _, k_ref, v_ref, *_ = images
        k, v = (self.load(ref, start, self.blocks.keys) for ref in (k_ref, v_ref))
        return k, v

    def load_queries(self, images: Any, total_ref: Any, start: Any) -> tuple[Array, ...]:
        """Read q, the output, its gradient and L; L is ∞ beyond the end: there softmax is 0."""
        q_ref, _, _, out_ref, out_grad_ref = images
        size = self.blocks.queries
        arrays = [self.load(ref, start, size) for ref in (q_ref, out_ref, out_grad_ref)]
        at = total_ref.at[self.index, self.head, self.image, pl.ds(start, size)]
        log_total = LOG2_E * triton.load(at, **self._mask(start, size, 1, other=jnp.inf))
        return (*arrays, log_total)

    def store(self, ref: Any, start: Any, value: Array) -> None:
        at = self._at(ref, start, len(value))
        triton.store(at, value.astype(ref.dtype), **self._mask(start, len(value), 2))

    def store_log_total(self, ref: Any, start: Any, value: Array) -> None:
        at = ref.at[self.index, self.head, self.image, pl.ds(start, len(value))]
        triton.store(at, value / LOG2_E, **self._mask(start, len(value), 1))

    def _at(self, ref: Any, start: Any, size: int) -> Any:
        rows, columns = self.index, pl.ds(start, size)
        if self.sequences.along == "h":
            rows, columns = columns, rows
        return ref.at[self.image, rows, columns, self.head, :]

    def _mask(self, start: Any, size: int, ndim: int, **other: float) -> dict[str, Any]:
        if self.sequences.length % size == 0:
            return {}
        inside = start + jnp.arange(size) < self.sequences.length
        return {"mask": inside.reshape(-1, *[1] * (ndim - 1)), **other}

    def product(self, a: Array, b: Array, **transposed: bool) -> Array:
        precision: Any = lax.Precision.DEFAULT  # not that of a context, which may have ended
        if self.full_precision:
            precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        return triton.dot(a, b, precision=precision, **transposed)

    def scores(self, q: Array, k: Array, q_start: Any, k_start: Any) -> Float[Array, "q k"]:
        of_queries, of_keys = self._coordinates(q_start, len(q)), self._coordinates(k_start, len(k))
        pairs = zip(of_queries, of_keys, strict=True)
        distance = sum(jnp.abs(a[:, None] - b[None]) for a, b in pairs)
        scores = LOG2_E * self.product(q, k, trans_b=True) + self.log_decay * distance
        if self.sequences.length % len(k):
            is_inside = k_start + jnp.arange(len(k)) < self.sequences.length
            scores = jnp.where(is_inside[None], scores, -jnp.inf)
        if self.size is not None:
            of_keys = k_start + jnp.arange(len(k), dtype=jnp.int32)
            is_inside = self.sequences.is_inside(of_keys, self.size)
            scores = jnp.where(is_inside[None], scores, -jnp.inf)
        return scores

    def _coordinates(self, start: Any, size: int) -> list[Array]:
        index = start + jnp.arange(size, dtype=jnp.int32)
        return [one.astype(jnp.float32) for one in self.sequences.coordinates(index)]

    def gradients(
        self, queries: tuple[Array, ...], k: Array, v: Array, q_start: Any, k_start: Any
    ) -> tuple[Float[Array, "q k"], Float[Array, "q k"]]:
        """Return the softmax and the gradient of the scores."""
        q, out, out_grad, log_total = queries
        softmax = jnp.exp2(self.scores(q, k, q_start, k_start) - log_total[:, None])
        softmax_grad = self.product(out_grad, v, trans_b=True)
        mean = jnp.sum(out_grad.astype(jnp.float32) * out, -1, keepdims=True)
        return softmax.astype(v.dtype), (softmax * (softmax_grad - mean)).astype(q.dtype)

    def fold(self, size: int, step: Callable, carry: Any) -> Any:
        """Apply `step(start, carry)` to each block of `size` queries, or keys, of the sequence."""
        num_blocks = pl.cdiv(self.sequences.length, size)
        if num_blocks == 1:
            return step(0, carry)
        return lax.fori_loop(0, num_blocks, lambda i, carry: step(i * size, carry), carry)


def _forward(program: _Program, images: Any, out_refs: Any, total_ref: Any) -> None:
    num_queries = program.blocks.queries
    start = program.block * num_queries
    q = program.load(images[0], start, num_queries)

    def step(k_start: Any, carry: tuple[Array, Array, Array]) -> Any:
        out, highest, total = carry
        k, v = program.load_keys(images, k_start)
        scores = program.scores(q, k, start, k_start)
        new = jnp.maximum(highest, jnp.max(scores, -1))
        weights, shrink = jnp.exp2(scores - new[:, None]), jnp.exp2(highest - new)
        out = shrink[:, None] * out + program.product(weights.astype(v.dtype), v)
        return out, new, shrink * total + jnp.sum(weights, -1)

    zero = jnp.zeros(num_queries, jnp.float32)
    first = jnp.zeros(q.shape, jnp.float32), zero - jnp.inf, zero
    out, highest, total = program.fold(program.blocks.keys, step, first)
    program.store(out_refs[0], start, out / total[:, None])
    program.store_log_total(total_ref, start, highest + jnp.log2(total))


def _gradients_of_keys(program: _Program, images: Any, total_ref: Any, grad_refs: Any) -> None:
    """Compute the gradients of k and v; that of q too, if it is given and a block has all keys."""
    k_grad_ref, v_grad_ref, *q_grad_ref = grad_refs
    k_start = program.block * program.blocks.keys
    k, v = program.load_keys(images, k_start)

    def step(start: Any, carry: tuple[Array, Array]) -> Any:
        k_grad, v_grad = carry
        queries = program.load_queries(images, total_ref, start)
        q, _, out_grad, _ = queries
        softmax, scores_grad = program.gradients(queries, k, v, start, k_start)
        for ref in q_grad_ref:
            program.store(ref, start, program.product(scores_grad, k))
        return (
            k_grad + program.product(scores_grad, q, trans_a=True),
            v_grad + program.product(softmax, out_grad, trans_a=True),
        )

    zero = jnp.zeros(k.shape, jnp.float32)
    k_grad, v_grad = program.fold(program.blocks.queries, step, (zero, zero))
    program.store(k_grad_ref, k_start, k_grad)
    program.store(v_grad_ref, k_start, v_grad)


def _gradient_of_queries(program: _Program, images: Any, total_ref: Any, grad_refs: Any) -> None:
    start = program.block * program.blocks.queries
    queries = program.load_queries(images, total_ref, start)

    def step(k_start: Any, q_grad: Array) -> Array:
        k, v = program.load_keys(images, k_start)
        _, scores_grad = program.gradients(queries, k, v, start, k_start)
        return q_grad + program.product(scores_grad, k)

    zero = jnp.zeros(queries[0].shape, jnp.float32)
    program.store(grad_refs[0], start, program.fold(program.blocks.keys, step, zero))
