"""Neighborhood attention: each pixel attends to the k×k pixels around it (Hassani et al., 2023).

Along an axis of N pixels the window of pixel i begins at

    s(i) = min(max(i − ⌊k/2⌋, 0), N − k),

so that at a border it is shifted inward: every query has exactly k×k keys, none is padding. The
logit of query (i, j) and key (y, x), with a bias B for each relative position of each head, is

    S = q[i, j] · k[y, x] + B[y − i + k − 1, x − j + k − 1],

and the output is softmax(S) V over the window (arXiv 2204.07143; NATTEN 0.17).

This file is the formulas as written; they hold every logit. With `model.kernels=reference` the
model runs them, and can be exported (`jax.export`) at one size; by default `neighborhood.attention`
computes the same with few logits in memory.

Arrays may be padded: `size` is the true height and width, at whose borders windows are shifted.
Outputs beyond it mean nothing. Shapes: b batch, h w space, n heads, d head width, k window side.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from segret_jax.models.layers import MapSize, accum_dtype

Heads = Float[Array, "b h w n d"]  # the tokens of images, divided into heads
Bias = Float[Array, "n o o"]  # by relative position, o = 2k − 1
AnyArray = Array | np.ndarray  # of NumPy where the size is known before compilation


def neighborhood_attention(
    q: Heads, k: Heads, v: Heads, bias: Bias, *, size: MapSize | None = None
) -> Heads:
    """Compute softmax(Q Kᵀ + B) V over the window of each pixel.

    Args:
        q: Queries, scaled.
        k: Keys.
        v: Values.
        bias: The bias of each relative position; its shape tells the window's side.
        size: The true height and width, at least the window's side; None: those of the arrays.

    Returns:
        The attended values, in the dtype of v.

    Raises:
        ValueError: The array is smaller than a window.
    """
    check_size(q, bias)
    window, (h, w), dtype = window_side(bias), q.shape[1:3], accum_dtype(q.dtype)
    height, width = size or (h, w)
    rows, columns = (  # of each query's keys: [h, k], [w, k]
        window_starts(jnp.arange(length), true, window)[:, None] + jnp.arange(window)[None]
        for length, true in ((h, height), (w, width))
    )

    def row_of_windows(x: Heads, number: int) -> Float[Array, "b h w k n d"]:
        return x[:, rows[:, number]][:, :, columns]

    def logits(number: int) -> Float[Array, "b h w n k"]:
        keys = row_of_windows(k, number)
        scores = jnp.einsum("bhwnd,bhwknd->bhwnk", q, keys, preferred_element_type=dtype)
        offset_y = relative_index(rows[:, number], jnp.arange(h), window)
        offset_x = relative_index(columns, jnp.arange(w)[:, None], window)
        biases = bias[:, offset_y[:, None, None], offset_x[None]]  # [n, h, w, k]
        return scores + jnp.einsum("nhwk->hwnk", biases)[None]

    scores = jnp.stack([logits(i) for i in range(window)], -2)  # [b, h, w, n, k, k]
    attention = jax.nn.softmax(scores, (-2, -1)).astype(v.dtype)

    def attended(number: int) -> Heads:
        values = row_of_windows(v, number)
        weights = attention[..., number, :]
        return jnp.einsum("bhwnk,bhwknd->bhwnd", weights, values, preferred_element_type=dtype)

    return functools.reduce(jnp.add, map(attended, range(window))).astype(v.dtype)


def window_side(bias: Bias) -> int:
    """Return the side k of the windows; `bias` has 2k − 1 relative positions along each axis."""
    return (bias.shape[-1] + 1) // 2


def check_size(q: Heads, bias: Bias) -> None:
    """Raise ValueError unless a window fits into the array."""
    (h, w), window = q.shape[1:3], window_side(bias)
    if min(h, w) < window:
        raise ValueError(f"the map is {h}x{w}, but windows have {window}x{window} pixels")


def window_starts(
    queries: Int[AnyArray, "*q"], length: int | Int[Array, ""], window: int
) -> Int[AnyArray, "*q"]:
    """Return s(i) for queries i along an axis of `length` pixels."""
    return (queries - window // 2).clip(0, length - window)


def relative_index(
    keys: Int[AnyArray, "*#k"], queries: Int[AnyArray, "*#k"], window: int
) -> Int[AnyArray, "*k"]:
    """Return the row or column of `bias` for keys and queries; it exists within windows alone."""
    return (keys - queries + window - 1).clip(0, 2 * window - 2)
