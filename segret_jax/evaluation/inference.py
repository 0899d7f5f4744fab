"""Whole-image inference as released: the image to network size, its logits back in two resizes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, UInt8

from segret_jax.config import EvalConfig
from segret_jax.data.transforms import normalise, resize_for_evaluation
from segret_jax.models.layers import resize_bilinear
from segret_jax.models.segret import SegRet

Size = tuple[int, int]  # height, width


class Predictor:
    """A model with its weights, applied to images of any size.

    The network is compiled once for each size of its input, the two resizes of its logits once
    for each size of image; both on the first image of that size.
    """

    def __init__(
        self, graph: nnx.GraphDef[SegRet], params: Any, batch_stats: Any, config: EvalConfig
    ):
        self.graph = graph
        self.variables = (params, batch_stats)
        self.config = config

    def probabilities(self, image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w k"]:
        """Return each pixel's class probabilities at the image's own size."""
        return np.asarray(_to_probabilities(*self._logits(image)))

    def label_map(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
        """Return each pixel's most probable class at the image's own size."""
        return np.asarray(_to_label_map(*self._logits(image)))

    def network_input(
        self, image: UInt8[np.ndarray, "h w 3"]
    ) -> Float32[np.ndarray, "new_h new_w 3"]:
        """Return the resized and normalised image that the network sees."""
        resized = resize_for_evaluation(
            image, target=self.config.resize_target, multiple=self.config.multiple_of
        )
        return normalise(resized)

    def _logits(self, image: np.ndarray) -> tuple[Array, Size, Size]:
        """Return the logits at stride 4, the network input's size and the image's."""
        x = self.network_input(image)
        logits = _forward(self.graph, self.variables, x[None])
        return logits, (x.shape[0], x.shape[1]), (image.shape[0], image.shape[1])


@functools.partial(jax.jit, static_argnames="graph")
def _forward(
    graph: nnx.GraphDef[SegRet], variables: Any, x: Float[Array, "1 H W 3"]
) -> Float[Array, "1 h w k"]:
    return nnx.merge(graph, *variables)(x)


def _at_image_size(logits: Array, input_size: Size, image_size: Size) -> Array:
    """Resize logits to the network input's size, then to the image's.

    Going there directly misses the released probabilities by 3e-3.
    """
    return resize_bilinear(resize_bilinear(logits, input_size), image_size)[0]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _to_probabilities(
    logits: Float[Array, "1 h w k"], input_size: Size, image_size: Size
) -> Float[Array, "H W k"]:
    return jax.nn.softmax(_at_image_size(logits, input_size, image_size))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _to_label_map(
    logits: Float[Array, "1 h w k"], input_size: Size, image_size: Size
) -> UInt8[Array, "H W"]:
    full = _at_image_size(logits, input_size, image_size)
    return jnp.argmax(full, axis=-1).astype(jnp.uint8)
