"""What a program of `selective_scan.gpu` works on: a tile of an image and a block of channels.

It reads and writes the tile step by step: a step is one pixel of each of the tile's 16 rows, or
columns. Letters as in `selective_scan.formulas`, k for the program's channels and r for the rows of
W, padded to a power of 2.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from segret_jax.models.layers import MapSize
from segret_jax.models.selective_scan.formulas import ScanWeights
from segret_jax.models.selective_scan.softplus import softplus

TILE = 16  # the fewest rows of a product
LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class TileShape:
    """The sizes of a scan's arrays."""

    image: tuple[int, ...]  # b h w c
    num_projections: int
    interpret: bool

    @property
    def block(self) -> int:
        """The channels of a program: 64, if that adds at most an eighth of padding."""
        c = self.image[-1]
        return 64 if pl.cdiv(c, 64) * 64 <= 1.125 * c else 32

    @property
    def rows(self) -> int:
        """The rows of W's tile, a power of 2: those of dt and of three other gradients."""
        return max(16, pl.next_power_of_2(self.num_projections + 1))

    @property
    def rank(self) -> int:
        return self.num_projections - 2

    @property
    def columns(self) -> Array:
        """The columns of a tile of projections [1, r]; transposed, the rows of W's."""
        return jnp.arange(self.rows, dtype=jnp.int32)[None]

    @property
    def tiles(self) -> tuple[int, int]:
        return pl.cdiv(self.image[1], TILE), pl.cdiv(self.image[2], TILE)

    @property
    def states(self) -> jax.ShapeDtypeStruct:
        b, _, _, c = self.image
        return jax.ShapeDtypeStruct((4, b, math.prod(self.tiles) * TILE, c), jnp.float32)

    def inputs(
        self, x: Array, projections: Array, weights: ScanWeights, size: MapSize
    ) -> tuple[Array, ...]:
        b, h, w, c = self.image
        padding = self.rows - self.num_projections + 2  # a step's B and C are not part of Δ
        kernel = jnp.pad(weights.dt_kernel, ((0, 0), (0, padding), (0, 0)))
        skip = jnp.sum(weights.skip, 0, keepdims=True)
        vectors = jnp.concatenate([weights.dt_bias, -LOG2_E * jnp.exp(weights.a_log), skip])
        true_size = jnp.stack([jnp.asarray(side, jnp.int32) for side in size])
        tokens = x.reshape(b, h * w, c), projections.reshape(b, h * w, 4, -1)
        return *tokens, kernel, vectors, true_size


@dataclasses.dataclass(frozen=True)
class DirectionWeights:
    """The weights of one direction: for the program's channels, and with zeros beyond all."""

    kernel: Float[Array, "r k"]
    bias: Float[Array, "1 k"]
    rate: Float[Array, "1 k"]  # A·log2(e)


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a tile's chunks: a pixel of each."""

    index: Array  # [16, 1] in the image
    is_stored: Array  # [16, 1] whether the arrays have it
    is_inside: Array  # [16, 1] whether the true image has it
    dt: Array  # [16, r], with other columns after it for which W is 0
    b: Array  # [16, 1]
    c: Array  # [16, 1]


