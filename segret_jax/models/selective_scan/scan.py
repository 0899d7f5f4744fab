"""The two-dimensional selective scan in the form that is fastest on the devices.

On CPU it is computed in chunks (`selective_scan.chunked`), on NVIDIA GPUs and TPUs by kernels
(`selective_scan.gpu`, `selective_scan.tpu`), elsewhere in chunks, too. All compute
`formulas.selective_scan_2d`, keep the states between chunks for the backward pass alone, and have
gradients of their own.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from segret_jax.models.kernels import ANY_PLATFORM, Platform, by_image, on_each_device
from segret_jax.models.layers import FeatureMap, MapSize
from segret_jax.models.selective_scan import chunked
from segret_jax.models.selective_scan.formulas import Projections, ScanWeights

ON_ALL = PartitionSpec()


def fast_selective_scan_2d(
    x: FeatureMap,
    projections: Projections,
    weights: ScanWeights,
    *,
    size: MapSize | None = None,
    platform: Platform = ANY_PLATFORM,
) -> FeatureMap:
    """Compute `selective_scan_2d`.

    On several devices the caller says how the images are split, as for retention
    (`retention.blocked`).

    Args:
        x: The tokens.
        projections: dt, B and C of each token, for each direction.
        weights: The weights of the directions.
        size: The true height and width; None: those of the arrays.
        platform: The devices (`kernels.platform_of`).

    Returns:
        The sum over the directions; float32 (float64 for float64) whatever the dtype of x.
    """
    if size is not None or not platform.is_cpu:  # on CPU whole arrays need no mask
        height, width = size or x.shape[1:3]
        size = jnp.asarray(height, jnp.int32), jnp.asarray(width, jnp.int32)
    return _scan(x, projections, weights, size, platform)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _scan(x: Array, projections: Array, weights: ScanWeights, size: Any, platform: Platform) -> Any:
    return _forward(x, projections, weights, size, platform)[0]


def _forward(
    x: Array, projections: Array, weights: ScanWeights, size: Any, platform: Platform
) -> tuple[Array, Any]:
    y, states = _forward_of_shape(platform, x, projections, weights, size)
    return y, (x, projections, weights, size, states)


def _backward(platform: Platform, saved: Any, y_grad: Array) -> tuple[Any, ...]:
    # The barrier keeps XLA from saving the forward pass's states instead of computing them again.
    saved = lax.optimization_barrier(saved)
    return (*_backward_of_shape(platform, *saved, y_grad), None)


_scan.defvjp(_forward, _backward)


# Inlined into its caller, but traced once for all layers of one shape.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _forward_of_shape(platform: Platform, *arrays: Any) -> tuple[Array, Any]:
    if platform.is_cpu:
        return chunked.forward(*arrays)

    def run(*arrays: Any) -> tuple[Array, Array]:
        def packed(form: Any, *arrays: Any) -> tuple[Array, Array]:
            y, states = form.forward(*arrays)
            return y, _pack(states, _num_states(arrays, forms))

        forms = _forms(platform, *arrays)
        return _on_platform(
            {name: functools.partial(packed, f) for name, f in forms.items()}, arrays
        )

    images = by_image(0)
    split = on_each_device(run, (images, images, ON_ALL, ON_ALL), (images, images))
    return split(*arrays)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _backward_of_shape(platform: Platform, *arrays: Any) -> tuple[Array, Array, ScanWeights]:
    if platform.is_cpu:
        return chunked.backward(*arrays)

    def run(*arrays: Any) -> Any:
        def unpacked(form: Any, *arrays: Any) -> Any:
            *inputs, states, y_grad = arrays
            like = jax.eval_shape(form.forward, *inputs)[1]
            *grads, weights_grad = form.backward(*inputs, _unpack(states, like), y_grad)
            return *grads, jax.tree.map(lambda grad: grad[None], weights_grad)

        forms = _forms(platform, *arrays[:4])
        return _on_platform(
            {name: functools.partial(unpacked, f) for name, f in forms.items()}, arrays
        )

    images = by_image(0)
    in_specs = (images, images, ON_ALL, ON_ALL, images, images)
    split = on_each_device(run, in_specs, (images, images, images))
    *grads, weights_grad = split(*arrays)
    return *grads, jax.tree.map(lambda grad: grad.sum(0), weights_grad)  # over the devices


def _forms(platform: Platform, x: Array, projections: Array, *_: Any) -> dict[str, Any]:
    """Return the modules to choose from, by the platform's name."""
    from segret_jax.models.selective_scan import gpu, tpu  # with Pallas, which CPUs do not need

    forms: dict[str, Any] = {"default": chunked}
    if gpu.fits(x, projections, platform.capability):
        forms["cuda"] = gpu
    if tpu.fits(x, projections):
        forms["tpu"] = tpu
    return forms


def _on_platform(branches: dict[str, Any], arrays: Any) -> Any:
    if len(branches) == 1:
        return branches["default"](*arrays)
    return lax.platform_dependent(*arrays, **branches)


def _num_states(arrays: Any, forms: dict[str, Any]) -> int:
    """Return the numbers that the form with most of them keeps: platforms share one array."""
    kept = (jax.eval_shape(form.forward, *arrays)[1] for form in forms.values())
    return max(sum(leaf.size for leaf in jax.tree.leaves(states)) for states in kept)


def _pack(states: Any, length: int) -> Array:
    flat = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(states)])
    return jnp.pad(flat, (0, length - flat.size))


def _unpack(flat: Array, like: Any) -> Any:
    leaves, tree = jax.tree.flatten(like)
    ends = [sum(math.prod(leaf.shape) for leaf in leaves[: i + 1]) for i in range(len(leaves))]
    parts = jnp.split(flat, ends)[:-1]
    pairs = zip(parts, leaves, strict=True)
    return jax.tree.unflatten(tree, [part.reshape(leaf.shape) for part, leaf in pairs])
