"""Parts that the encoders of several families have: stem, downsampling, feed-forward network."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segret_jax.models import layers
from segret_jax.models.kernels import Kernels, Platform
from segret_jax.models.layers import FeatureMap, MapSize, SampleKeys, strided, zero_outside

MIN_LOOP = 16  # blocks of a stage from which on a loop is worth stacking their parameters

ZEROS = nnx.initializers.zeros_init()

Conv = Callable[..., nnx.Conv]  # (channels in, channels out, stride=…): a 3×3 convolution


class Stem(nnx.Module):
    """Four 3×3 convolutions with batch norm, GELU between them; stride 4 in all."""

    def __init__(self, channels: int, conv: Conv, *, dtype: DTypeLike):
        half = channels // 2
        plan = [(3, half, 2), (half, half, 1), (half, channels, 2), (channels, channels, 1)]
        self.convs = nnx.List(conv(i, o, stride=s) for i, o, s in plan)
        self.norms = nnx.List(layers.BatchNorm(o, dtype=dtype) for _, o, _ in plan)

    @jax.named_scope("stem")
    def __call__(
        self, x: Float[Array, "b H W 3"], *, train: bool, size: MapSize | None = None
    ) -> FeatureMap:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = zero_outside(x if i == 0 else layers.gelu(x), size)
            x = norm(conv(x), train=train)
            size = strided(size) if i % 2 == 0 else size
        return x


class Downsample(nnx.Module):
    """Halve the resolution: 3×3 convolution of stride 2, batch norm."""

    def __init__(self, c_in: int, c_out: int, conv: Conv, *, dtype: DTypeLike):
        self.conv = conv(c_in, c_out, stride=2)
        self.norm = layers.BatchNorm(c_out, dtype=dtype)

    @jax.named_scope("downsample")
    def __call__(
        self, x: Float[Array, "b H W c"], *, train: bool, size: MapSize | None = None
    ) -> Float[Array, "b h w k"]:
        return self.norm(self.conv(zero_outside(x, size)), train=train)


class FeedForward(nnx.Module):
    """FFN(x) = W_2 C(GELU(W_1 x)); with `conv` C(h) = h + DWConv(h), else C(h) = h."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        conv: bool,
        kernels: Kernels,
        platform: Platform,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        conv_init: nnx.Initializer | None = None,
        uniform: bool = False,
    ):
        """Initialize the weights.

        Args:
            channels: The channels of input and output.
            hidden: The channels in between.
            conv: Whether there is a convolution.
            kernels: The choice of kernels.
            platform: The devices (`kernels.platform_of`).
            dtype: The dtype of the computation; parameters are float32.
            rngs: The source of the initial weights.
            conv_init: The initializer of the convolution's kernel (`layers.DepthwiseConv`).
            uniform: Whether kernels and biases of W_1 and W_2 are PyTorch's (`uniform_init`); else
                kernels are normal, and biases zero.
        """

        def linear(c_in: int, c_out: int) -> nnx.Linear:
            init = layers.uniform_init(c_in)
            inits = (init, init) if uniform else (layers.normal_init(), ZEROS)
            return nnx.Linear(
                c_in, c_out, kernel_init=inits[0], bias_init=inits[1], dtype=dtype, rngs=rngs
            )

        self.fc1, self.fc2 = linear(channels, hidden), linear(hidden, channels)
        if conv:
            self.dwconv = layers.DepthwiseConv(
                hidden, 3, init=conv_init,
                kernels=kernels, platform=platform, dtype=dtype, rngs=rngs,
            )  # fmt: skip
        self.has_conv = conv

    def __call__(self, x: FeatureMap, *, size: MapSize | None = None) -> FeatureMap:
        # Recompute the GELU's output in the backward pass: it is several times as large as x.
        return jax.checkpoint(self._from_hidden)(self.fc1(x), size)

    def _from_hidden(self, x: Float[Array, "b h w k"], size: MapSize | None) -> FeatureMap:
        x = layers.gelu(x)
        if self.has_conv:
            x = self.dwconv(zero_outside(x, size), residual=True)
        return self.fc2(x)


