"""The selective scan on an NVIDIA GPU: Pallas kernels that hold Δ and the states in registers.

An image is cut into tiles of 16×16 pixels. The part of a sequence that lies in a tile is 16 chunks,
its rows or columns. A program has a tile and a block of channels, and steps through its 16 chunks
side by side, which makes each step's Δ a product with 16 rows, as tensor cores need: by single
multiply-adds the backward pass would also take r + 2 sums over channels at each step. Three
kernels, each for all directions:

    1  of each chunk the product of its a, and its last state if the first one is 0
    2  the state before each chunk, from those
    3  the states again, from there on, and the output

The backward pass is the same for ν_t = a_t λ_t, with λ = ∂loss/∂h and ȳ = ∂loss/∂y, from the end
of a sequence to its start (Δ' is the derivative by what softplus is applied to):

    λ_t = C_t ȳ_t + ν_{t+1}                    ∂p_t = D ȳ_t + λ_t Δ_t B_t
    ∂Δ_t = λ_t (B_t p_t + A a_t h_{t−1})       ∂(W dt_t + bias) = Δ'_t ∂Δ_t
    ∂B_t = Σ_c λ_t Δ_t p_t,  ∂C_t = Σ_c h_t ȳ_t,  ∂A = Σ_t λ_t Δ_t a_t h_{t−1},  A = −exp(a_log)

Memory has chunks' states, a sixteenth of all. What several programs contribute to is stored
apart and summed by XLA, so that results are reproducible bit by bit.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array

from segret_jax.models.kernels import TRITON_CAPABILITY
from segret_jax.models.layers import FeatureMap, MapSize
from segret_jax.models.selective_scan.formulas import Projections, ScanWeights
from segret_jax.models.selective_scan.gpu_states import States, first_states
from segret_jax.models.selective_scan.gpu_tile import LOG2_E, TILE, Step, TileProgram, TileShape

MAX_RANK = 61  # of Δ: rows of W's tile, which has 3 more
LOG_2 = math.log(2)
GROUP = 4  # steps of a chunk that are loaded together, and whose states the backward pass keeps


def fits(x: FeatureMap, projections: Projections, capability: float | None = None) -> bool:
    """Return whether the Triton kernels support these inputs.

    Requires tokens in float32 or bfloat16, projections in float32, and compute capability 8.0 or
    newer; None stands for an unknown one and passes.
    """
    has_triton = capability is None or capability >= TRITON_CAPABILITY
    has_dtypes = x.dtype in (jnp.float32, jnp.bfloat16) and projections.dtype == jnp.float32
    return has_triton and has_dtypes and projections.shape[-1] - 2 <= MAX_RANK


def forward(
    x: FeatureMap,
    projections: Projections,
    weights: ScanWeights,
    size: MapSize,
    *,
    interpret: bool = False,
) -> tuple[FeatureMap, States]:
    """Return the sum of the four scans, in float32, and the state before each chunk.

    Arguments as of `formulas.selective_scan_2d`; `interpret` runs the kernels anywhere, slowly.
    """
    shape = TileShape(x.shape, projections.shape[-1], interpret)
    inputs = shape.inputs(x, projections, weights, size)
    ends = _call(_last_states, shape, inputs, (), (shape.states,) * 2, directions=4)
    states = first_states(ends, adjoint=False, interpret=interpret)
    y = jax.ShapeDtypeStruct(inputs[0].shape, jnp.float32)
    (y,) = _call(_outputs, shape, inputs, (states,), (y,), directions=1)
    return y.reshape(x.shape), states


def backward(
    x: FeatureMap,
    projections: Projections,
    weights: ScanWeights,
    size: MapSize,
    states: States,
    y_grad: FeatureMap,
    *,
    interpret: bool = False,
) -> tuple[FeatureMap, Projections, ScanWeights]:
    """Return the gradients of x, the projections and the weights; see `forward`."""
    shape = TileShape(x.shape, projections.shape[-1], interpret)
    inputs = shape.inputs(x, projections, weights, size)
    y_grad = y_grad.reshape(inputs[0].shape)
    adjoint = y_grad, *inputs[1:]
    ends = _call(_last_adjoints, shape, adjoint, (), (shape.states,) * 2, directions=4)
    others = y_grad, states, first_states(ends, adjoint=True, interpret=interpret)
    b, _, _, c = x.shape
    rank, num_tiles = shape.rank, math.prod(shape.tiles)
    results = (
        jax.ShapeDtypeStruct(inputs[0].shape, jnp.float32),  # the sum over directions so far
        jax.ShapeDtypeStruct(inputs[0].shape, x.dtype),
        jax.ShapeDtypeStruct((pl.cdiv(c, shape.block), *inputs[1].shape), jnp.float32),
        jax.ShapeDtypeStruct((4, rank + 3, num_tiles * b, c), jnp.float32),
    )
    _, x_grad, of_projections, of_weights = _call(
        _gradients, shape, inputs, others, results, directions=1
    )
    of_weights = jnp.sum(of_weights, 2)
    kernel, (bias, rate, skip) = of_weights[:, :rank], jnp.moveaxis(of_weights[:, rank:], 1, 0)
    weights_grad = ScanWeights(kernel, bias, -jnp.exp(weights.a_log) * rate, skip)
    return (
        x_grad.reshape(x.shape),
        jnp.sum(of_projections, 0).reshape(projections.shape),
        weights_grad,
    )


def _call(
    kernel: Callable,
    shape: TileShape,
    inputs: tuple[Array, ...],
    others: tuple[Array, ...],
    results: tuple[Any, ...],
    *,
    directions: int,
) -> Any:
    """Run `kernel(program, others, results)` for each tile and block of channels."""
    b, _, _, c = shape.image

    def of_tile(*refs: Any) -> None:
        x_ref, projections_ref, kernel_ref, vectors_ref, size_ref = refs[: len(inputs)]
        size = size_ref[0], size_ref[1]
        position = map(pl.program_id, range(4))
        arrays = x_ref, projections_ref, kernel_ref, vectors_ref
        program = TileProgram(*arrays, shape, size, *position)
        kernel(program, refs[len(inputs) : -len(results)], refs[-len(results) :])

    return pl.pallas_call(
        of_tile,
        grid=(pl.cdiv(c, shape.block), math.prod(shape.tiles), directions, b),
        out_shape=results,
        compiler_params=triton.CompilerParams(num_warps=shape.block // 16, num_stages=1),
        interpret=shape.interpret,
        name=f"scan{kernel.__name__}",
    )(*inputs, *others)


def _fold_group(load: Callable, use: Callable, group: Any, carry: Any) -> Any:
    """Apply `use(carry, *load(index))` to the steps of a group.

    All is loaded before any is used, so as to wait once: stores, and products, which go through
    shared memory, keep later loads behind them.
    """
    for loaded in [load(GROUP * group + j) for j in range(GROUP)]:
        carry = use(carry, *loaded)
    return carry


def _fold(load: Callable, use: Callable, carry: Any) -> Any:
    """Apply `use(carry, *load(index))` to all steps of a chunk."""
    return lax.fori_loop(0, TILE // GROUP, functools.partial(_fold_group, load, use), carry)


def _last_states(program: TileProgram, others: Any, results: Any, *, adjoint: bool = False) -> None:
    """Compute of each chunk the product of its a and its last h; or first ν, from y's gradient."""
    direction, weights = program.direction, program.weights(program.direction)

    def load(index: Any) -> Any:
        return program.step(direction, TILE - 1 - index if adjoint else index)

    def use(carry: tuple[Array, Array], step: Step, token: Array) -> tuple[Array, Array]:
        state, total = carry
        delta = program.delta(program.pre_delta(weights, step), step)
        if adjoint:
            state = program.exp2(weights.rate * delta) * program.fma(step.c, token, state)
        else:
            state = program.next_state(weights, step, token, delta, state)
        return state, total + delta

    state, total = _fold(load, use, (program.zero, program.zero))
    for ref, value in zip(results, (program.exp2(weights.rate * total), state), strict=True):
        triton.store(program.chunks(ref, direction), value, mask=program.is_channel)


