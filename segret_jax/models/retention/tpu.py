"""The blocks of `retention.blocked` on a TPU: a Pallas kernel whose scores stay on the chip.

One step of its grid is one block. The formulas are those of every other platform, handed in as a
function; here is what moves: a block's queries and its line's keys from memory, the results back.

In memory the arrays lie as [g, b, d, l]: a TPU fills the last axis up to a multiple of 128, and
heads are narrower than that.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

LANES = 128  # numbers side by side in a register: axes are filled up to a multiple
MAX_SCORES = 2**18  # of a block, of all its images, or those of LANES queries; 1 MB
MAX_KEYS = 3 * 2**13  # of a line, times the arrays of a block: bounds those of LANES queries

Arrays = tuple[Array, ...]


def fits(queries: Arrays, keys: Arrays) -> bool:
    """Tell whether `by_kernel` can do it: in 16 MB, which a v4 has, and not in float64.

    Found by compiling for heads of up to 32 channels, those of all variants.
    """
    keys_in_all = queries[0].shape[2] * (len(queries) + len(keys))
    return keys_in_all <= MAX_KEYS and queries[0].dtype != jnp.float64


def by_kernel(
    of_block: Callable[..., tuple[Arrays, Arrays]],
    queries: Arrays,
    keys: Arrays,
    log_decay: Float[Array, " g"],
    *,
    interpret: bool = False,
) -> tuple[Arrays, Arrays]:
    """Apply `of_block(queries, keys, log_decay, start)` to every block of every line.

    Queries and keys are [g, b, l, _], such that they fit. A block is of one line and some of
    the images: of_block gets arrays [b', q, _] and [b', l, _], and returns a tuple of arrays like
    the former, and one like the latter, which are added up over the line's blocks. `interpret` runs
    the kernel anywhere, slowly.
    """
    num_lines, b, length, _ = queries[0].shape
    size, images = _block_shape(length, b)
    num_blocks = -(-length // size)
    grid = (num_lines, b // images, num_blocks)

    def shapes(arrays: Arrays, *leading: int) -> Any:
        return tuple(jax.ShapeDtypeStruct((*leading, t.shape[-1]), t.dtype) for t in arrays)

    scalars = jax.ShapeDtypeStruct((), log_decay.dtype), jax.ShapeDtypeStruct((), jnp.int32)
    block = shapes(queries, images, size), shapes(keys, images, length), *scalars
    found = jax.eval_shape(of_block, *block)

    def whole(t: Any, length: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((num_lines, b, t.shape[-1], length), t.dtype)

    def specs(of_queries: Any, of_keys: Any) -> tuple[Any, Any]:
        def spec(t: Any, length: int, index: Callable) -> pl.BlockSpec:
            return pl.BlockSpec((1, images, t.shape[-1], length), index)

        return (
            tuple(spec(t, size, lambda g, b, q: (g, b, 0, q)) for t in of_queries),
            tuple(spec(t, length, lambda g, b, q: (g, b, 0, 0)) for t in of_keys),
        )

    padding = num_blocks * size - length  # by zeros, which add nothing to the keys' sums
    inputs = (
        log_decay,
        tuple(jnp.pad(jnp.swapaxes(t, 2, 3), [(0, 0)] * 3 + [(0, padding)]) for t in queries),
        tuple(jnp.swapaxes(t, 2, 3) for t in keys),
    )
    outputs = (
        tuple(whole(t, num_blocks * size) for t in found[0]),
        tuple(whole(t, length) for t in found[1]),
    )
    for_queries, for_keys = pl.pallas_call(
        functools.partial(_kernel, of_block, size),
        grid=grid,
        in_specs=(pl.BlockSpec(memory_space=pltpu.SMEM), *specs(queries, keys)),
        out_specs=specs(*found),
        out_shape=outputs,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=_cost(pl.estimate_cost(of_block, *block), grid, (inputs, outputs)),
        interpret=interpret,
    )(*inputs)
    return (
        tuple(jnp.swapaxes(t, 2, 3)[:, :, :length] for t in for_queries),
        tuple(jnp.swapaxes(t, 2, 3) for t in for_keys),
    )


def _block_shape(length: int, num_images: int) -> tuple[int, int]:
    """Return the queries and the images of a block."""
    size = min(length, max(LANES, MAX_SCORES // length // LANES * LANES))
    most = min(num_images, max(1, MAX_SCORES // (_filled(size) * _filled(length))))
    return size, next(n for n in range(most, 0, -1) if num_images % n == 0)


def _kernel(of_block: Callable, size: int, log_decay: Any, *refs: Any) -> None:
    """Compute a block of `size` queries: from queries and keys, both results, as four `refs`."""
    queries, keys, for_queries, for_keys = refs
    line, block = pl.program_id(0), pl.program_id(2)
    given = jax.tree.map(lambda ref: jnp.swapaxes(ref[0], 1, 2), (queries, keys))
    found = of_block(*given, log_decay[line], block * size)
    of_queries, of_keys = jax.tree.map(lambda t: jnp.swapaxes(t, 1, 2), found)
    for ref, value in zip(for_queries, of_queries, strict=True):
        ref[0] = value

    @pl.when(block == 0)
    def _start_line() -> None:
        for ref in for_keys:  # the same memory for all blocks of a line
            ref[...] = jnp.zeros_like(ref)

    for ref, value in zip(for_keys, of_keys, strict=True):
        ref[0] += value


def _cost(of_block: pl.CostEstimate, grid: tuple[int, ...], arrays: Any) -> pl.CostEstimate:
    """Return what all blocks cost; from and to memory go only `arrays`, each once."""
    return pl.CostEstimate(
        flops=of_block.flops * math.prod(grid),
        transcendentals=of_block.transcendentals * math.prod(grid),
        bytes_accessed=sum(math.prod(t.shape) * t.dtype.itemsize for t in jax.tree.leaves(arrays)),
    )


def _filled(length: int) -> int:
    return -(-length // LANES) * LANES