def apply_layer(
    layer: nnx.Module, x: Float[Array, "*shape"], *, outline: bool, **options: Any
) -> Float[Array, "*shape"]:
    """Apply a layer; with `outline` as a function that XLA does not inline, which suits CPUs.

    XLA compiles a kernel for each distinct fusion, and it fuses a layer with what is before and
    after it: equal layers get different kernels. In such functions their kernels are equal, and
    are compiled once.

    Args:
        layer: A layer; with `outline` one without running statistics: updates would be lost.
        x: Its input.
        outline: Whether XLA keeps the layer as a function of its own.
        options: Keyword arguments of the layer's call; hashable.

    Returns:
        The layer's output.
    """
    if not outline:
        return layer(x, **options)
    graph, variables = nnx.split(layer)
    return _not_inlined(_applied(graph, tuple(options.items()), nnx.to_pure_dict(variables), x))


def split_rows(
    matrix: Float[Array, "r c"], sizes: Sequence[int], *, outline: bool
) -> list[Float[Array, "_ c"]]:
    """Split a matrix into blocks of consecutive rows.

    Args:
        matrix: The matrix.
        sizes: The number of rows of each block.
        outline: Whether XLA keeps functions that give the blocks, with one kernel for all blocks of
            a size (see `apply_layer`).

    Returns:
        The blocks.
    """
    *starts, _ = itertools.accumulate(sizes, initial=0)
    if not outline:
        return jnp.split(matrix, starts[1:])
    # Without the barrier XLA moves a constant start into the function: a kernel for each start.
    return [
        _not_inlined(_rows(size, matrix, lax.optimization_barrier(jnp.int32(start))))
        for start, size in zip(starts, sizes, strict=True)
    ]


@functools.partial(jax.jit, static_argnums=0)
def _rows(size: int, matrix: Array, start: Array) -> Array:
    return lax.dynamic_slice_in_dim(matrix, start, size, allow_negative_indices=False)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _applied(graph: Any, options: tuple[tuple[str, Any], ...], variables: Any, x: Array) -> Array:
    return nnx.merge(graph, variables)(x, **dict(options))


def _not_inlined(result: Array) -> Array:
    """Tell XLA not to inline the jitted function that has just returned this very array."""
    return set_xla_metadata(result, inlineable="false")


