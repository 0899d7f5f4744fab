"""The two-dimensional selective scan in chunks, with gradients that keep few states.

A sequence of h·w tokens is divided into h chunks of w steps. All chunks are scanned side by side,
step by step: first from zero, which gives each chunk's end; then the ends are carried from chunk to
chunk; then once more, from the true start. The decay over a chunk is exp(−exp(a_log) ΣΔ), and no
decay is divided by.

The sequences along rows and along columns are scanned together, as the two entries of a leading
axis: directions 0 and 1 from the first step, then 2 and 3, by the same loops, from the last. XLA
compiles them once, which matters on CPU.

The backward pass gets the states at the chunks' starts, computes those within again, and goes back
from step to step. With the gradient g of y, and λ_t = ∂loss/∂h_t:

    λ_t = C_t g_t + a_{t+1} λ_{t+1}
    ∂p_t = D g_t + λ_t Δ_t B_t,    ∂B_t = Σ_c λ_t Δ_t p_t,    ∂C_t = Σ_c h_t g_t
    ∂Δ_t = λ_t (B_t p_t − exp(a_log) a_t h_{t−1})
    ∂a_log = −exp(a_log) Σ_t λ_t Δ_t a_t h_{t−1},    ∂D = Σ_t p_t g_t
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from segret_jax.models.layers import FeatureMap, MapSize, accum_dtype, per_channel
from segret_jax.models.selective_scan.formulas import (
    Projections,
    ScanWeights,
    inside,
    split_projections,
)

# The product that Δ is made of is exact, whatever the precision of the model's.
_product = functools.partial(jnp.einsum, precision="highest")

Steps = Float[Array, "_ t b m _"]  # of two sequences or four directions, in m chunks
Chunks = Float[Array, "_ b m _"]


def forward(
    x: FeatureMap, projections: Projections, weights: ScanWeights, size: MapSize | None
) -> tuple[FeatureMap, Chunks]:
    """Return the sum of the four scans, in float32, and the states at the starts of the chunks.

    Arguments as of `formulas.selective_scan_2d`.
    """
    steps = _steps(x, projections, weights, size)

    def scan_pair(reverse: Array, carry: Any) -> Any:
        y, starts = carry
        pair = _Pair(steps, reverse)
        start = pair.carry(pair.each_step(functools.partial(pair.advance, y), pair.zero))

        def output(carry: Any, step: Array) -> Any:
            state, y = carry
            state = pair.advance(y, state, step)
            _, c = pair.b_and_c(step)
            return state, _write(y, step, c * state, pair.first)

        _, y = pair.each_step(output, (start, y))
        return y, _update(starts, start, (pair.first, 0, 0, 0))

    # The output takes the place of Δ, of which each direction has its own: a step of it is read for
    # the last time just before.
    y, starts = lax.fori_loop(0, 2, scan_pair, (steps.delta, jnp.zeros_like(steps.total)))
    along_rows, along_columns = _to_images(y[:2] + y[2:], x.shape)
    # As additions the sum is part of the next kernel; as a reduction it would have its own.
    skip = per_channel(functools.reduce(jnp.add, weights.skip.astype(y.dtype)), 4)
    return along_rows + along_columns + skip * x, starts


def backward(
    x: FeatureMap,
    projections: Projections,
    weights: ScanWeights,
    size: MapSize | None,
    starts: Chunks,
    y_grad: FeatureMap,
) -> tuple[FeatureMap, Projections, ScanWeights]:
    """Return the gradients of x, the projections and the weights; see `forward`."""
    steps = _steps(x, projections, weights, size)
    grad_steps = _sequences([y_grad] * 2)

    def scan_pair(x_grad: Steps, reverse: Array) -> tuple[Steps, Any]:
        added, grads = _gradients(_Pair(steps, reverse), starts, grad_steps)
        return x_grad + added, grads

    x_grad, grads = lax.scan(scan_pair, jnp.zeros_like(grad_steps), jnp.arange(2))
    step_grads, *weight_grads = (g.reshape(4, *g.shape[2:]) for g in grads)
    skip = weights.skip.astype(y_grad.dtype)
    skip_grad = jnp.broadcast_to((x * y_grad).sum((0, 1, 2))[None], skip.shape)
    x_grad = sum(_to_images(x_grad, x.shape), per_channel(skip.sum(0), 4) * y_grad)
    shape = projections[..., 0, :].shape
    projections_grad = [g for k in (0, 2) for g in _to_images(step_grads[k : k + 2], shape)]
    return (
        x_grad.astype(x.dtype),
        jnp.stack(projections_grad, -2).astype(projections.dtype),
        ScanWeights(*(*weight_grads, skip_grad)),
    )


class _Steps(NamedTuple):
    """The steps of the sequences along rows and columns, and of the four directions."""

    x: Steps  # of the two sequences
    projections: Steps  # of the four directions
    delta: Steps
    total: Chunks  # ΣΔ
    dt_kernel: Float[Array, "4 r c"]
    a_log: Float[Array, "4 c"]


def _steps(x: Array, projections: Array, weights: ScanWeights, size: Any) -> _Steps:
    dtype = accum_dtype(x.dtype)
    dt_kernel, dt_bias, a_log, _ = (weight.astype(dtype) for weight in weights)
    own = _sequences([projections[..., k, :].astype(dtype) for k in range(4)])
    before = _product("ntbmr,nrc->ntbmc", own[..., :-2], dt_kernel)
    delta = jax.nn.softplus(before + dt_bias[:, None, None, None])
    if size is not None:
        mask = inside(x.shape[1:3], size)[None, ..., None].astype(dtype)
        delta *= _sequences([mask] * 4)  # Δ = 0 outside
    tokens = _sequences([x.astype(dtype)] * 2)
    return _Steps(tokens, own, delta, delta.sum(1), dt_kernel, a_log)


def _sequences(images: list[Array]) -> Steps:
    """Return images as sequences, alternately along rows and along columns."""

    def steps(x: Array, along_columns: int) -> Array:
        in_order = jnp.swapaxes(x, 1, 2).reshape(x.shape) if along_columns else x
        return jnp.moveaxis(in_order, 2, 0)

    return jnp.stack([steps(x, i % 2) for i, x in enumerate(images)])


def _to_images(steps: Steps, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return two sequences, along rows and along columns, as images of this shape."""
    b, h, w, c = shape
    along_rows, in_order = jnp.moveaxis(steps, 1, 3)
    return along_rows, jnp.swapaxes(in_order.reshape(b, w, h, c), 1, 2)


