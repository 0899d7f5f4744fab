"""The TPU compiler takes the kernels of retention over padded images."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from segret_jax.aot.chips import topology
from segret_jax.models.retention.blocked import blocked_retention

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu"),
]


@pytest.mark.parametrize(
    ("decomposed", "shape"), [(True, (2, 128, 192, 4, 16)), (False, (2, 16, 24, 16, 32))]
)
def test_the_true_size_is_an_argument_of_the_kernel(decomposed, shape):
    sharding = jax.sharding.SingleDeviceSharding(topology("v5e:2x2").devices[0])
    tokens = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
    side = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding)
    log_decay = (-0.1,) * shape[3]

    def attend(q: Any, k: Any, v: Any, *size: Any) -> Any:
        return blocked_retention(q, k, v, log_decay, decomposed=decomposed, size=size)

    program = jax.jit(attend).lower(tokens, tokens, tokens, side, side).compile()
    assert program.as_text().count('custom_call_target="tpu_custom_call"') == 1 + decomposed
