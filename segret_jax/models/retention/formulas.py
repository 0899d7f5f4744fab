"""Retention over an image: attention whose scores decay with the distance between pixels.

Head i of n has a negative constant, its log-decay

    d_i = log(1 − 2^(−initial − span·i/n)),

so early heads look near and late heads look far. The score q·k of two pixels is lowered by |d_i|
times their Manhattan distance. There are two forms:

* whole: every pixel attends to every pixel,
      softmax(Q Kᵀ + d·(|Δx| + |Δy|)) V
* decomposed: along each row, then along each column with the same Q and K,
      V' = softmax(Q Kᵀ + d·|Δx|) V,    out = softmax(Q Kᵀ + d·|Δy|) V'

The paper (eq. 4) writes softmax(Q Kᵀ) ⊙ D with D = exp(d·distance) after the softmax; the released
code, and so every checkpoint, adds log D before it. `Decay` names both.

The functions below are these formulas as written: one softmax, no kernels. They hold every score.
With `model.kernels=reference` the model runs them, at any size, even a symbolic one (`jax.export`);
by default `retention.blocked` computes the same with few scores in memory. Tests compare the two.

Distances come from the traced shape, never from arrays of the model: any image size works, and no
mask is stored. Arrays may be padded: `size` is the true height and width. Nothing attends to what
is outside; outputs there mean nothing. Shapes: b batch, h w space, n heads, d head width, l tokens;
q and k index the tokens of queries and keys.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from segret_jax.models.layers import MapSize, accum_dtype
from segret_jax.models.retention.decay import Decay, LogDecay

Heads = Float[Array, "b h w n d"]  # the tokens of images, divided into heads
Values = Float[Array, "b h w n e"]  # of another width than queries and keys, perhaps


def whole_retention(
    q: Heads,
    k: Heads,
    v: Values,
    log_decay: LogDecay,
    *,
    decay: Decay = Decay.ADDITIVE,
    size: MapSize | None = None,
) -> Values:
    """Compute softmax(Q Kᵀ + d·(|Δx| + |Δy|)) V over all pixels of an image.

    Args:
        q: Queries.
        k: Keys, scaled by 1/√d for head width d.
        v: Values.
        log_decay: The constant d_i of each head (`head_log_decay`).
        decay: Whether the decay enters before or after the softmax.
        size: The true height and width of padded arrays; None: those of the arrays.

    Returns:
        The attended values, in the dtype of v.
    """
    b, h, w, n, _ = q.shape
    y, x = jnp.divmod(jnp.arange(h * w), w)  # of each token: pixels in row-major order
    distance = jnp.abs(y[:, None] - y[None]) + jnp.abs(x[:, None] - x[None])
    q, k, v = (t.reshape(b, h * w, n, t.shape[-1]) for t in (q, k, v))
    is_inside = None if size is None else (y < size[0]) & (x < size[1])
    out = attend(q, k, v, distance, log_decay, decay, is_inside)
    return out.reshape(b, h, w, n, v.shape[-1])


def decomposed_retention(
    q: Heads,
    k: Heads,
    v: Values,
    log_decay: LogDecay,
    *,
    decay: Decay = Decay.ADDITIVE,
    size: MapSize | None = None,
) -> Values:
    """Compute softmax(Q Kᵀ + d·|Δy|) V' along columns of V' = softmax(Q Kᵀ + d·|Δx|) V along rows.

    Args:
        q: Queries.
        k: Keys, scaled by 1/√d for head width d.
        v: Values.
        log_decay: The constant d_i of each head (`head_log_decay`).
        decay: Whether the decay enters before or after the softmax.
        size: The true height and width of padded arrays; None: those of the arrays.

    Returns:
        The attended values, in the dtype of v.
    """
    y, x = (jnp.arange(length) for length in q.shape[1:3])
    in_row, in_column = (None, None) if size is None else (x < size[1], y < size[0])
    v = attend(q, k, v, jnp.abs(x[:, None] - x[None]), log_decay, decay, in_row)
    q, k, v = (jnp.swapaxes(t, 1, 2) for t in (q, k, v))  # each column a sequence
    out = attend(q, k, v, jnp.abs(y[:, None] - y[None]), log_decay, decay, in_column)
    return jnp.swapaxes(out, 1, 2)


def attend(
    q: Float[Array, "*b l n d"],
    k: Float[Array, "*b l n d"],
    v: Float[Array, "*b l n e"],
    distance: Int[Array, "l l"],
    log_decay: LogDecay,
    decay: Decay,
    is_inside: Bool[Array, " l"] | None = None,
) -> Float[Array, "*b l n e"]:
    """Return softmax(Q Kᵀ + d·distance) V for each head of each sequence of l tokens.

    Scores and softmax are float32 (float64 for float64), whatever the dtype of q, k and v. With
    `Decay.POST_SOFTMAX` it is (softmax(Q Kᵀ) ⊙ exp(d·distance)) V. Only keys that are inside count.
    """
    dtype = accum_dtype(q.dtype)
    scores = jnp.einsum("...qnd,...knd->...nqk", q, k, preferred_element_type=dtype)
    if is_inside is not None:
        scores = jnp.where(jnp.expand_dims(is_inside, range(scores.ndim - 1)), scores, -jnp.inf)
    log_d = jnp.asarray(log_decay)[:, None, None] * distance[None]  # [n, q, k]
    log_d = jnp.expand_dims(log_d, tuple(range(scores.ndim - 3)))
    if decay is Decay.ADDITIVE:
        attention = jax.nn.softmax(scores + log_d)
    else:
        attention = jax.nn.softmax(scores) * jnp.exp(log_d)
    attention = attention.astype(v.dtype)
    out = jnp.einsum("...nqk,...knd->...qnd", attention, v, preferred_element_type=dtype)
    return out.astype(v.dtype)


def rotate(x: Heads, *, size: MapSize | None = None) -> Heads:
    """Rotate channel pairs (2j, 2j+1) by (y·w + x)·10000^(−j/(d/2−1)) (paper, eq. 3).

    The position is the row-major index of the pixel in an image of the true width w, in the
    decomposed form too.
    """
    _, h, w, _, d = x.shape
    frequency = 10000.0 ** -jnp.linspace(0, 1, d // 2)
    position = jnp.arange(h * w, dtype=jnp.float32)
    if size is not None:
        position = (jnp.arange(h)[:, None] * size[1] + jnp.arange(w)[None]).astype(jnp.float32)
    angle = jnp.outer(position, frequency).reshape(1, h, w, 1, -1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)
