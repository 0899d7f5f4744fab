"""The global attention of stage 4, with a bias between any two tokens.

    out = softmax(Q Kᵀ + M R Mᵀ) V

R [49, 49] is a head's bias between the 7×7 tokens of a 224-pixel image. It is resized to l×l tokens
as if it were an image, by bicubic interpolation over the row-major *index* of the tokens: M [l, 49]
are the weights of one axis (`bicubic_matrix`). The released code does so; a relative position has
no fixed bias at other sizes than 7×7.

Since M R Mᵀ is a product too, the bias needs no array of l×l: with the queries [Q, M R] and the
keys [K, M] this is attention without a bias, which is retention without decay. (So the bias is as
exact as the scores: in bfloat16 products it is rounded, too.)
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from segret_jax.models.kernels import ANY_PLATFORM, Kernels, Platform
from segret_jax.models.layers import MapSize
from segret_jax.models.retention.blocked import blocked_retention
from segret_jax.models.retention.formulas import Heads, whole_retention

TOKENS = 49  # of stage 4 at 224 pixels
CUBIC = -0.75  # PyTorch's A; jax.image.resize has −0.5


def global_attention(
    q: Heads,
    k: Heads,
    v: Heads,
    bias: Float[Array, "n 49 49"],
    *,
    kernels: Kernels = Kernels.AUTO,
    platform: Platform = ANY_PLATFORM,
    size: MapSize | None = None,
) -> Heads:
    """Compute softmax(Q Kᵀ + M R Mᵀ) V over all pixels of an image.

    Args:
        q: Queries, scaled.
        k: Keys.
        v: Values.
        bias: R of each head.
        kernels: The choice of kernels.
        platform: The devices (`kernels.platform_of`).
        size: The true height and width of padded arrays; None: those of the arrays.

    Returns:
        The attended values, in the dtype of v.
    """
    b, h, w, n, _ = q.shape
    height, width = size or (h, w)
    xp = np if size is None else jnp  # by NumPy the matrix is a constant, which no kernel computes
    y, x = xp.arange(h)[:, None], xp.arange(w)[None]
    matrix = bicubic_matrix((y * width + x).reshape(-1), height * width, xp=xp)
    matrix = jnp.asarray(matrix.reshape(h, w, TOKENS), bias.dtype)
    of_queries = jnp.einsum("hwt,ntu->hwnu", matrix, bias, precision="highest")
    of_keys = jnp.broadcast_to(matrix[:, :, None], of_queries.shape)

    def extend(x: Heads, more: Float[Array, "h w n t"]) -> Float[Array, "b h w n _"]:
        more = jnp.broadcast_to(more[None].astype(x.dtype), (b, *more.shape))
        return jnp.concatenate([x, more], -1)

    q, k, no_decay = extend(q, of_queries), extend(k, of_keys), (0.0,) * n
    if kernels is Kernels.REFERENCE:
        return whole_retention(q, k, v, no_decay, size=size)
    return blocked_retention(q, k, v, no_decay, decomposed=False, platform=platform, size=size)


def bicubic_matrix(index: Any, length: int | Array, *, xp: Any = jnp) -> Any:
    """Return the weights that resize 49 values to `length`, for some of the resized positions.

    Half-pixel centers, no antialiasing, positions beyond the ends clamped to them.

    Args:
        index: Positions from 0 to length − 1.
        length: The number of resized positions.
        xp: The module that computes, `numpy` or `jax.numpy`.

    Returns:
        The interpolation weights [l, 49] of each position; rows sum to 1.
    """
    source = (index + 0.5) * (TOKENS / length) - 0.5
    first = xp.floor(source)
    positions = first[:, None] + xp.arange(-1.0, 3.0)[None]  # [l, 4]
    weights = _cubic(xp.abs(source[:, None] - positions), xp)
    is_at = xp.clip(positions, 0, TOKENS - 1)[..., None] == xp.arange(float(TOKENS))[None, None]
    return xp.sum(xp.where(is_at, weights[..., None], 0.0), axis=1)


def _cubic(distance: Any, xp: Any) -> Any:
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return xp.where(distance <= 1, near, far)