class Encoder(nnx.Module):
    """Map an image to the feature maps of its stages, at strides 4, 8, 16 and so on.

    A stage is blocks of one width, with a downsample before it (the first one: with the stem). Drop
    path grows linearly from 0 at the first block to `drop_path` at the last.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        block: Callable[[int, float], nnx.Module],
        conv: Conv,
        *,
        drop_path: float,
        remat: tuple[int, ...],
        on_cpu: bool,
        outline_blocks: bool = False,
        dtype: DTypeLike,
    ):
        """Initialize the weights.

        Args:
            widths: The channels of each stage.
            depths: The number of blocks of each stage.
            block: Makes a block of a stage (from 0) with a drop path rate. A block maps
                `(x, *, train, keys, drop_rate, size)` to a map of the same shape; `drop_rate`, if
                given, replaces its own; `size` is the true size of a padded x. It has the
                attributes `drop_rate`, and `draws`, those from `keys`.
            conv: Makes the convolutions of stem and downsamples.
            drop_path: The drop path rate of the last block.
            remat: Stages, from 1, whose blocks the backward pass recomputes.
            on_cpu: Whether CPUs run the model.
            outline_blocks: Whether XLA keeps blocks as functions in evaluation (`apply_layer`).
            dtype: The dtype of the computation; parameters are float32.
        """
        total = sum(depths)
        rates = iter([drop_path * i / max(total - 1, 1) for i in range(total)])
        self.stem = Stem(widths[0], conv, dtype=dtype)
        self.stages = nnx.List(
            nnx.List(block(stage, next(rates)) for _ in range(depth))
            for stage, depth in enumerate(depths)
        )
        self.downsamples = nnx.List(
            Downsample(c_in, c_out, conv, dtype=dtype) for c_in, c_out in itertools.pairwise(widths)
        )
        self.remat = remat
        # Measured on CPU alone: a shorter compilation, less memory, the same speed.
        self.has_loops = on_cpu
        self.outline_blocks = outline_blocks

    @jax.named_scope("encoder")
    def __call__(
        self,
        image: Float[Array, "b H W 3"],
        *,
        train: bool = False,
        keys: SampleKeys | None = None,
        size: MapSize | None = None,
    ) -> Sequence[FeatureMap]:
        """Return the feature maps of the stages.

        Args:
            image: Normalized RGB.
            train: Whether to normalize by the batch, and to update the running statistics.
            keys: The randomness of drop path in training; None: no drop path.
            size: The true height and width of a padded image, in evaluation.

        Returns:
            The maps, each before the downsample after it. Every halving rounds up.
        """
        x = self.stem(image, train=train, size=size)
        size = strided(size, 4)
        maps = []
        for i, blocks in enumerate(self.stages):
            with jax.named_scope(f"stage{i + 1}"):
                if i > 0:
                    x = self.downsamples[i - 1](x, train=train, size=size)
                    size = strided(size)
                is_recomputed = i + 1 in self.remat
                if not train:
                    x = _in_evaluation(blocks, x, size, outline=self.outline_blocks)
                elif self.has_loops and len(blocks) >= MIN_LOOP:
                    with jax.named_scope("blocks"):
                        x = _in_loop(blocks, x, keys=keys, is_recomputed=is_recomputed)
                else:
                    for j, block in enumerate(blocks):
                        apply = functools.partial(_recomputed, block) if is_recomputed else block
                        with jax.named_scope(f"block{j}"):
                            x = apply(x, train=True, keys=keys)
            maps.append(x)  # before the downsample
        return maps


def _in_evaluation(
    blocks: Sequence[Any], x: FeatureMap, size: MapSize | None, *, outline: bool
) -> FeatureMap:
    """Apply equal blocks one after the other; they differ in drop rates, which are for training."""
    graph = nnx.graphdef(blocks[0])
    for j, block in enumerate(blocks):
        with jax.named_scope(f"block{j}"):
            variables = nnx.to_pure_dict(nnx.state(block))
            if outline:
                x = _not_inlined(_evaluated_outlined(graph, variables, x, size))
            else:
                x = _evaluated_inline(graph, variables, x, size)
    return x


def _evaluated(graph: Any, variables: Any, x: FeatureMap, size: MapSize | None) -> FeatureMap:
    return nnx.merge(graph, variables)(x, train=False, keys=None, size=size)


# Traced once for all blocks of a stage.
_evaluated_inline = jax.jit(_evaluated, static_argnums=0, inline=True)
_evaluated_outlined = jax.jit(_evaluated, static_argnums=0)


def _recomputed(block: Any, x: FeatureMap, *, train: bool, keys: SampleKeys | None) -> FeatureMap:
    """Apply a block that the backward pass computes again."""
    graph, *variables = nnx.split(block, nnx.Param, nnx.BatchStat)

    @jax.checkpoint
    def apply(x: FeatureMap, variables: Any) -> Any:
        model = nnx.merge(graph, *variables)  # running statistics are updated in their own trace
        return model(x, train=train, keys=keys), nnx.state(model, nnx.BatchStat)

    x, updated = apply(x, variables)
    nnx.update(block, updated)
    return x


def _in_loop(
    blocks: Sequence[Any], x: FeatureMap, *, keys: SampleKeys | None, is_recomputed: bool
) -> FeatureMap:
    """Apply equal blocks in training by a scan over their stacked parameters."""
    graphs, *states = zip(
        *(nnx.split(block, nnx.Param, nnx.BatchStat) for block in blocks), strict=True
    )
    params, batch_stats = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *s) for s in states)
    rates = [block.drop_rate for block in blocks]
    keys = keys if any(rates) else None
    draws = None if keys is None else keys.reserve(len(blocks), blocks[0].draws)

    def apply(x: Array, block: Any) -> tuple[Array, Any]:
        variables, rate, draws = block
        own_keys = None if keys is None else keys.at(draws)
        model = nnx.merge(graphs[0], *variables)
        x = model(x, train=True, keys=own_keys, drop_rate=rate)
        return x, nnx.state(model, nnx.BatchStat)

    step = jax.checkpoint(apply) if is_recomputed else apply
    x, updated = lax.scan(step, x, ((params, batch_stats), jnp.array(rates), draws))
    for i, block in enumerate(blocks):
        nnx.update(block, jax.tree.map(lambda leaf: leaf[i], updated))  # noqa: B023
    return x
