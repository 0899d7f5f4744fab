"""The selective scan on a TPU: Pallas kernels that hold Δ and the states on the chip.

A kernel computes one direction, an image after the other, by chunks of up to 128 tokens in the
order of the sequence; the state goes from chunk to chunk in a scratch buffer. Inside of a chunk the
maps h ↦ a h + b are composed in log₂(128) steps. The backward pass goes through the chunks the
other way, with the state before each as the forward pass has stored it, and ν_t = a_t λ_t in the
buffer, where λ = ∂loss/∂h (formulas as in `selective_scan.gpu`).

For sequences 1 and 3 XLA transposes the image. In memory the projections are [b, p, l]: a TPU pads
the last axis to a multiple of 128. Each direction adds to the array of those before it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from segret_jax.models.layers import FeatureMap, MapSize
from segret_jax.models.selective_scan.formulas import Projections, ScanWeights, inside
from segret_jax.models.selective_scan.softplus import softplus

CHUNK = 128  # tokens: of an axis that is padded to a multiple of this
MAX_CHANNELS = 2048  # of which a chunk's arrays fit into the 16 MB of a v5e, as compiled

States = Float[Array, "b n 1 c"]  # before each chunk


def fits(x: FeatureMap, projections: Projections) -> bool:
    """Return whether the kernels support these inputs.

    Requires tokens in float32 or bfloat16, projections in float32, and up to 2048 channels.
    """
    has_dtypes = x.dtype in (jnp.float32, jnp.bfloat16) and projections.dtype == jnp.float32
    return has_dtypes and x.shape[-1] <= MAX_CHANNELS


def forward(
    x: FeatureMap,
    projections: Projections,
    weights: ScanWeights,
    size: MapSize,
    *,
    interpret: bool = False,
) -> tuple[FeatureMap, tuple[States, ...]]:
    """Return the sum of the four scans, in float32, and the states before the chunks of each.

    Arguments as of `formulas.selective_scan_2d`; `interpret` runs the kernels anywhere, slowly.
    """
    totals: dict[int, tuple[Array, ...]] = {0: (), 1: ()}
    states = []
    for direction in range(4):
        sequence = _Sequence(direction, x.shape, projections.shape[-1])
        tokens = sequence.tokens
        inputs = sequence.inputs(x, projections, weights, size)
        total = tuple((t, tokens) for t in totals[direction % 2])
        results = (sequence.like_tokens, tokens), (sequence.like_states, sequence.states)
        y, before = _call(
            _outputs, sequence, (*inputs, *total), results, aliases={4: 0}, interpret=interpret
        )
        totals[direction % 2] = (y,)
        states.append(before)
    return _sum_to_image(x.shape, totals), tuple(states)


def backward(
    x: FeatureMap,
    projections: Projections,
    weights: ScanWeights,
    size: MapSize,
    states: tuple[States, ...],
    y_grad: FeatureMap,
    *,
    interpret: bool = False,
) -> tuple[FeatureMap, Projections, ScanWeights]:
    """Return the gradients of x, the projections and the weights; see `forward`."""
    totals: dict[int, tuple[Array, ...]] = {0: (), 1: ()}
    of_projections, of_weights = [], []
    for direction in range(4):
        sequence = _Sequence(direction, x.shape, projections.shape[-1], is_backward=True)
        tokens, rank = sequence.tokens, sequence.rank
        inputs = sequence.inputs(x, projections, weights, size)
        others = (sequence.to_tokens(y_grad), tokens), (states[direction], sequence.states)
        total = tuple((t, tokens) for t in totals[direction % 2])
        results = (
            (sequence.like_tokens, tokens),
            *((jax.ShapeDtypeStruct(t.shape, jnp.float32), spec) for t, spec in inputs[1:]),
        )
        x_grad, rows_grad, kernel_grad, vectors_grad = _call(
            _gradients, sequence, (*inputs, *others, *total), results, aliases={6: 0},
            interpret=interpret,
        )  # fmt: skip
        totals[direction % 2] = (x_grad,)
        of_projections.append(sequence.to_image(jnp.swapaxes(rows_grad, 1, 2)[..., : rank + 2]))
        bias, rate, skip = vectors_grad
        rate *= -jnp.exp(weights.a_log[direction])
        of_weights.append(ScanWeights(kernel_grad[:rank], bias, rate, skip))
    weights_grad = jax.tree.map(lambda *grads: jnp.stack(grads), *of_weights)
    x_grad = _sum_to_image(x.shape, totals).astype(x.dtype)
    return x_grad, jnp.stack(of_projections, 3), weights_grad


def _sum_to_image(shape: tuple[int, ...], totals: dict[int, tuple[Array, ...]]) -> FeatureMap:
    images = [_Sequence(axis, shape, 2).to_image(total) for axis, (total,) in totals.items()]
    return images[0] + images[1]


@dataclasses.dataclass(frozen=True)
class _Sequence:
    """One of the sequences: its arrays, and how a kernel goes through them."""

    direction: int
    shape: tuple[int, ...]  # b h w c
    num_projections: int
    is_backward: bool = False

    @property
    def rank(self) -> int:
        return self.num_projections - 2

    @property
    def is_reverse(self) -> bool:
        return self.direction > 1

    @property
    def chunk(self) -> int:
        return min(CHUNK, pl.cdiv(self.shape[1] * self.shape[2], 8) * 8)

    @property
    def num_chunks(self) -> int:
        return pl.cdiv(self.shape[1] * self.shape[2], self.chunk)

    @property
    def num_rows(self) -> int:
        """The projections and whether a token is inside the true image, a multiple of 8."""
        return pl.cdiv(self.num_projections + 1, 8) * 8

    @property
    def like_tokens(self) -> jax.ShapeDtypeStruct:
        shape = self.shape[0], self.num_chunks * self.chunk, self.shape[3]
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    @property
    def like_states(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.shape[0], self.num_chunks, 1, self.shape[3]), jnp.float32)

    @property
    def tokens(self) -> pl.BlockSpec:
        return pl.BlockSpec((1, self.chunk, self.shape[3]), lambda b, i: (b, self.position(i), 0))

    @property
    def rows(self) -> pl.BlockSpec:
        return pl.BlockSpec((1, self.num_rows, self.chunk), lambda b, i: (b, 0, self.position(i)))

    @property
    def states(self) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, 1, self.shape[3]), lambda b, i: (b, self.position(i), 0, 0))

    def position(self, i: Any) -> Any:
        """Return the chunk of step i of the grid."""
        return i if self.is_reverse == self.is_backward else self.num_chunks - 1 - i

    def to_tokens(self, x: Float[Array, "b h w _"]) -> Float[Array, "b l _"]:
        if self.direction % 2:
            x = jnp.swapaxes(x, 1, 2)
        x = x.reshape(len(x), -1, x.shape[-1])
        return jnp.pad(x, ((0, 0), (0, self.num_chunks * self.chunk - x.shape[1]), (0, 0)))

    def to_image(self, x: Float[Array, "b l _"]) -> Float[Array, "b h w _"]:
        b, h, w, _ = self.shape
        if self.direction % 2:
            return jnp.swapaxes(x[:, : h * w].reshape(b, w, h, -1), 1, 2)
        return x[:, : h * w].reshape(b, h, w, -1)

    def inputs(
        self, x: Array, projections: Array, weights: ScanWeights, size: MapSize
    ) -> tuple[tuple[Array, pl.BlockSpec], ...]:
        """Return the arrays of a kernel, each with its blocks.

        They are tokens, projections (dt, B, C, and whether the token is inside), W with rows of
        zeros for what is not dt, and bias, A and D.
        """
        own = ScanWeights(*(weight[self.direction] for weight in weights))
        is_inside = inside(self.shape[1:3], size).astype(jnp.float32)[None, :, :, None]
        is_inside = jnp.broadcast_to(is_inside, (*self.shape[:3], 1))
        rows = jnp.concatenate([projections[..., self.direction, :], is_inside], -1)
        padding = self.num_rows - rows.shape[-1]
        rows = jnp.pad(self.to_tokens(rows), ((0, 0), (0, 0), (0, padding)))
        kernel = jnp.pad(own.dt_kernel, ((0, self.num_rows - self.rank), (0, 0)))
        vectors = jnp.stack([own.dt_bias, -jnp.exp(own.a_log), own.skip])
        return (
            (self.to_tokens(x), self.tokens),
            (jnp.swapaxes(rows, 1, 2), self.rows),
            *((t, pl.BlockSpec(t.shape, lambda b, i: (0, 0))) for t in (kernel, vectors)),
        )


def _call(
    kernel: Callable,
    sequence: _Sequence,
    inputs: tuple[tuple[Array, pl.BlockSpec], ...],
    results: tuple[tuple[jax.ShapeDtypeStruct, pl.BlockSpec], ...],
    *,
    aliases: dict[int, int],
    interpret: bool,
) -> Any:
    """Run `kernel(sequence, *refs)`, with a buffer for a state, for each image and chunk."""
    arrays, in_specs = zip(*inputs, strict=True)
    out_shape, out_specs = zip(*results, strict=True)
    return pl.pallas_call(
        functools.partial(kernel, sequence),
        grid=(sequence.shape[0], sequence.num_chunks),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[pltpu.VMEM((1, sequence.shape[3]), jnp.float32)],
        input_output_aliases={i: j for i, j in aliases.items() if i < len(arrays)},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
        interpret=interpret,
        name=f"scan{kernel.__name__}",
    )(*arrays)


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """The tokens of a chunk, their projections, and Δ."""

    x: Float[Array, "t c"]
    rows: Float[Array, "t p"]
    b: Float[Array, "t 1"]
    c: Float[Array, "t 1"]
    kernel: Float[Array, "p c"]
    rate: Float[Array, "1 c"]  # A
    skip: Float[Array, "1 c"]
    z: Float[Array, "t c"]  # what softplus is applied to
    delta: Float[Array, "t c"]
    decay: Float[Array, "t c"]
    is_inside: Float[Array, "t 1"]

    def states(self, start: Array, *, reverse: bool) -> Float[Array, "t c"]:
        return _scan(self.decay, self.delta * self.b * self.x, start, reverse=reverse)


def _load(sequence: _Sequence, refs: Any) -> _Chunk:
    x_ref, rows_ref, kernel_ref, vectors_ref = refs
    rows, rank = rows_ref[0].T, sequence.rank
    kernel, vectors = kernel_ref[...], vectors_ref[...]
    bias, rate, skip = (vectors[i : i + 1] for i in range(3))
    b, c, is_inside = (rows[:, rank + i : rank + i + 1] for i in range(3))
    z = _product("tp,pc->tc", rows, kernel) + bias
    delta = jnp.where(
        is_inside > 0, softplus(z, lambda x: jnp.exp(-x), lambda a, b, c: a * b + c), 0.0
    )
    x, decay = x_ref[0].astype(jnp.float32), jnp.exp(rate * delta)
    return _Chunk(x, rows, b, c, kernel, rate, skip, z, delta, decay, is_inside)


def _product(letters: str, a: Array, b: Array) -> Array:
    return jnp.einsum(
        letters, a, b, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def _scan(decay: Array, update: Array, start: Array, *, reverse: bool) -> Float[Array, "t c"]:
    """Return all states s_t = decay_t s_{t−1} + update_t, or in reverse from the last token on."""
    count = 1
    while count < len(decay):
        update = decay * _shift(update, count, 0.0, reverse=reverse) + update
        decay = decay * _shift(decay, count, 1.0, reverse=reverse)
        count *= 2
    return decay * start + update


def _shift(x: Array, count: int, fill: Any, *, reverse: bool) -> Array:
    """Return what is `count` tokens before each, or after it in reverse; `fill` at the border."""
    row = lax.broadcasted_iota(jnp.int32, x.shape, 0)
    is_there = row < len(x) - count if reverse else row >= count
    moved = pltpu.roll(x, len(x) - count if reverse else count, 0)
    return jnp.where(is_there, moved, fill)


def _end(states: Array, *, reverse: bool) -> Float[Array, "1 c"]:
    return states[:1] if reverse else states[-1:]


def _outputs(sequence: _Sequence, *refs: Any) -> None:
    *inputs_refs, y_ref, states_ref, state_ref = refs

    @pl.when(pl.program_id(1) == 0)
    def _start_sequence() -> None:
        state_ref[...] = jnp.zeros_like(state_ref)

    chunk = _load(sequence, inputs_refs[:4])
    states_ref[0, 0] = state_ref[...]
    states = chunk.states(state_ref[...], reverse=sequence.is_reverse)
    state_ref[...] = _end(states, reverse=sequence.is_reverse)
    y = chunk.c * states + chunk.skip * chunk.x
    for total_ref in inputs_refs[4:]:
        y += total_ref[0]
    y_ref[0] = y


def _gradients(sequence: _Sequence, *refs: Any) -> None:
    *inputs_refs, x_grad_ref, rows_grad_ref, kernel_grad_ref, vectors_grad_ref, adjoint_ref = refs
    y_grad_ref, states_ref, *total_refs = inputs_refs[4:]
    is_first_chunk, reverse, rank = pl.program_id(1) == 0, sequence.is_reverse, sequence.rank

    @pl.when(is_first_chunk)
    def _start_sequence() -> None:
        adjoint_ref[...] = jnp.zeros_like(adjoint_ref)

    @pl.when(is_first_chunk & (pl.program_id(0) == 0))
    def _start_sums() -> None:
        kernel_grad_ref[...] = jnp.zeros_like(kernel_grad_ref)
        vectors_grad_ref[...] = jnp.zeros_like(vectors_grad_ref)

    chunk, y_grad, start = _load(sequence, inputs_refs[:4]), y_grad_ref[0], states_ref[0, 0]
    states = chunk.states(start, reverse=reverse)
    decayed = chunk.decay * _shift(states, 1, start, reverse=reverse)
    of_output = chunk.c * y_grad
    after = adjoint_ref[...]
    adjoints = _scan(chunk.decay, chunk.decay * of_output, after, reverse=not reverse)
    adjoint_ref[...] = _end(adjoints, reverse=not reverse)
    state_grad = of_output + _shift(adjoints, 1, after, reverse=not reverse)
    scaled = state_grad * chunk.delta
    delta_grad = state_grad * (chunk.b * chunk.x + chunk.rate * decayed)
    softplus_grad = jnp.where(chunk.is_inside > 0, jnp.exp(chunk.z - chunk.delta), 0.0)
    z_grad = softplus_grad * delta_grad
    x_grad = scaled * chunk.b + chunk.skip * y_grad
    for total_ref in total_refs:
        x_grad += total_ref[0]
    x_grad_ref[0] = x_grad

    column = lax.broadcasted_iota(jnp.int32, chunk.rows.shape, 1)
    rows_grad = _product("tc,pc->tp", z_grad, chunk.kernel)
    b_grad = jnp.sum(scaled * chunk.x, 1, keepdims=True)
    c_grad = jnp.sum(states * y_grad, 1, keepdims=True)
    rows_grad = jnp.where(column == rank, b_grad, rows_grad)
    rows_grad_ref[0] = jnp.where(column == rank + 1, c_grad, rows_grad).T
    kernel_grad_ref[...] += _product("tp,tc->pc", chunk.rows, z_grad)
    of_vectors = z_grad, scaled * decayed, chunk.x * y_grad
    sums = [jnp.sum(value, 0, keepdims=True) for value in of_vectors]
    vectors_grad_ref[...] += jnp.concatenate(sums)