# Indices that may count from the end would take operations of their own, also in the loops.
_slice = functools.partial(lax.dynamic_slice, allow_negative_indices=False)
_update = functools.partial(lax.dynamic_update_slice, allow_negative_indices=False)


def _read(x: Steps, step: Array, first: Any) -> Chunks:
    """Return a step of two sequences."""
    return _slice(x, (first, step, 0, 0, 0), (2, 1, *x.shape[2:]))[:, 0]


def _write(x: Steps, step: Array, value: Chunks, first: Any = 0) -> Steps:
    return _update(x, value[:, None], (first, step, 0, 0, 0))


class _Pair:
    """Two directions, along rows and along columns: from the first step on, or from the last."""

    def __init__(self, steps: _Steps, reverse: Array):
        """Take the directions 0 and 1 if `reverse` is 0, 2 and 3 if it is 1."""
        self.steps, self.reverse, self.first = steps, reverse, 2 * reverse
        self.rate = -jnp.exp(self.own(steps.a_log))  # [2, c]
        self.zero = jnp.zeros_like(steps.total[:2])

    def own(self, x: Array) -> Array:
        """Return the entries of the two directions."""
        return _slice(x, (self.first, *(0,) * (x.ndim - 1)), (2, *x.shape[1:]))

    def down(self, back: bool) -> Array:
        """Return 1 if the order is from the last to the first, in order or `back`; else 0."""
        return 1 - self.reverse if back else self.reverse

    def each(self, length: int, body: Callable, carry: Any, *, back: bool = False) -> Any:
        """Return the carry after `body(carry, index)` for each index, in order, or `back`."""
        down = self.down(back)

        def advance(_: Array, state: Any) -> Any:
            index, carry = state
            return index + 1 - 2 * down, body(carry, index)

        return lax.fori_loop(0, length, advance, (down * (length - 1), carry))[1]

    def each_step(self, body: Callable, carry: Any, *, back: bool = False) -> Any:
        return self.each(self.steps.x.shape[1], body, carry, back=back)

    def b_and_c(self, step: Array) -> tuple[Array, Array]:
        _, b, c = split_projections(_read(self.steps.projections, step, self.first))
        return b, c

    def decay_and_input(self, deltas: Steps, step: Array) -> tuple[Array, Array]:
        """Return a and ΔBp."""
        delta, (b, _) = _read(deltas, step, self.first), self.b_and_c(step)
        return jnp.exp(self.rate[:, None, None] * delta), delta * b * _read(self.steps.x, step, 0)

    def advance(self, deltas: Steps, state: Chunks, step: Array) -> Chunks:
        decay, update = self.decay_and_input(deltas, step)
        return decay * state + update

    def carry(self, end: Array, *, back: bool = False) -> Chunks:
        """Return the state at each chunk's start, from the chunks' ends from zero."""
        b, m, c = end.shape[1:]
        down = self.down(back)

        def advance(starts: Array, border: Array) -> Array:
            """Carry the state over the border of two chunks, from border + down to the other."""

            def at(x: Array, first: Any = 0) -> Array:
                return _slice(x, (first, 0, border + down, 0), (2, b, 1, c))

            decay = jnp.exp(self.rate[:, None, None] * at(self.steps.total, self.first))
            state = decay * at(starts) + at(end)
            return _update(starts, state, (0, 0, border + 1 - down, 0))

        return self.each(m - 1, advance, self.zero, back=back)


