"""The retention layer, computed by the formulas or by their fast equivalents."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from segret_jax.models.kernels import ANY_PLATFORM, Kernels, Platform
from segret_jax.models.layers import (
    DepthwiseConv,
    FeatureMap,
    MapSize,
    kernel_and_bias,
    normal_init,
    per_channel,
    zero_outside,
)
from segret_jax.models.retention.blocked import blocked_retention
from segret_jax.models.retention.decay import Decay, LogDecay
from segret_jax.models.retention.formulas import decomposed_retention, rotate, whole_retention


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetentionOptions:
    """How retention is computed; the defaults are those of SegRet's released encoder."""

    rotary: bool = False
    decay: Decay = Decay.ADDITIVE
    max_scores: int = 2**25
    kernels: Kernels = Kernels.AUTO
    platform: Platform = ANY_PLATFORM
    dtype: DTypeLike = jnp.float32


class Retention(nnx.Module):
    """Multi-head retention, with a 5×5 depthwise convolution of the values added (LePE).

        out = W_out (retention(R(W_q x), R(W_k x) / √d, W_v x) + LePE(W_v x))

    R rotates by position (`rotate`) with the option `rotary`, else it is the identity.
    """

    def __init__(
        self,
        channels: int,
        log_decay: LogDecay,
        *,
        decomposed: bool,
        options: RetentionOptions,
        rngs: nnx.Rngs,
    ):
        """Initialize the weights.

        Args:
            channels: The width of the tokens, divided over the heads.
            log_decay: The negative constant of each head (`head_log_decay`).
            decomposed: Whether to attend along rows, then columns; else over the whole image.
            options: How retention is computed.
            rngs: The source of the initial weights.
        """
        dtype = options.dtype

        def linear() -> nnx.Linear:
            return nnx.Linear(channels, channels, kernel_init=normal_init(), dtype=dtype, rngs=rngs)

        self.q, self.k, self.v, self.out = linear(), linear(), linear(), linear()
        self.lepe = DepthwiseConv(
            channels, 5, kernels=options.kernels, platform=options.platform, dtype=dtype, rngs=rngs
        )
        self.log_decay, self.decomposed, self.options = log_decay, decomposed, options

    def __call__(self, x: FeatureMap, *, size: MapSize | None = None) -> FeatureMap:
        """Map tokens to tokens; `size` is the true height and width of a padded map."""
        heads = (*x.shape[:3], len(self.log_decay), -1)
        q, k, v = self._project(x)
        q, k = q.reshape(heads), k.reshape(heads)
        k = k * k.shape[-1] ** -0.5
        if self.options.rotary:
            q, k = rotate(q, size=size), rotate(k, size=size)
        out = self._attend(q, k, v.reshape(heads), size)
        with jax.named_scope("lepe"):
            nearby = self.lepe(zero_outside(v, size))
        return self.out(out.reshape(x.shape) + nearby)

    def _attend(self, q: Array, k: Array, v: Array, size: MapSize | None) -> Array:
        options = self.options
        if options.kernels is Kernels.REFERENCE:
            form = decomposed_retention if self.decomposed else whole_retention
            return form(q, k, v, self.log_decay, decay=options.decay, size=size)
        return blocked_retention(
            q, k, v, self.log_decay, decomposed=self.decomposed, decay=options.decay,
            max_scores=options.max_scores, platform=options.platform, size=size,
        )  # fmt: skip

    def _project(self, x: FeatureMap) -> list[FeatureMap]:
        """Return q, k and v, computed by one product."""
        kernels, biases = zip(*map(kernel_and_bias, (self.q, self.k, self.v)), strict=True)
        kernel, bias = jnp.concatenate(kernels, 1), jnp.concatenate(biases).astype(x.dtype)
        return jnp.split(x @ kernel.astype(x.dtype) + per_channel(bias, x.ndim), 3, axis=-1)
