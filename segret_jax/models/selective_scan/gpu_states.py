"""From what each chunk of a scan does to its state, the state before each chunk.

The second of the three kernels of `selective_scan.gpu`.
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
from jaxtyping import Array, Float

BLOCK = 32  # channels of a program
LOADED = 8  # chunks that are read before they are used

States = Float[Array, "4 b n c"]  # of the n chunks of an image, in the order of sequence 0, or 1


def first_states(ends: tuple[States, States], *, adjoint: bool, interpret: bool) -> States:
    """Return the state before each chunk, or ν after it, from the maps that chunks apply to it.

    A program has all chunks of a direction, image and block of channels, in groups: it composes
    the maps of each group, all groups side by side, then the groups', then those of each again.
    """
    _, b, num_chunks, c = ends[0].shape
    groups = max(LOADED, pl.next_power_of_2(math.isqrt(num_chunks)))
    length = pl.cdiv(pl.cdiv(num_chunks, groups), LOADED) * LOADED
    of_groups = jax.ShapeDtypeStruct((4, b, groups, c), jnp.float32)
    states, *_ = pl.pallas_call(
        functools.partial(_compose, groups, length, adjoint, interpret),
        grid=(pl.cdiv(c, BLOCK), 4, b),
        out_shape=(ends[0], *[of_groups] * 3),
        compiler_params=triton.CompilerParams(num_warps=groups // 8, num_stages=1),
        interpret=interpret,
        name="scan_first_states",
    )(*ends)
    return states


def _compose(groups: int, length: int, adjoint: bool, interpret: bool, *refs: Any) -> None:
    """Compute the state before each chunk; see `first_states`."""
    decay_ref, last_ref, first_ref, *of_groups, group_first_ref = refs
    num_chunks, c = decay_ref.shape[2:]
    block, direction, image = map(pl.program_id, range(3))
    channels = (block * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32))[None]
    is_channel, is_reverse = channels < c, (direction > 1) != adjoint
    all_groups = jnp.arange(groups, dtype=jnp.int32)[:, None]

    def chunks(i: Any) -> tuple[Any, Array]:
        """Return the position of chunk i of each group, and whether there is one."""
        index = all_groups * length + i
        is_chunk = index < num_chunks
        index = jnp.where(is_reverse & is_chunk, num_chunks - 1 - index, index)
        return (direction, image, index, channels), is_chunk & is_channel

    def group(i: Any) -> tuple[Any, Array]:
        return (direction, image, jnp.full((1, 1), i), channels), is_channel

    def fold(position: Callable, refs: Any, number: int, step: Callable, carry: Any) -> Any:
        """Apply `step(at, mask, carry, decay, last)` to positions 0, 1, …"""

        def load(i: Any) -> Any:
            at, mask = position(i)
            maps = zip(refs, (1.0, 0.0), strict=True)
            return at, mask, [triton.load(ref.at[at], mask=mask, other=x) for ref, x in maps]

        def some(i: Any, carry: Any) -> Any:
            loaded = [load(LOADED * i + j) for j in range(LOADED)]
            for at, mask, maps in loaded:
                carry = step(at, mask, carry, *maps)
            return carry

        return lax.fori_loop(0, number // LOADED, some, carry)

    def compose(at: Any, mask: Array, carry: Any, decay: Array, last: Array) -> Any:
        return carry[0] * decay, decay * carry[1] + last

    def store_first(ref: Any, at: Any, mask: Array, state: Any, decay: Array, last: Array) -> Any:
        triton.store(ref.at[at], state, mask=mask)
        return decay * state + last

    def barrier() -> None:
        if not interpret:
            triton.debug_barrier()

    refs, here = (decay_ref, last_ref), (direction, image, all_groups, channels)
    zero = jnp.zeros((groups, BLOCK), jnp.float32)
    maps = fold(chunks, refs, length, compose, (zero + 1, zero))
    for ref, value in zip(of_groups, maps, strict=True):
        triton.store(ref.at[here], value, mask=is_channel)
    barrier()
    step = functools.partial(store_first, group_first_ref)
    fold(group, of_groups, groups, step, jnp.zeros((1, BLOCK), jnp.float32))
    barrier()
    state = triton.load(group_first_ref.at[here], mask=is_channel, other=0.0)
    fold(chunks, refs, length, functools.partial(store_first, first_ref), state)
