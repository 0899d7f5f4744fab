"""Retention over an image: attention whose scores decay with the distance between pixels.

Head i of n has a negative constant, its log-decay

    d_i = log(1 − 2^(−initial − span·i/n)),

so that early heads look near and late heads look far. Between two pixels the score q·k is
lowered by d_i times their Manhattan distance. Two forms:

* whole: every pixel attends to every pixel,
      softmax(Q Kᵀ + d·(|Δx| + |Δy|)) V
* decomposed: first along each row, then along each column, with the same Q and K,
      V' = softmax(Q Kᵀ + d·|Δx|) V,    out = softmax(Q Kᵀ + d·|Δy|) V'

The paper (eq. 4) writes softmax(Q Kᵀ) ⊙ D with D = exp(d·distance) after the softmax; the
released code, and so every checkpoint, adds log D before it. `Decay` names both.

The functions below are these formulas as written: sequences of tokens, one softmax, no kernels.
They hold every score. With `model.kernels=reference` the model runs them, in any size, even a
symbolic one (`jax.export`); by default it computes the same by `models.blocked_retention`, which
holds few. Tests compare the two.

Decays are functions of the traced shape, never arrays of the model: any image size works and no
mask is ever stored. Shapes: b batch, h w space, n heads, d head width, l tokens; q and k index the
tokens of queries and keys.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from segret_jax.models.blocked_retention import blocked_retention
from segret_jax.models.decay import Decay, LogDecay
from segret_jax.models.kernels import Kernels
from segret_jax.models.layers import DepthwiseConv, accumulator, normal_init, weights


def whole_retention(
    q: Float[Array, "b h w n d"],
    k: Float[Array, "b h w n d"],
    v: Float[Array, "b h w n d"],
    log_decay: LogDecay,
    *,
    decay: Decay = Decay.ADDITIVE,
) -> Float[Array, "b h w n d"]:
    """Let every pixel attend to every pixel, by Manhattan distance."""
    b, h, w, n, d = q.shape
    y, x = jnp.divmod(jnp.arange(h * w), w)  # of each token: pixels in row-major order
    distance = jnp.abs(y[:, None] - y) + jnp.abs(x[:, None] - x)
    q, k, v = (t.reshape(b, h * w, n, d) for t in (q, k, v))
    return attend(q, k, v, distance, log_decay, decay).reshape(b, h, w, n, d)


def decomposed_retention(
    q: Float[Array, "b h w n d"],
    k: Float[Array, "b h w n d"],
    v: Float[Array, "b h w n d"],
    log_decay: LogDecay,
    *,
    decay: Decay = Decay.ADDITIVE,
) -> Float[Array, "b h w n d"]:
    """Attend along rows, then along columns with the same queries and keys."""
    y, x = (jnp.arange(length) for length in q.shape[1:3])
    v = attend(q, k, v, jnp.abs(x[:, None] - x), log_decay, decay)
    q, k, v = (jnp.swapaxes(t, 1, 2) for t in (q, k, v))  # each column a sequence
    out = attend(q, k, v, jnp.abs(y[:, None] - y), log_decay, decay)
    return jnp.swapaxes(out, 1, 2)


def attend(
    q: Float[Array, "*b l n d"],
    k: Float[Array, "*b l n d"],
    v: Float[Array, "*b l n d"],
    distance: Int[Array, "l l"],
    log_decay: LogDecay,
    decay: Decay,
) -> Float[Array, "*b l n d"]:
    """Return softmax(Q Kᵀ + d·distance) V for each head of each sequence of l tokens.

    Scores and softmax are float32 (float64 for float64), whatever the dtype of q, k and v. With
    `Decay.POST_SOFTMAX` it is (softmax(Q Kᵀ) ⊙ exp(d·distance)) V.
    """
    dtype = accumulator(q.dtype)
    log_d = jnp.asarray(log_decay)[:, None, None] * distance  # [n, q, k]
    scores = jnp.einsum("...qnd,...knd->...nqk", q, k, preferred_element_type=dtype)
    if decay is Decay.ADDITIVE:
        attention = jax.nn.softmax(scores + log_d)
    else:
        attention = jax.nn.softmax(scores) * jnp.exp(log_d)
    attention = attention.astype(v.dtype)
    out = jnp.einsum("...nqk,...knd->...qnd", attention, v, preferred_element_type=dtype)
    return out.astype(v.dtype)


def rotate(x: Float[Array, "b h w n d"]) -> Float[Array, "b h w n d"]:
    """Rotate channel pairs (2j, 2j+1) by y·w + x times 10000^(−j/(d/2−1)) (paper, eq. 3).

    The position is the row-major index of the pixel, in the decomposed form too.
    """
    _, h, w, _, d = x.shape
    frequency = 10000.0 ** -jnp.linspace(0, 1, d // 2)
    position = jnp.arange(h * w, dtype=jnp.float32).reshape(h, w, 1, 1)
    cos, sin = jnp.cos(position * frequency), jnp.sin(position * frequency)
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


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

    def __call__(
        self, x: Float[Array, "b h w c"], *, capability: float | None = None
    ) -> Float[Array, "b h w c"]:
        """Map tokens to tokens; `capability`: see `blocked_retention`."""
        heads = (*x.shape[:3], len(self.log_decay), -1)
        q, k, v = self._project(x)
        q, k = q.reshape(heads), k.reshape(heads)
        k = k * k.shape[-1] ** -0.5
        if self.rotary:
            q, k = rotate(q), rotate(k)
        out = self._attend(q, k, v.reshape(heads), capability)
        with jax.named_scope("lepe"):
            nearby = self.lepe(v)
        return self.out(out.reshape(x.shape) + nearby)

    def _attend(self, q: Array, k: Array, v: Array, capability: float | None) -> Array:
        if self.kernels is Kernels.REFERENCE:
            form = decomposed_retention if self.decomposed else whole_retention
            return form(q, k, v, self.log_decay, decay=self.decay)
        return blocked_retention(
            q, k, v, self.log_decay, decomposed=self.decomposed, decay=self.decay,
            max_scores=self.max_scores, capability=capability,
        )  # fmt: skip

    def _project(self, x: Float[Array, "b h w c"]) -> list[Float[Array, "b h w c"]]:
        """Return q, k and v, by one product."""
        kernels, biases = zip(*map(weights, (self.q, self.k, self.v)), strict=True)
        kernel, bias = jnp.concatenate(kernels, 1), jnp.concatenate(biases)
        return jnp.split(x @ kernel.astype(x.dtype) + bias.astype(x.dtype), 3, axis=-1)
