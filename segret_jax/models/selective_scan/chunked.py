"""The two-dimensional selective scan in chunks, with gradients that keep few states.

A chunk is a row of the image for the directions along rows, a column for those along columns. All
chunks are scanned side by side, step by step: first from zero, which gives each chunk's end; then
the ends are carried from chunk to chunk; then once more, from the true start. The decay over a
chunk is exp(−exp(a_log) ΣΔ), and no decay is divided by.

The backward pass gets the states at the chunks' starts, computes those within again, and goes back
from step to step. With the gradient g of y, and λ_t = ∂loss/∂h_t:

    λ_t = C_t g_t + a_{t+1} λ_{t+1}
    ∂p_t = D g_t + λ_t Δ_t B_t,    ∂B_t = Σ_c λ_t Δ_t p_t,    ∂C_t = Σ_c h_t g_t
    ∂Δ_t = λ_t (B_t p_t − exp(a_log) a_t h_{t−1})
    ∂a_log = −exp(a_log) Σ_t λ_t Δ_t a_t h_{t−1},    ∂D = Σ_t p_t g_t
"""

import functools
from typing import Any

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

Steps = Float[Array, "t b m c"]  # of t steps in each of m chunks
State = Float[Array, "b m c"]  # of each chunk


def forward(
    x: FeatureMap, projections: Projections, weights: ScanWeights, size: MapSize
) -> tuple[FeatureMap, list[State]]:
    """Return the sum of the four scans, in float32, and the states at the starts of the chunks.

    Arguments as of `formulas.selective_scan_2d`.
    """
    found = [
        _forward_direction(*_along(k, x, projections, weights, size), reverse=k > 1)
        for k in range(4)
    ]
    y = functools.reduce(jnp.add, (_to_image(k, y) for k, (y, _) in enumerate(found)))
    return y, [start for _, start in found]


def backward(
    x: FeatureMap,
    projections: Projections,
    weights: ScanWeights,
    size: MapSize,
    starts: list[Any],
    y_grad: FeatureMap,
) -> tuple[FeatureMap, Projections, ScanWeights]:
    """Return the gradients of x, the projections and the weights; see `forward`."""
    found = [
        _backward_direction(
            *_along(k, x, projections, weights, size),
            starts[k],
            _to_steps(k, y_grad),
            reverse=k > 1,
        )
        for k in range(4)
    ]
    x_grads, projection_grads, weight_grads = zip(*found, strict=True)
    x_grad = functools.reduce(jnp.add, (_to_image(k, g) for k, g in enumerate(x_grads)))
    projections_grad = jnp.stack([_to_image(k, g) for k, g in enumerate(projection_grads)], -2)
    weights_grad = ScanWeights(*(jnp.stack(g) for g in zip(*weight_grads, strict=True)))
    return x_grad.astype(x.dtype), projections_grad.astype(projections.dtype), weights_grad


def _along(
    direction: int, x: Array, projections: Array, weights: ScanWeights, size: Any
) -> tuple[Steps, Array, Array, ScanWeights]:
    """Return x, projections and mask by steps, and the weights, of one direction."""
    dtype = accum_dtype(x.dtype)
    mask = inside(x.shape[1:3], size)[None, ..., None].astype(dtype)  # Δ = 0 outside
    arrays = x.astype(dtype), projections[..., direction, :].astype(dtype), mask
    own = ScanWeights(*(weight[direction].astype(dtype) for weight in weights))
    tokens, own_projections, mask = (_to_steps(direction, t) for t in arrays)
    return tokens, own_projections, mask, own


def _to_steps(direction: int, x: FeatureMap) -> Steps:
    """Return x by steps: along rows (w) for even directions, along columns (h) for odd ones."""
    return jnp.moveaxis(x, 1 if direction % 2 else 2, 0)


def _to_image(direction: int, x: Steps) -> FeatureMap:
    return jnp.moveaxis(x, 0, 1 if direction % 2 else 2)


def _step_size(dt: Array, mask: Array, weights: ScanWeights) -> tuple[Steps, Steps]:
    """Return Δ, and its value before the softplus."""
    before = _product("tbmr,rc->tbmc", dt, weights.dt_kernel) + per_channel(weights.dt_bias, 4)
    return jax.nn.softplus(before) * mask, before


