"""The forward pass for inference: normalization, then the network."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from segret_jax.models.layers import MapSize
from segret_jax.normalization import MEAN, STD

Images = UInt8[Array, "b H W 3"] | Float[Array, "b H W 3"]


def forward(
    graph: nnx.GraphDef[Any], variables: Any, images: Images, size: MapSize | None = None
) -> Float[Array, "b *h_w k"]:
    """Return the logits of a batch of images.

    Args:
        graph: The graph of a `ModelBundle`.
        variables: The parameters and the batch statistics.
        images: RGB; uint8 from 0 to 255, or floats that are normalized already.
        size: The true height and width of all images, if they are padded (`takes_size`).

    Returns:
        [b, h, w, k] of a segmentation model, [b, k] of a classifier.
    """
    options = {} if size is None else {"size": size}
    return nnx.merge(graph, *variables)(normalized(images), **options)


def takes_size(bundle: Any) -> bool:
    """Return whether the network takes padded images with their true size.

    Args:
        bundle: A `ModelBundle`; shapes in the place of arrays will do.
    """
    return getattr(nnx.merge(*bundle), "takes_size", False)


def stride_of(bundle: Any) -> int:
    """Return the stride of a model's logits.

    Args:
        bundle: A `ModelBundle`; shapes in the place of arrays will do.

    Returns:
        The stride s: a side of n pixels gives ⌈n/s⌉ logits.
    """
    return nnx.merge(*bundle).stride


def stage_maps(graph: nnx.GraphDef[Any], variables: Any, images: Images) -> dict[str, Array]:
    """Return the maps that `segret verify` compares.

    Args:
        graph: The graph of a `ModelBundle`.
        variables: The parameters and the batch statistics.
        images: RGB; uint8 from 0 to 255, or floats that are normalized already.

    Returns:
        {name: map}, with the names of `Implementation.stages`, the logits last.
    """
    model = nnx.merge(graph, *variables)
    images = normalized(images)
    return model.stages(images) if hasattr(model, "stages") else {"logits": model(images)}


def normalized(images: Images) -> Float[Array, "b H W 3"]:
    """Normalize 8-bit images, as `data.transforms.normalize` does on the host."""
    if images.dtype != jnp.uint8:
        return images
    return (images.astype(jnp.float32) - MEAN[None, None, None]) / STD[None, None, None]
