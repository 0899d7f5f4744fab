"""The layer around the two-dimensional selective scan: its projections and weights."""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from segret_jax.models.kernels import Kernels, Platform
from segret_jax.models.layers import FeatureMap, MapSize, accum_dtype, draw, uniform_init
from segret_jax.models.selective_scan.formulas import ScanWeights, selective_scan_2d
from segret_jax.models.selective_scan.scan import fast_selective_scan_2d

DIRECTIONS = 4


class SelectiveScan(nnx.Module):
    """SS2D: the scan of `selective_scan.formulas`, with dt, B and C projected from its input.

    No input or output projection, no gate, no norm. Δ has rank ⌈c/16⌉.
    """

    def __init__(self, channels: int, *, kernels: Kernels, platform: Platform, rngs: nnx.Rngs):
        rank = math.ceil(channels / 16)
        init, dt_init = uniform_init(channels), uniform_init(rank)
        width = DIRECTIONS * (rank + 2)
        self.project = nnx.Param(init(rngs.params(), (channels, width)))
        self.dt_kernel = nnx.Param(dt_init(rngs.params(), (DIRECTIONS, rank, channels)))
        self.dt_bias = nnx.Param(_initial_bias(rngs.params(), (DIRECTIONS, channels)))
        self.a_log = nnx.Param(jnp.zeros((DIRECTIONS, channels)))  # A = −1
        self.skip = nnx.Param(jnp.ones((DIRECTIONS, channels)))
        self.kernels, self.platform = kernels, platform

    def __call__(self, x: FeatureMap, *, size: MapSize | None = None) -> FeatureMap:
        """Return the scanned map in float32, whatever the dtype of x; `size` is its true size."""
        kernel, dtype = self.project[...].astype(x.dtype), accum_dtype(x.dtype)
        projections = jnp.einsum("bhwc,cp->bhwp", x, kernel, preferred_element_type=dtype)
        projections = projections.reshape(*x.shape[:3], DIRECTIONS, -1)
        weights = ScanWeights(
            *(p[...] for p in (self.dt_kernel, self.dt_bias, self.a_log, self.skip))
        )
        if self.kernels is Kernels.REFERENCE:
            return selective_scan_2d(x, projections, weights, size=size)
        return fast_selective_scan_2d(x, projections, weights, size=size, platform=self.platform)


def _initial_bias(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Return the inverse softplus of step sizes that are log-uniform from 1e-3 to 1e-1."""
    low, high = math.log(1e-3), math.log(1e-1)
    step = draw(key, lambda rng: np.exp(rng.uniform(low, high, shape)), shape, dtype)
    return step + jnp.log(-jnp.expm1(-step))
