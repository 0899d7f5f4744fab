"""The layout of the kernels for TPUs: pixels flattened, in blocks, and the bias by their distance.

Arrays are [b, n, c, l], with the pixels of an image on the last axis, row by row: a TPU pads that
axis to a multiple of 128, and heads are narrower. Rows are padded to at least 2k − 1 pixels, so
that the distance of a key from a query in the flattened image tells their relative position. The
bias of a block of keys for a block of queries is then constant along each diagonal.

Letters as in `neighborhood.formulas`; c channels of a head with padding, l flattened pixels.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from segret_jax.models.layers import MapSize
from segret_jax.models.neighborhood.formulas import Bias, Heads, window_side
from segret_jax.models.neighborhood.ranges import keys_of, queries_of

LANES = 128  # of a register
SUBLANES = 16  # of a register of bfloat16: the channels of a head are padded to a multiple
MAX_LOGITS = 2**21  # that a kernel keeps: 8 MB of the 16 that it has

Flat = Float[Array, "b n c l"]
Table = Float[Array, "n r 1 l"]  # the bias by distance, in blocks


@dataclass(frozen=True)
class FlatLayout:
    """Flattened images of one shape, and the blocks of their pixels."""

    shape: tuple[int, ...]  # b h w n d
    window: int
    block: int  # pixels

    @property
    def row(self) -> int:
        """The pixels of a row, with padding."""
        return max(self.shape[2], 2 * self.window - 1)

    @property
    def num_blocks(self) -> int:
        return pl.cdiv(self.shape[1] * self.row, self.block)

    @property
    def max_logits(self) -> int:
        """The logits that a kernel keeps: of a tile with all of its blocks, or twice as many."""
        of_queries, of_keys = (self.num_steps(has_queries=i) for i in (True, False))
        return max(2 * of_queries, of_keys) * self.block**2

    def num_steps(self, *, has_queries: bool) -> int:
        """Return the largest number of blocks of a tile of queries, or of keys."""
        first = np.arange(self.num_blocks) * self.block
        rows = int(np.max((first + self.block - 1) // self.row - first // self.row)) + 1
        rows += (1 if has_queries else 2) * (self.window - 1)  # 2: between two borders
        unused = self.block - math.gcd(self.block, self.row)  # pixels of the first block
        return min(self.num_blocks, pl.cdiv(unused + rows * self.row, self.block))

    def block_ranges(
        self, height: Any, *, has_queries: bool
    ) -> tuple[Int[Array, " t"], Int[Array, " t"]]:
        """Return the first and the last block of each tile."""
        start = jnp.arange(self.num_blocks, dtype=jnp.int32) * self.block
        rows = start // self.row, (start + self.block - 1) // self.row
        start, end = (keys_of if has_queries else queries_of)(*rows, height, self.window)
        first, last = start * self.row // self.block, (end * self.row - 1) // self.block
        return jnp.clip(first, 0, self.num_blocks - 1), jnp.clip(last, 0, self.num_blocks - 1)

    def flatten(self, x: Float[Array, "b h w n d"], size: MapSize, *, fill: float = 0.0) -> Flat:
        """Return an image in this layout, with `fill` beyond the true size."""
        _, h, w, _, d = x.shape
        is_inside = (jnp.arange(h) < size[0])[:, None] & (jnp.arange(w) < size[1])[None]
        x = jnp.where(is_inside[..., None, None], x, jnp.asarray(fill, x.dtype))
        channels = -d % SUBLANES if d > 1 else 0
        pad = functools.partial(jnp.pad, constant_values=fill)
        x = jnp.transpose(x, (0, 3, 4, 1, 2))
        x = pad(x, ((0, 0), (0, 0), (0, channels), (0, 0), (0, self.row - w)))
        x = x.reshape(*x.shape[:3], -1)
        return pad(x, ((0, 0), (0, 0), (0, 0), (0, self.num_blocks * self.block - x.shape[3])))

    def unflatten(self, x: Flat) -> Float[Array, "b h w n d"]:
        """Return the image, [b, h, w, n, 1] of one number per query."""
        _, h, w, _, d = self.shape
        x = x[:, :, :d, : h * self.row].reshape(*x.shape[:2], -1, h, self.row)
        return jnp.transpose(x[..., :w], (0, 3, 4, 1, 2))

    def numbers(self, queries: Flat) -> jax.ShapeDtypeStruct:
        """Return the form of an array of one number per query."""
        b, n, _, length = queries.shape
        return jax.ShapeDtypeStruct((b, n, 1, length), jnp.float32)

    def table(self, bias: Bias) -> Table:
        """Return the bias by the distance from a key to a query."""
        table = jnp.zeros((len(bias), 2 * (self._max_distance + 1) * self.block), jnp.float32)
        table = table.at[:, self._table_index()].set(bias)
        return table.reshape(len(bias), -1, 1, self.block)

    def bias_of(self, table: Table) -> Bias:
        return table.reshape(len(table), -1)[:, self._table_index()]

    def table_blocks(self, query: Any, key: Any) -> tuple[Any, Any]:
        """Return the blocks of the table for the pixels of a block of queries and one of keys.

        Lane `block` + q − i of the two is the bias of the query of lane q and the key of lane i.
        """
        first = query - key + self._max_distance
        return first, first + 1

    @property
    def _max_distance(self) -> int:
        """The blocks between a tile and the last of its blocks, at most."""
        return self.window * self.row // self.block + 2

    def _table_index(self) -> np.ndarray:
        """Return the lane of each relative position in the table."""
        offset = np.arange(2 * self.window - 1) - (self.window - 1)
        distance = offset[:, None] * self.row + offset  # from the query to the key
        return (self._max_distance + 1) * self.block - distance


def flat_layout(q: Heads, bias: Bias) -> FlatLayout:
    """Return the layout with the larger blocks, if those fit."""
    large, small = (FlatLayout(q.shape, window_side(bias), i * LANES) for i in (2, 1))
    return large if large.max_logits <= MAX_LOGITS and large.num_blocks > 1 else small
