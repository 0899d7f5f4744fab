"""What the TPU compiler makes of SegMAN's operations, as tiny and small have them at 512×512."""

import importlib.util
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from segret_jax.aot.chips import topology
from segret_jax.models.kernels import platform_of
from segret_jax.models.neighborhood.attention import fast_neighborhood_attention
from segret_jax.models.segman.encoder import GLOBAL_STAGE
from segret_jax.models.segman.global_attention import TOKENS, global_attention
from segret_jax.models.segman.variants import VARIANTS
from segret_jax.models.selective_scan.formulas import ScanWeights
from segret_jax.models.selective_scan.scan import fast_selective_scan_2d

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu"),
]
CASES = [(variant, stage) for variant in ("tiny", "small") for stage in range(4)]
ARRAY = re.compile(r"\b[a-z]+\d*\[([\d,]+)\]")  # such as bf16[2,128]


def program(operation: Any, *shapes: Any) -> str:
    """Return the compiled program of an operation with its backward pass."""
    device = topology("v5e:2x2").devices[0]
    sharding, platform = jax.sharding.SingleDeviceSharding(device), platform_of([device])

    def run(*args: Any) -> Any:
        out, pull = jax.vjp(lambda *args: operation(*args, platform=platform), *args)
        return pull(out)

    args = jax.tree.map(
        lambda t: jax.ShapeDtypeStruct(*t, sharding=sharding), shapes, is_leaf=_leaf
    )
    return jax.jit(run).lower(*args).compile().as_text()


def sizes(text: str) -> list[int]:
    """Return the number of elements of each array that a program, or a line of it, names."""
    return [math.prod(map(int, axes.split(","))) for axes in ARRAY.findall(text)]


def kernel_outputs(text: str) -> list[list[int]]:
    """Return the sizes of what each kernel writes to memory."""
    lines = (line for line in text.splitlines() if 'target="tpu_custom_call"' in line)
    return [sizes(line.partition("custom-call(")[0]) for line in lines]


def _leaf(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], tuple)


def map_shape(variant: str, stage: int) -> tuple[int, ...]:
    side = 128 // 2**stage
    return (2, side, side, VARIANTS[variant].widths[stage])


@pytest.mark.parametrize(("variant", "stage"), CASES)
def test_no_array_has_the_logits_of_a_window_for_each_pixel(variant, stage):
    shape, heads = map_shape(variant, stage), VARIANTS[variant].heads[stage]
    window = VARIANTS[variant].windows[stage]
    offsets = 2 * window - 1
    tokens = (*shape[:3], heads, shape[3] // heads), jnp.bfloat16
    bias = (heads, offsets, offsets), jnp.float32
    text = program(fast_neighborhood_attention, tokens, tokens, tokens, bias)
    assert len(kernel_outputs(text)) == 3
    largest = max(sizes(text))
    assert largest <= 2 * math.prod(shape)  # rows, blocks and channels of heads are padded
    assert largest < math.prod(shape[:3]) * heads * window**2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("variant", "stage"), [case for case in CASES if case[1] != GLOBAL_STAGE])
def test_no_array_has_the_states_of_all_steps(variant, stage, dtype):
    """Nor Δ. Of one direction they would be as large as the map, as few outputs of kernels are."""
    shape = map_shape(variant, stage)
    rank = math.ceil(shape[3] / 16)
    vectors = ((4, shape[3]), jnp.float32)
    weights = ScanWeights(((4, rank, shape[3]), jnp.float32), vectors, vectors, vectors)
    projections = (*shape[:3], 4, rank + 2), jnp.float32
    text = program(fast_selective_scan_2d, (shape, dtype), projections, weights)
    assert max(sizes(text)) <= math.prod(shape)
    written = kernel_outputs(text)
    assert len(written) == 8  # four directions, forward and backward
    for result, *others in written:  # the direction's y or the gradient of x, and what is kept
        assert result == math.prod(shape)
        assert sum(others) < math.prod(shape) / 2


@pytest.mark.parametrize("variant", ["tiny", "small"])
def test_global_attention_holds_no_scores_in_memory(variant):
    """At 1024×2048, where a head has 2048² of them."""
    heads, width = VARIANTS[variant].heads[GLOBAL_STAGE], VARIANTS[variant].widths[GLOBAL_STAGE]
    tokens = (1, 32, 64, heads, width // heads), jnp.bfloat16
    bias = (heads, TOKENS, TOKENS), jnp.float32

    def attend(q: Any, k: Any, v: Any, bias: Any, *, platform: Any) -> Any:
        return global_attention(q, k, v, bias)

    text = program(attend, tokens, tokens, tokens, bias)
    assert kernel_outputs(text)
    # Queries and keys with the bias, whose channels are padded.
    assert max(sizes(text)) <= 2048 * heads * 128
