"""The blocks of `retention.blocked` on a TPU: a Pallas kernel whose scores stay on the chip.

One step of the grid is one block. The formulas are those of every other platform, passed as a
function; this module moves the data: a block's queries and its sequence's keys from memory, the
results back.

In memory the arrays are [g, b, d, l]: a TPU pads the last axis to a multiple of 128, and heads are
narrower than that.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from segret_jax.models.retention.sequences import Arrays

LANES = 128  # of a register: axes are padded to a multiple
MAX_SCORES = 2**18  # of a block, over all its images, or those of LANES queries; 1 MB
MAX_KEYS = 3 * 2**13  # of a sequence, times the arrays of a block: bounds those of LANES queries


def fits(queries: Arrays, keys: Arrays) -> bool:
    """Return whether `by_kernel` supports these inputs: in the 16 MB of a v4, not in float64.

    The bound is from compiling for heads of up to 32 channels, those of SegRet's variants. SegMAN's
    global attention has more, but few keys: tests compile it, too.
    """
    keys_in_all = queries[0].shape[2] * (len(queries) + len(keys))
    return keys_in_all <= MAX_KEYS and queries[0].dtype != jnp.float64


def by_kernel(
    of_block: Callable[..., tuple[Arrays, Arrays]],
    queries: Arrays,
    keys: Arrays,
    log_decay: Float[Array, " g"],
    size: Int32[Array, "2"] | None = None,
    *,
    interpret: bool = False,
) -> tuple[Arrays, Arrays]:
    """Apply `of_block(queries, keys, log_decay, size, start)` to every block of every sequence.

    Queries and keys are [g, b, l, _], such that they fit. A block is of one sequence and some of
    the images: of_block gets arrays [b', q, _] and [b', l, _], and returns a tuple of arrays like
    the former, and one like the latter, which are summed over the sequence's blocks. `interpret`
    runs the kernel anywhere, slowly.
    """
    count, b, length, _ = queries[0].shape
    num_queries, images = _block_shape(length, b)
    num_blocks = -(-length // num_queries)
    grid = (count, b // images, num_blocks)

    def block_of(arrays: Arrays, length: int) -> Any:
        return tuple(jax.ShapeDtypeStruct((images, length, t.shape[-1]), t.dtype) for t in arrays)

    start = jax.ShapeDtypeStruct((), jnp.int32)
    scalars = jax.ShapeDtypeStruct((), log_decay.dtype), None if size is None else (start,) * 2
    block = block_of(queries, num_queries), block_of(keys, length), *scalars, start
    found = jax.eval_shape(of_block, *block)

    order: Any = ("parallel", "parallel", "arbitrary")

    def specs(arrays: Any) -> Any:
        def of_queries(t: Any) -> pl.BlockSpec:
            return pl.BlockSpec((1, images, t.shape[-1], num_queries), lambda g, b, q: (g, b, 0, q))

        def of_keys(t: Any) -> pl.BlockSpec:
            return pl.BlockSpec((1, images, t.shape[-1], length), lambda g, b, q: (g, b, 0, 0))

        return tuple(map(of_queries, arrays[0])), tuple(map(of_keys, arrays[1]))

    def results(arrays: Any, length: int) -> Any:
        return tuple(jax.ShapeDtypeStruct((count, b, t.shape[-1], length), t.dtype) for t in arrays)

    padding = num_blocks * num_queries - length  # by zeros, which add nothing to the keys' sums
    inputs = (
        (log_decay,) if size is None else (log_decay, size),
        tuple(jnp.pad(_transpose(t), [(0, 0)] * 3 + [(0, padding)]) for t in queries),
        tuple(map(_transpose, keys)),
    )
    outputs = results(found[0], num_blocks * num_queries), results(found[1], length)
    for_queries, for_keys = pl.pallas_call(
        functools.partial(_kernel, of_block, num_queries),
        grid=grid,
        in_specs=(
            (pl.BlockSpec(memory_space=pltpu.SMEM),) * len(inputs[0]),
            *specs((queries, keys)),
        ),
        out_specs=specs(found),
        out_shape=outputs,
        compiler_params=pltpu.CompilerParams(dimension_semantics=order),
        cost_estimate=_cost(pl.estimate_cost(of_block, *block), grid, (inputs, outputs)),
        interpret=interpret,
    )(*inputs)
    for_queries = tuple(_transpose(t)[:, :, :length] for t in for_queries)
    return for_queries, tuple(map(_transpose, for_keys))


def _transpose(x: Array) -> Array:
    return jnp.swapaxes(x, -2, -1)


def _block_shape(length: int, num_images: int) -> tuple[int, int]:
    """Return the number of queries and of images of a block."""
    size = min(length, max(LANES, MAX_SCORES // length // LANES * LANES))
    most = min(num_images, max(1, MAX_SCORES // (_padded(size) * _padded(length))))
    return size, next(n for n in range(most, 0, -1) if num_images % n == 0)


def _kernel(of_block: Callable, num_queries: int, scalars: Any, *refs: Any) -> None:
    """Compute a block of queries; the refs are queries, keys and the two results."""
    (log_decay, *sizes), (queries, keys, for_queries, for_keys) = scalars, refs
    sequence, block = pl.program_id(0), pl.program_id(2)
    given = jax.tree.map(lambda ref: _transpose(ref[0]), (queries, keys))
    size = (sizes[0][0], sizes[0][1]) if sizes else None
    found = of_block(*given, log_decay[sequence], size, block * num_queries)
    of_queries, of_keys = jax.tree.map(_transpose, found)
    for ref, value in zip(for_queries, of_queries, strict=True):
        ref[0] = value

    @pl.when(block == 0)
    def _start_sequence() -> None:
        for ref in for_keys:  # the same memory for all blocks of a sequence
            ref[...] = jnp.zeros_like(ref)

    for ref, value in zip(for_keys, of_keys, strict=True):
        ref[0] += value


def _cost(of_block: pl.CostEstimate, grid: tuple[int, ...], arrays: Any) -> pl.CostEstimate:
    """Return the cost of all blocks, which read and write `arrays` once."""
    return pl.CostEstimate(
        flops=of_block.flops * math.prod(grid),
        transcendentals=of_block.transcendentals * math.prod(grid),
        bytes_accessed=sum(math.prod(t.shape) * t.dtype.itemsize for t in jax.tree.leaves(arrays)),
    )


def _padded(length: int) -> int:
    return -(-length // LANES) * LANES