def _last_adjoints(program: TileProgram, others: Any, results: Any) -> None:
    _last_states(program, others, results, adjoint=True)


def _outputs(program: TileProgram, others: Any, results: Any) -> None:
    (states_ref,), (y_ref,) = others, results

    def of_direction(direction: Any, _: None) -> None:
        weights = program.weights(direction)
        skip = jnp.where(direction == 0, program.vector(8), 0.0)

        def load(index: Any) -> Any:
            step, x = program.step(direction, index)
            return step, x, program.tokens(y_ref, step, where=direction > 0)

        def use(state: Array, step: Step, x: Array, y: Array) -> Array:
            delta = program.delta(program.pre_delta(weights, step), step)
            state = program.next_state(weights, step, x, delta, state)
            program.store(y_ref, step, program.fma(step.c, state, program.fma(skip, x, y)))
            return state

        _fold(load, use, program.load_states(states_ref, direction))
        program.barrier()

    lax.fori_loop(0, 4, of_direction, None)


def _gradients(program: TileProgram, others: Any, results: Any) -> None:
    y_grad_ref, states_ref, adjoints_ref = others
    *tokens_refs, sums_ref = results

    def of_direction(direction: Any, _: None) -> None:
        weights = program.weights(direction)
        starts = _group_starts(program, direction, program.load_states(states_ref, direction))

        def of_group(i: Any, carry: Any) -> Any:
            group, state = TILE // GROUP - 1 - i, starts[0]
            for j, start in enumerate(starts):
                state = jnp.where(group == j, start, state)
            refs = y_grad_ref, *tokens_refs
            return _gradients_of_group(program, direction, group, state, refs, carry)

        first = program.load_states(adjoints_ref, direction)
        carry = first, jnp.zeros_like(weights.kernel), program.zero, program.zero
        _, *sums = lax.fori_loop(0, TILE // GROUP, of_group, carry)
        _store_sums(program, sums_ref, direction, *sums)
        program.barrier()

    lax.fori_loop(0, 4, of_direction, None)


def _group_starts(program: TileProgram, direction: Any, state: Array) -> list[Array]:
    """Return the state before each group of steps."""
    weights = program.weights(direction)

    def use(state: Array, step: Step, x: Array) -> Array:
        delta = program.delta(program.pre_delta(weights, step), step)
        return program.next_state(weights, step, x, delta, state)

    def of_group(i: Any, carry: Any) -> Any:
        state, starts = carry
        state = _fold_group(functools.partial(program.step, direction), use, i, state)
        return state, [jnp.where(i + 1 == j, state, start) for j, start in enumerate(starts)]

    count = TILE // GROUP
    _, starts = lax.fori_loop(0, count - 1, of_group, (state, [state] * count))
    return starts


def _gradients_of_group(
    program: TileProgram, direction: Any, group: Any, state: Array, refs: Any, carry: Any
) -> Any:
    """Store gradients of a group of steps, and add to those of the weights."""
    y_grad_ref, sum_ref, x_grad_ref, projections_grad_ref = refs
    weights, rank, columns = program.weights(direction), program.shape.rank, program.shape.columns
    skip = jnp.where(direction == 0, program.vector(8), 0.0)
    kept: list[tuple[Array, Array]] = []

    def keep(state: Array, step: Step, x: Array) -> Array:
        z = program.pre_delta(weights, step)
        kept.append((z, state))
        return program.next_state(weights, step, x, program.delta(z, step), state)

    _fold_group(functools.partial(program.step, direction), keep, group, state)

    for j in reversed(range(GROUP)):
        adjoint, of_kernel, of_rate, of_skip = carry
        step, x = program.step(direction, GROUP * group + j)
        y_grad = program.tokens(y_grad_ref, step)
        x_grad = program.tokens(sum_ref, step, where=direction > 0)
        z, state = kept[j]
        delta = program.delta(z, step)
        decay = program.exp2(weights.rate * delta)
        decayed, update = decay * state, step.b * x
        state_grad = program.fma(step.c, y_grad, adjoint)
        scaled = state_grad * delta
        delta_grad = state_grad * program.fma(LOG_2 * weights.rate, decayed, update)
        z_grad = program.exp2(LOG2_E * (z - delta)) * delta_grad  # softplus' = exp(z − softplus)
        z_grad = jnp.where(step.is_inside, z_grad, 0.0)
        x_grad = program.fma(scaled, step.b, program.fma(skip, y_grad, x_grad))
        program.store(sum_ref, step, x_grad)
        program.store(x_grad_ref, step, x_grad, where=direction == 3)
        b_grad = jnp.sum(scaled * x, 1, keepdims=True)
        c_grad = jnp.sum(program.fma(delta, update, decayed) * y_grad, 1, keepdims=True)
        row = program.product(z_grad, weights.kernel, trans_b=True)
        row = jnp.where(columns == rank + 1, c_grad, jnp.where(columns == rank, b_grad, row))
        at = projections_grad_ref.at[program.block, program.image, step.index, direction, columns]
        triton.store(at, row, mask=step.is_stored & (columns < rank + 2))
        # A column of ones in the place of B: the bias's gradient becomes one more row of W's.
        dt = jnp.where(columns == rank, 1.0, step.dt)
        carry = (
            decay * state_grad,
            of_kernel + program.product(dt, z_grad, trans_a=True),
            program.fma(scaled, decayed, of_rate),
            program.fma(x, y_grad, of_skip),
        )
    return carry


def _store_sums(
    program: TileProgram, ref: Any, direction: Any, of_kernel: Array, of_rate: Array, of_skip: Array
) -> None:
    """Store the program's part of the gradients of W, the bias, A and D, a row each."""
    rank, rows = program.shape.rank, program.shape.columns.T
    of_rate, of_skip = (jnp.sum(value, 0, keepdims=True) for value in (of_rate, of_skip))
    rest = jnp.where(rows == rank + 1, of_rate, of_skip)
    sums = jnp.where(rows <= rank, of_kernel, rest)
    number = program.image * math.prod(program.shape.tiles) + program.tile
    at = ref.at[direction, rows, number, program.channels]
    triton.store(at, sums, mask=(rows < rank + 3) & program.is_channel)
