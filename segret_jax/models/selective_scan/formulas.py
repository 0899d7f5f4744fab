"""The two-dimensional selective scan (SS2D): four state-space recurrences over an image.

The image is read as four sequences of tokens p_t, each of which sees what came before:

    0  row by row            2  sequence 0 from its end
    1  column by column      3  sequence 1 from its end

Each has a state of one number h per channel c (Mamba with a state of width 1). Of a token, three
projections depend on it: Δ of low rank r, and the scalars B and C, which all channels share:

    Δ_t = softplus(W dt_t + bias),    a_t = exp(−exp(a_log)·Δ_t)
    h_t = a_t h_{t−1} + Δ_t B_t p_t,  y_t = C_t h_t + D p_t

The output is the sum of the four sequences' y at each pixel (VMamba, arXiv 2401.10166; Mamba,
arXiv 2312.00752).

This file is the formulas as written: an associative scan over whole sequences, of the operator
(a, b)∘(a', b') = (a·a', a'·b + b'). With `model.kernels=reference` the model runs them, and can be
exported (`jax.export`) at one size; by default `selective_scan.scan` computes the same with few
states in memory.

Arrays may be padded: `size` is the true height and width. Padding leaves the state as it is
(Δ = 0); outputs there mean nothing. Shapes: b batch, h w space, c channels, l tokens.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from segret_jax.models.layers import FeatureMap, MapSize, accum_dtype, per_channel

Projections = Float[Array, "b h w 4 p"]  # of each token and direction: dt (r), B (1), C (1)


class ScanWeights(NamedTuple):
    """The weights of the four directions; float32."""

    dt_kernel: Float[Array, "4 r c"]  # W
    dt_bias: Float[Array, "4 c"]
    a_log: Float[Array, "4 c"]
    skip: Float[Array, "4 c"]  # D


def selective_scan_2d(
    x: FeatureMap, projections: Projections, weights: ScanWeights, *, size: MapSize | None = None
) -> FeatureMap:
    """Compute the sum of the four scans.

    Args:
        x: The tokens.
        projections: dt, B and C of each token, for each direction.
        weights: The weights of the directions.
        size: The true height and width; None: those of the arrays.

    Returns:
        The sum over the directions; float32 (float64 for float64) whatever the dtype of x.
    """
    dtype = accum_dtype(x.dtype)
    is_inside, x = inside(x.shape[1:3], size), x.astype(dtype)

    def scan(direction: int) -> FeatureMap:
        own = ScanWeights(*(weight[direction].astype(dtype) for weight in weights))
        scanned = functools.partial(_scan, weights=own, reverse=direction > 1)
        arrays = x, projections[..., direction, :].astype(dtype), is_inside[None]
        if direction % 2 == 0:
            return scanned(*arrays)
        return jnp.swapaxes(scanned(*(jnp.swapaxes(t, 1, 2) for t in arrays)), 1, 2)

    return functools.reduce(jnp.add, map(scan, range(4)))


def _scan(
    x: FeatureMap,
    projections: Float[Array, "b h w p"],
    is_inside: Bool[Array, "1 h w"],
    *,
    weights: ScanWeights,
    reverse: bool,
) -> FeatureMap:
    """Scan row by row."""
    dt, b, c = split_projections(projections)
    bias, a_log, skip = (per_channel(vector, 4) for vector in weights[1:])
    delta = jnp.einsum("bhwr,rc->bhwc", dt, weights.dt_kernel, precision="highest")
    delta = jax.nn.softplus(delta + bias)
    delta = jnp.where(is_inside[..., None], delta, 0)
    decay, update = jnp.exp(-jnp.exp(a_log) * delta), delta * b * x
    tokens = (t.reshape(len(t), -1, t.shape[-1]) for t in (decay, update))  # [b, l, c]
    _, state = jax.lax.associative_scan(_compose, tuple(tokens), axis=1, reverse=reverse)
    return c * state.reshape(x.shape) + skip * x


def _compose(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the map h ↦ a h + b that applies `first`, then `then`."""
    return first[0] * then[0], then[0] * first[1] + then[1]


def split_projections(
    projections: Float[Array, "*b p"],
) -> tuple[Float[Array, "*b r"], Float[Array, "*b 1"], Float[Array, "*b 1"]]:
    """Return dt, B and C."""
    return projections[..., :-2], projections[..., -2:-1], projections[..., -1:]


def inside(shape: tuple[int, ...], size: MapSize | None) -> Bool[Array, "h w"]:
    """Return which pixels of a padded array of this height and width are the image's."""
    height, width = size or shape
    return (jnp.arange(shape[0]) < height)[:, None] & (jnp.arange(shape[1]) < width)[None]