def _carried(total: State, end: State, *, reverse: bool) -> State:
    """Return the state at each chunk's start, from the chunks' decays and their ends from zero."""

    def carry(state: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        return chunk[0] * state + chunk[1], state

    chunks = jnp.moveaxis(total, 1, 0), jnp.moveaxis(end, 1, 0)
    _, starts = lax.scan(carry, jnp.zeros_like(end[:, 0]), chunks, reverse=reverse)
    return jnp.moveaxis(starts, 0, 1)


def _forward_direction(
    x: Steps, projections: Array, mask: Array, weights: ScanWeights, *, reverse: bool
) -> tuple[Steps, State]:
    """Return y, and the states at the chunks' starts."""
    dt, b, c = split_projections(projections)
    delta, _ = _step_size(dt, mask, weights)
    rate = -jnp.exp(per_channel(weights.a_log, 3))

    def advance(state: State, step: Any) -> State:
        x, delta, b = step
        return jnp.exp(rate * delta) * state + delta * b * x

    def ends(state: State, step: Any) -> tuple[State, None]:
        return advance(state, step), None

    def outputs(state: State, step: Any) -> tuple[State, State]:
        *inputs, c = step
        state = advance(state, inputs)
        return state, c * state

    zero = jnp.zeros_like(x[0])
    end, _ = lax.scan(ends, zero, (x, delta, b), reverse=reverse)
    start = _carried(jnp.exp(rate * delta.sum(0)), end, reverse=reverse)
    _, y = lax.scan(outputs, start, (x, delta, b, c), reverse=reverse)
    return y + per_channel(weights.skip, 4) * x, start


def _backward_direction(
    x: Steps,
    projections: Array,
    mask: Array,
    weights: ScanWeights,
    start: State,
    grad: Steps,
    *,
    reverse: bool,
) -> tuple[Steps, Array, ScanWeights]:
    """Return the gradients of x, projections and weights."""
    dt, b, c = split_projections(projections)
    delta, before = _step_size(dt, mask, weights)
    rate = -jnp.exp(per_channel(weights.a_log, 3))
    decay = jnp.exp(rate[None] * delta)

    def states(state: State, step: Any) -> tuple[State, State]:
        x, delta, decay, b = step
        return decay * state + delta * b * x, state

    _, previous = lax.scan(states, start, (x, delta, decay, b), reverse=reverse)

    # λ of a step, times its decay, is what the step before it gets.
    def ends(passed: State, step: Any) -> tuple[State, None]:
        grad, decay, c = step
        return decay * (c * grad + passed), None

    def gradients(passed: State, step: Any) -> tuple[State, State]:
        grad, decay, c = step
        state_grad = c * grad + passed
        return decay * state_grad, state_grad

    steps = grad, decay, c
    end, _ = lax.scan(ends, jnp.zeros_like(start), steps, reverse=not reverse)
    passed = _carried(jnp.exp(rate * delta.sum(0)), end, reverse=not reverse)
    _, state_grad = lax.scan(gradients, passed, steps, reverse=not reverse)

    decayed = decay * previous
    delta_grad = state_grad * (b * x + rate[None] * decayed)
    before_grad = delta_grad * jax.nn.sigmoid(before) * mask
    scaled = state_grad * delta
    projections_grad = [
        _product("tbmc,rc->tbmr", before_grad, weights.dt_kernel),
        jnp.sum(scaled * x, -1, keepdims=True),
        jnp.sum((decayed + delta * b * x) * grad, -1, keepdims=True),
    ]
    x_grad = per_channel(weights.skip, 4) * grad + scaled * b
    weights_grad = ScanWeights(
        dt_kernel=_product("tbmr,tbmc->rc", dt, before_grad),
        dt_bias=before_grad.sum((0, 1, 2)),
        a_log=(rate[None] * scaled * decayed).sum((0, 1, 2)),
        skip=(x * grad).sum((0, 1, 2)),
    )
    return x_grad, jnp.concatenate(projections_grad, -1), weights_grad