@dataclasses.dataclass(frozen=True)
class TileProgram:
    """One program of a kernel: a tile of an image and a block of k channels."""

    x_ref: Any
    projections_ref: Any
    kernel_ref: Any
    vectors_ref: Any
    shape: TileShape
    size: tuple[Any, Any]  # of the true image
    block: Any
    tile: Any
    direction: Any  # 0 if it does all
    image: Any

    @property
    def channels(self) -> Array:
        start = self.block * self.shape.block
        return (start + jnp.arange(self.shape.block, dtype=jnp.int32))[None]

    @property
    def is_channel(self) -> Array:
        return self.channels < self.shape.image[-1]

    @property
    def zero(self) -> Float[Array, "16 k"]:
        return jnp.zeros((TILE, self.shape.block), jnp.float32)

    def weights(self, direction: Any) -> DirectionWeights:
        at = self.kernel_ref.at[direction, self.shape.columns.T, self.channels]
        kernel = triton.load(at, mask=self.is_channel, other=0.0)
        return DirectionWeights(kernel, self.vector(direction), self.vector(4 + direction))

    def vector(self, row: Any) -> Float[Array, "1 k"]:
        at = self.vectors_ref.at[jnp.full((1, 1), row), self.channels]
        return triton.load(at, mask=self.is_channel, other=0.0)

    def step(self, direction: Any, index: Any) -> tuple[Step, Float[Array, "16 k"]]:
        """Read step `index` of the direction's chunks, and its tokens."""
        _, h, w, _ = self.shape.image
        lines, is_column = jnp.arange(TILE, dtype=jnp.int32)[:, None], direction & 1
        along = jnp.abs((TILE - 1) * (direction >> 1) - index)  # from the end for 2 and 3
        y, x = _divide(self.tile, self.shape.tiles[1])
        y = y * TILE + jnp.where(is_column == 0, lines, along)
        x = x * TILE + jnp.where(is_column == 0, along, lines)
        pixel, is_stored = y * w + x, (y < h) & (x < w)
        is_inside = (y < self.size[0]) & (x < self.size[1])

        def load(column: Any, mask: Array) -> Array:
            at = self.projections_ref.at[self.image, pixel, direction, column]
            return triton.load(at, mask=mask, other=0.0)

        count, columns = self.shape.num_projections, self.shape.columns
        dt = load(columns, is_stored & (columns < count))
        b, c = load(count - 2, is_stored), load(count - 1, is_stored)
        step = Step(pixel, is_stored, is_inside, dt, b, c)
        return step, self.tokens(self.x_ref, step)

    def tokens(self, ref: Any, step: Step, *, where: Any = True) -> Float[Array, "16 k"]:
        at, mask = ref.at[self.image, step.index, self.channels], step.is_stored & self.is_channel
        return triton.load(at, mask=mask & where, other=0.0).astype(jnp.float32)

    def store(self, ref: Any, step: Step, value: Array, *, where: Any = True) -> None:
        at, mask = ref.at[self.image, step.index, self.channels], step.is_stored & self.is_channel
        triton.store(at, value.astype(ref.dtype), mask=mask & where)

    def chunks(self, ref: Any, direction: Any) -> Any:
        """Return the position of the chunks' states, in the order of sequence 0, or 1."""
        rows, columns = self.shape.tiles
        (y, x), is_column = _divide(self.tile, columns), direction & 1
        lines = jnp.arange(TILE, dtype=jnp.int32)[:, None]
        line = (y + is_column * (x - y)) * TILE + lines
        index = line * (columns + is_column * (rows - columns)) + x + is_column * (y - x)
        return ref.at[direction, self.image, index, self.channels]

    def load_states(self, ref: Any, direction: Any) -> Float[Array, "16 k"]:
        return triton.load(self.chunks(ref, direction), mask=self.is_channel, other=0.0)

    def product(self, a: Array, b: Array, **transposed: bool) -> Array:
        """Multiply as float32: three products of TF32, right to 1e-6, on the chip."""
        precision: Any = lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        if self.shape.interpret:
            precision = lax.Precision.HIGHEST
        return triton.dot(a, b, precision=precision, **transposed)

    def pre_delta(self, weights: DirectionWeights, step: Step) -> Float[Array, "16 k"]:
        return self.product(step.dt, weights.kernel) + weights.bias

    def delta(self, z: Array, step: Step) -> Float[Array, "16 k"]:
        """Return softplus(z), or 0 beyond the true image."""
        value = softplus(z, lambda x: self.exp2(-LOG2_E * x), self.fma)
        return jnp.where(step.is_inside, value, 0.0)

    def next_state(
        self, weights: DirectionWeights, step: Step, x: Array, delta: Array, state: Array
    ) -> Array:
        return self.fma(delta, step.b * x, self.exp2(weights.rate * delta) * state)

    def exp2(self, x: Array) -> Array:
        """Return 2^x by the chip's instruction alone, right to 2e-7; 0 in place of denormals."""
        if self.shape.interpret:
            return jnp.exp2(x)
        return _instruction("ex2.approx.ftz.f32 $0, $1;", x)

    def fma(self, a: Any, b: Any, c: Any) -> Array:
        """Return a·b + c in one instruction; XLA would make it two."""
        if self.shape.interpret:
            return a * b + c
        return _instruction("fma.rn.f32 $0, $1, $2, $3;", *jnp.broadcast_arrays(a, b, c))

    def barrier(self) -> None:
        """Let this program's threads read what its others have written."""
        if not self.shape.interpret:
            triton.debug_barrier()


def _instruction(code: str, *args: Array) -> Array:
    (value,) = triton.elementwise_inline_asm(
        code,
        args=args,
        constraints=",".join(["=f", *["f"] * len(args)]),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(args[0].shape, jnp.float32)],
    )
    return value


def _divide(a: Any, b: int) -> tuple[Any, Any]:
    """Return quotient and remainder of what is not negative."""
    return lax.div(a, np.int32(b)), lax.rem(a, np.int32(b))
