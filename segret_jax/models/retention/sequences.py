"""How an image is divided into the sequences that retention attends along.

A sequence is a row, a column or the whole image, as one head sees it. There are g of them, each of
l tokens. Products have the letters b for images, q and k for the queries and keys of a sequence
(both l long) and d for the head width.
"""

import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from segret_jax.models.kernels import Platform, is_full_precision
from segret_jax.models.layers import accum_dtype
from segret_jax.models.retention.decay import Decay, LogDecay
from segret_jax.models.retention.formulas import Heads

Arrays = tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class AxialSequences:
    """Sequences along w (the rows), h (the columns) or hw (the whole image), and their options."""

    along: str
    shape: tuple[int, ...]  # [b h w n d]
    log_decay: LogDecay
    decay: Decay
    max_scores: int
    platform: Platform
    precision: str | None

    @property
    def order(self) -> str:
        across = "".join(axis for axis in "hwn" if axis not in self.along)
        return f"{across}b{self.along}d"

    @property
    def length(self) -> int:
        return math.prod(self.sizes(self.along))

    def sizes(self, axes: str) -> tuple[int, ...]:
        size = dict(zip("bhwnd", self.shape, strict=True))
        return tuple(size[axis] for axis in axes)

    def to_sequences(self, x: Heads) -> Float[Array, "g b l d"]:
        x = jnp.einsum(f"bhwnd->{self.order}", x)
        return x.reshape(-1, self.shape[0], self.length, x.shape[-1])

    def to_image(self, x: Float[Array, "g b l d"]) -> Heads:
        x = x.reshape(*self.sizes(self.order[:-1]), x.shape[-1])
        return jnp.einsum(f"{self.order}->bhwnd", x)

    def full_precision(self, dtype: jnp.dtype) -> bool:
        """Return whether a kernel's products need full precision."""
        return is_full_precision(self.precision, dtype)

    def product(self, letters: str, x: Array, y: Array) -> Array:
        dtype = accum_dtype(x.dtype)
        return jnp.einsum(letters, x, y, precision=self.precision, preferred_element_type=dtype)

    def scores(
        self,
        q: Float[Array, "b q d"],
        k: Float[Array, "b k d"],
        log_decay: Array,
        size: Any,
        start: Any,
    ) -> tuple[Float[Array, "b q k"], Float[Array, "1 q k"]]:
        """Return the scores of the queries from position `start` on, and the logarithm of D.

        Keys outside of `size`, the true height and width if not None, have the score −∞.
        """
        of_queries = start + lax.broadcasted_iota(jnp.int32, (q.shape[1], 1), 0)
        of_keys = lax.broadcasted_iota(jnp.int32, (1, k.shape[1]), 1)
        pairs = zip(self.coordinates(of_queries), self.coordinates(of_keys), strict=True)
        bias = (log_decay * sum(jnp.abs(a - b) for a, b in pairs))[None]
        scores = self.product("bqd,bkd->bqk", q, k)
        if size is not None:
            scores = jnp.where(self.is_inside(of_keys, size)[None], scores, -jnp.inf)
        return scores + bias if self.decay is Decay.ADDITIVE else scores, bias

    def coordinates(self, index: Array) -> tuple[Array, ...]:
        """Return what Manhattan distance is taken over: the index, or (y, x) of a whole image."""
        if len(self.along) == 1:
            return (index,)
        width = np.int32(self.shape[2])
        return lax.div(index, width), lax.rem(index, width)

    def is_inside(self, index: Array, size: Any) -> Array:
        """Return which tokens are inside the true height and width `size`."""
        true = dict(zip("hw", size, strict=True))
        pairs = zip(self.coordinates(index), self.along, strict=True)
        return functools.reduce(jnp.logical_and, (at < true[axis] for at, axis in pairs))
