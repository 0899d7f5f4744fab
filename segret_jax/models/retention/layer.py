"""The layer of retention, computed by the formulas or by their fast equivalents."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segret_jax.models.kernels import Kernels
from segret_jax.models.layers import DepthwiseConv, kernel_and_bias, normal_init
from segret_jax.models.retention.blocked import blocked_retention
from segret_jax.models.retention.decay import Decay, LogDecay
from segret_jax.models.retention.formulas import decomposed_retention, rotate, whole_retention


class Retention(nnx.Module):
    """Multi-head retention with a 5×5 depthwise convolution of the values beside it (LePE)."""

    def __init__(
        self,
        channels: int,
        log_decay: LogDecay,
        *,
        decomposed: bool,
        rotary: bool,
        decay: Decay,
        max_scores: int,
        kernels: Kernels,
        capability: float | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        def linear() -> nnx.Linear:
            return nnx.Linear(channels, channels, kernel_init=normal_init(), dtype=dtype, rngs=rngs)

        self.q, self.k, self.v, self.out = linear(), linear(), linear(), linear()
        self.lepe = DepthwiseConv(channels, 5, kernels=kernels, dtype=dtype, rngs=rngs)
        self.log_decay = log_decay
        self.decomposed = decomposed
        self.rotary = rotary
        self.decay = decay
        self.max_scores = max_scores
        self.kernels = kernels
        self.capability = capability  # of the GPUs that will run it, see `blocked_retention`

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Map tokens to tokens."""
        heads = (*x.shape[:3], len(self.log_decay), -1)
        q, k, v = self._project(x)
        q, k = q.reshape(heads), k.reshape(heads)
        k = k * k.shape[-1] ** -0.5
        if self.rotary:
            q, k = rotate(q), rotate(k)
        out = self._attend(q, k, v.reshape(heads))
        with jax.named_scope("lepe"):
            nearby = self.lepe(v)
        return self.out(out.reshape(x.shape) + nearby)

    def _attend(self, q: Array, k: Array, v: Array) -> Array:
        if self.kernels is Kernels.REFERENCE:
            form = decomposed_retention if self.decomposed else whole_retention
            return form(q, k, v, self.log_decay, decay=self.decay)
        return blocked_retention(
            q, k, v, self.log_decay, decomposed=self.decomposed, decay=self.decay,
            max_scores=self.max_scores, capability=self.capability,
        )  # fmt: skip

    def _project(self, x: Float[Array, "b h w c"]) -> list[Float[Array, "b h w c"]]:
        """Return q, k and v, by one product."""
        kernels, biases = zip(*map(kernel_and_bias, (self.q, self.k, self.v)), strict=True)
        kernel, bias = jnp.concatenate(kernels, 1), jnp.concatenate(biases)
        return jnp.split(x @ kernel.astype(x.dtype) + bias.astype(x.dtype), 3, axis=-1)
