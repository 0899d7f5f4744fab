"""Neighborhood attention in the form that is fastest on the devices.

On CPU it is computed by tiles (`neighborhood.blocked`), on NVIDIA GPUs and TPUs by kernels
(`neighborhood.gpu`, `neighborhood.tpu`), elsewhere by tiles, too. All compute
`formulas.neighborhood_attention`, keep no logits for the backward pass, and have gradients of their
own.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from segret_jax.models.kernels import (
    ANY_PLATFORM,
    Platform,
    by_image,
    is_full_precision,
    on_each_device,
)
from segret_jax.models.layers import MapSize
from segret_jax.models.neighborhood import blocked
from segret_jax.models.neighborhood.formulas import Bias, Heads, check_size

ON_ALL = PartitionSpec()


def fast_neighborhood_attention(
    q: Heads,
    k: Heads,
    v: Heads,
    bias: Bias,
    *,
    size: MapSize | None = None,
    platform: Platform = ANY_PLATFORM,
) -> Heads:
    """Compute `neighborhood_attention`.

    On several devices the caller says how the images are split, as for retention
    (`retention.blocked`).

    Args:
        q: Queries, scaled.
        k: Keys.
        v: Values.
        bias: The bias of each relative position; its shape tells the window's side.
        size: The true height and width, at least the window's side; None: those of the arrays.
        platform: The devices (`kernels.platform_of`).

    Returns:
        The attended values, in the dtype of v.

    Raises:
        ValueError: The array is smaller than a window.
    """
    check_size(q, bias)
    if size is not None or not platform.is_cpu:  # on CPU the size of whole arrays is a constant
        height, width = size or q.shape[1:3]
        size = jnp.asarray(height, jnp.int32), jnp.asarray(width, jnp.int32)
    # The backward pass is traced after the caller's precision context has ended: pass it along.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return _attend(q, k, v, bias, size, (platform, precision))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q: Array, k: Array, v: Array, bias: Array, size: Any, options: Any) -> Array:
    return _forward(q, k, v, bias, size, options)[0]


def _forward(
    q: Array, k: Array, v: Array, bias: Array, size: Any, options: Any
) -> tuple[Array, Any]:
    out, log_total = _forward_of_shape(options, q, k, v, bias, size)
    return out, (q, k, v, bias, size, out, log_total)


def _backward(options: Any, saved: Any, out_grad: Array) -> tuple[Any, ...]:
    # The barrier keeps XLA from saving the forward pass's tiles instead of reading them again.
    saved = lax.optimization_barrier(saved)
    *grads, bias_grad = _backward_of_shape(options, *saved, out_grad)
    return *grads, bias_grad.astype(saved[3].dtype), None


_attend.defvjp(_forward, _backward)


# Inlined into its caller, but traced once for all layers of one shape.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _forward_of_shape(options: Any, *arrays: Any) -> tuple[Array, Array]:
    run = functools.partial(_on_platform, "forward", options)
    if options[0].is_cpu:
        return run(*arrays)
    images = by_image(0)
    in_specs = (images, images, images, ON_ALL, ON_ALL)
    return on_each_device(run, in_specs, (images, images))(*arrays)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _backward_of_shape(options: Any, *arrays: Any) -> tuple[Array, ...]:
    def run(*arrays: Any) -> tuple[Array, ...]:
        *grads, bias_grad = _on_platform("backward", options, *arrays)
        return *grads, bias_grad[None]

    if options[0].is_cpu:
        return _on_platform("backward", options, *arrays)
    images = by_image(0)
    in_specs = (images, images, images, ON_ALL, ON_ALL, images, images, images)
    *grads, bias_grad = on_each_device(run, in_specs, (images,) * 4)(*arrays)
    return *grads, bias_grad.sum(0)  # over the devices


def _on_platform(name: str, options: Any, *arrays: Any) -> Any:
    """Call `forward` or `backward` of the module for the platform."""
    (platform, precision), q, bias = options, arrays[0], arrays[3]
    by_tiles = functools.partial(getattr(blocked, name), precision=precision)
    if platform.is_cpu:
        return by_tiles(*arrays)
    from segret_jax.models.neighborhood import gpu, tpu  # with Pallas, which CPUs do not need

    branches: dict[str, Any] = {}
    full_precision = is_full_precision(precision, q.dtype)
    if gpu.fits(q, bias, platform.capability):
        branches["cuda"] = functools.partial(getattr(gpu, name), full_precision=full_precision)
    if tpu.fits(q, bias):
        branches["tpu"] = functools.partial(getattr(tpu, name), full_precision=full_precision)
    if not branches:
        return by_tiles(*arrays)
    return lax.platform_dependent(*arrays, default=by_tiles, **branches)
