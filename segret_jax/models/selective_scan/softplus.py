"""Softplus inside kernels, where log1p is slow on a GPU and inexact on a TPU."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

# log1p(x)/x in [0, 1], from the highest power down: fitted at Chebyshev nodes, right to 2e-7.
LOG1P = (
    0.005105826, -0.028991956, 0.077380738, -0.135906002, 0.190713096,
    -0.248339455, 0.333179343, -0.499994357, 0.999999965,
)  # fmt: skip


def softplus(z: Array, decay: Callable, fma: Callable) -> Array:
    """Return log(1 + exp(z)), by decay(x) = exp(−x) and fma(a, b, c) = a·b + c."""
    power = decay(jnp.abs(z))
    log1p = fma(LOG1P[0], power, LOG1P[1])
    for coefficient in LOG1P[2:]:
        log1p = fma(log1p, power, coefficient)
    return fma(log1p, power, jnp.maximum(z, 0))
