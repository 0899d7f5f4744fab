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

Decays are functions of the traced shape, never arrays of the model: any image size works and no
mask is ever stored. Shapes: b batch, h w space, n heads, d head width, l tokens.
"""

import enum
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segret_jax.models.layers import DepthwiseConv, accumulator, normal_init

LogDecay = tuple[float, ...]


class Decay(enum.StrEnum):
    """Where the decay enters: before the softmax (released code) or after it (paper)."""

    ADDITIVE = "additive"
    POST_SOFTMAX = "post_softmax"


def head_log_decay(num_heads: int, *, initial: float, span: float) -> LogDecay:
    """Return d_i = log(1 − 2^(−initial − span·i/n)) for each of n heads."""
    return tuple(math.log1p(-(2 ** (-initial - span * i / num_heads))) for i in range(num_heads))


def whole_retention(
    q: Float[Array, "b h w n d"],
    k: Float[Array, "b h w n d"],
    v: Float[Array, "b h w n d"],
    log_decay: LogDecay,
    *,
    decay: Decay = Decay.ADDITIVE,
    max_scores: int = 2**25,
) -> Float[Array, "b h w n d"]:
    """Let every pixel attend to every pixel, by Manhattan distance.

    Where one image's score matrix would exceed `max_scores` elements, queries go in blocks that
    keep within it, and the backward pass computes each block's scores again.
    """
    b, h, w, n, d = q.shape
    y, x = (index.reshape(-1) for index in jnp.indices((h, w)))
    k, v = (t.reshape(b, h * w, n, d) for t in (k, v))

    def attend(query: tuple[Array, Array, Array]) -> Array:
        q, query_y, query_x = query  # [b, n, d], one pixel's
        distance = jnp.abs(query_y - y) + jnp.abs(query_x - x)  # [l]
        scores = jnp.einsum("bnd,blnd->bnl", q, k, preferred_element_type=accumulator(q.dtype))
        weights = _weigh(scores, jnp.asarray(log_decay)[:, None] * distance, decay)
        return jnp.einsum("bnl,blnd->bnd", weights.astype(v.dtype), v)

    queries = jnp.moveaxis(q.reshape(b, h * w, n, d), 1, 0)
    out = _map_blocks(attend, (queries, y, x), scores_per_item=n * h * w, max_scores=max_scores)
    return jnp.moveaxis(out, 0, 1).reshape(q.shape)


def decomposed_retention(
    q: Float[Array, "b h w n d"],
    k: Float[Array, "b h w n d"],
    v: Float[Array, "b h w n d"],
    log_decay: LogDecay,
    *,
    decay: Decay = Decay.ADDITIVE,
    max_scores: int = 2**25,
) -> Float[Array, "b h w n d"]:
    """Attend along rows, then along columns with the same queries and keys.

    `max_scores` bounds the score matrix as in `whole_retention`; here the blocks are of lines.
    """

    def along(axis: int, v: Array) -> Array:
        line_axis = 3 - axis  # attending along rows (axis 2), the lines are stacked on axis 1
        lines = tuple(jnp.moveaxis(t, line_axis, 0) for t in (q, k, v))
        length, heads = q.shape[axis], len(log_decay)
        index = jnp.arange(length)
        distance = jnp.abs(index[:, None] - index)  # [l, l]

        def attend(line: tuple[Array, Array, Array]) -> Array:
            q, k, v = line  # [b, l, n, d]
            scores = jnp.einsum(
                "bqnd,bknd->bnqk", q, k, preferred_element_type=accumulator(q.dtype)
            )
            weights = _weigh(scores, jnp.asarray(log_decay)[:, None, None] * distance, decay)
            return jnp.einsum("bnqk,bknd->bqnd", weights.astype(v.dtype), v)

        per_line = heads * length * length
        out = _map_blocks(attend, lines, scores_per_item=per_line, max_scores=max_scores)
        return jnp.moveaxis(out, 0, line_axis)

    return along(1, along(2, v))


@jax.named_scope("weigh")
def _weigh(scores: Array, bias: Array, decay: Decay) -> Array:
    if decay is Decay.ADDITIVE:
        return jax.nn.softmax(scores + bias)
    return jax.nn.softmax(scores) * jnp.exp(bias)


def _map_blocks(
    attend: Callable, items: tuple[Array, ...], *, scores_per_item: int, max_scores: int
) -> Array:
    """Apply `attend` along the leading axis: at once if the scores are few, else by blocks."""
    block = max(1, max_scores // scores_per_item)
    if block >= items[0].shape[0]:
        return jax.vmap(attend)(items)
    return lax.map(jax.checkpoint(attend), items, batch_size=block)


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
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        def linear() -> nnx.Linear:
            return nnx.Linear(channels, channels, kernel_init=normal_init(), dtype=dtype, rngs=rngs)

        self.q, self.k, self.v, self.out = linear(), linear(), linear(), linear()
        self.lepe = DepthwiseConv(channels, 5, dtype=dtype, rngs=rngs)
        self.log_decay = log_decay
        self.decomposed = decomposed
        self.rotary = rotary
        self.decay = decay
        self.max_scores = max_scores

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        heads = (*x.shape[:3], len(self.log_decay), -1)
        v = self.v(x)
        q, k = self.q(x).reshape(heads), self.k(x).reshape(heads)
        k = k * k.shape[-1] ** -0.5
        if self.rotary:
            q, k = rotate(q), rotate(k)
        retain = decomposed_retention if self.decomposed else whole_retention
        out = retain(
            q, k, v.reshape(heads), self.log_decay, decay=self.decay, max_scores=self.max_scores
        )
        with jax.named_scope("lepe"):
            nearby = self.lepe(v)
        return self.out(out.reshape(x.shape) + nearby)