def _gradients(pair: _Pair, starts: Chunks, y_grad: Steps) -> tuple[Steps, Any]:
    """Return the gradients of x, of the projections, dt_kernel, dt_bias and a_log."""
    steps, start, rate = pair.steps, pair.own(starts), pair.rate[:, None, None, None]

    def states(carry: Any, step: Array) -> Any:
        state, previous = carry
        return pair.advance(steps.delta, state, step), _write(previous, step, state)

    _, previous = pair.each_step(states, (start, jnp.zeros_like(steps.x)))

    # λ of a step, times its decay, is what the step before it gets.
    def go_back(passed: Chunks, step: Array) -> Chunks:
        decay, _ = pair.decay_and_input(steps.delta, step)
        _, c = pair.b_and_c(step)
        return decay * (c * _read(y_grad, step, 0) + passed)

    def gradients(carry: Any, step: Array) -> Any:
        passed, received = carry
        return go_back(passed, step), _write(received, step, passed)

    end = pair.each_step(go_back, pair.zero, back=True)
    passed = pair.carry(end, back=True)
    _, received = pair.each_step(gradients, (passed, jnp.zeros_like(steps.x)), back=True)

    delta = pair.own(steps.delta)
    dt, b, c = split_projections(pair.own(steps.projections))
    decayed = jnp.exp(rate * delta) * previous
    state_grad = c * y_grad + received
    scaled = state_grad * delta
    # 1 − exp(−Δ) is the derivative of the softplus, and 0 outside.
    before_grad = state_grad * (b * steps.x + rate * decayed) * -jnp.expm1(-delta)
    projections_grad = [
        _product("ntbmc,nrc->ntbmr", before_grad, pair.own(steps.dt_kernel)),
        jnp.sum(scaled * steps.x, -1, keepdims=True),
        jnp.sum((decayed + delta * b * steps.x) * y_grad, -1, keepdims=True),
    ]
    weights_grad = (
        _product("ntbmr,ntbmc->nrc", dt, before_grad),
        before_grad.sum((1, 2, 3)),
        (rate * scaled * decayed).sum((1, 2, 3)),
    )
    return scaled * b, (jnp.concatenate(projections_grad, -1), *weights_grad)
