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


def largest_array(operation: Any, *shapes: Any) -> int:
    """Return the size of the largest array outside of kernels, with the backward pass."""
    device = topology("v5e:2x2").devices[0]
    sharding, platform = jax.sharding.SingleDeviceSharding(device), platform_of([device])

    def run(*args: Any) -> Any:
        out, pull = jax.vjp(lambda *args: operation(*args, platform=platform), *args)
        return pull(out)

    args = jax.tree.map(
        lambda t: jax.ShapeDtypeStruct(*t, sharding=sharding), shapes, is_leaf=_leaf
    )
    text = jax.jit(run).lower(*args).compile().as_text()
    assert 'custom_call_target="tpu_custom_call"' in text
    arrays = re.findall(r"\b(?:f32|bf16|s32|pred)\[([\d,]+)\]", text)
    return max(math.prod(map(int, axes.split(","))) for axes in arrays)


def _leaf(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], tuple)


def map_shape(variant: str, stage: int) -> tuple[int, ...]:
    side = 128 // 2**stage
    return (2, side, side, VARIANTS[variant].widths[stage])


@pytest.mark.parametrize(("variant", "stage"), CASES)
def test_no_array_has_the_logits_of_a_window_for_each_pixel(variant, stage):
    """They would be from 3 (stage 1 of tiny) to 1.5 times (stage 4) as large as the bound."""
    shape, heads = map_shape(variant, stage), VARIANTS[variant].heads[stage]
    offsets = 2 * VARIANTS[variant].windows[stage] - 1
    tokens = (*shape[:3], heads, shape[3] // heads), jnp.bfloat16
    bias = (heads, offsets, offsets), jnp.float32
    found = largest_array(fast_neighborhood_attention, tokens, tokens, tokens, bias)
    assert found <= 2 * math.prod(shape)  # rows, blocks and channels of heads are padded


@pytest.mark.parametrize(("variant", "stage"), [case for case in CASES if case[1] != GLOBAL_STAGE])
def test_no_array_has_the_states_of_all_steps(variant, stage):
    """Nor Δ: they would be four times as large as the map."""
    shape = map_shape(variant, stage)
    rank = math.ceil(shape[3] / 16)
    vectors = ((4, shape[3]), jnp.float32)
    weights = ScanWeights(((4, rank, shape[3]), jnp.float32), vectors, vectors, vectors)
    projections = (*shape[:3], 4, rank + 2), jnp.float32
    found = largest_array(fast_selective_scan_2d, (shape, jnp.bfloat16), projections, weights)
    assert found <= math.prod(shape)


@pytest.mark.parametrize("variant", ["tiny", "small"])
def test_global_attention_holds_no_scores_in_memory(variant):
    """At 1024×2048, where a head has 2048² of them."""
    heads, width = VARIANTS[variant].heads[GLOBAL_STAGE], VARIANTS[variant].widths[GLOBAL_STAGE]
    tokens = (1, 32, 64, heads, width // heads), jnp.bfloat16
    bias = (heads, TOKENS, TOKENS), jnp.float32

    def attend(q: Any, k: Any, v: Any, bias: Any, *, platform: Any) -> Any:
        return global_attention(q, k, v, bias)

    found = largest_array(attend, tokens, tokens, tokens, bias)
    assert found <= 2048 * heads * 128  # queries and keys with the bias, whose channels are padded
