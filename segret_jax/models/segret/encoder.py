"""The encoder: Vision RetNet (RMT, Fan et al., CVPR 2024) in SegRet's and in its own flavor.

Four stages of retention blocks at strides 4, 8, 16 and 32. SegRet's encoder leaves out two parts
of the RMT ImageNet classifier, so the two families of checkpoints need different flavors:

    SegRet        rotary=False, ffn_conv=False
    RMT ImageNet  rotary=True,  ffn_conv=True
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segret_jax.models.kernels import ANY_PLATFORM, Kernels, Platform
from segret_jax.models.layers import (
    BatchNorm,
    DepthwiseConv,
    LayerNorm,
    SampleKeys,
    conv3x3,
    drop_path,
    gelu,
    normal_init,
)
from segret_jax.models.retention.decay import Decay, head_log_decay
from segret_jax.models.retention.layer import Retention
from segret_jax.models.segret.variants import Variant

MIN_LOOP = 16  # blocks of a stage, from which on a loop is worth its stacking of parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """What can be chosen beside the variant; the defaults are SegRet's released encoder."""

    rotary: bool = False
    ffn_conv: bool = False
    decay: Decay = Decay.ADDITIVE
    max_scores: int = 2**25
    kernels: Kernels = Kernels.AUTO
    platform: Platform = ANY_PLATFORM
    dtype: DTypeLike = jnp.float32
    remat: tuple[int, ...] = ()  # stages, from 1, whose blocks the backward pass computes again


class Stem(nnx.Module):
    """Four 3×3 convolutions with batch norm; stride 4 in all."""

    def __init__(self, channels: int, *, options: EncoderOptions, rngs: nnx.Rngs):
        half = channels // 2
        plan = [(3, half, 2), (half, half, 1), (half, channels, 2), (channels, channels, 1)]
        self.convs = nnx.List(
            conv3x3(i, o, stride=stride, dtype=options.dtype, rngs=rngs) for i, o, stride in plan
        )
        self.norms = nnx.List(BatchNorm(o, dtype=options.dtype) for _, o, _ in plan)

    @jax.named_scope("stem")
    def __call__(self, x: Float[Array, "b H W 3"], *, train: bool) -> Float[Array, "b h w c"]:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x if i == 0 else gelu(x)), train=train)
        return x


class FeedForward(nnx.Module):
    """Linear, GELU, (in the RMT flavor a residual depthwise convolution,) Linear."""

    def __init__(self, channels: int, ratio: int, *, options: EncoderOptions, rngs: nnx.Rngs):
        hidden, dtype = ratio * channels, options.dtype
        self.fc1 = nnx.Linear(channels, hidden, kernel_init=normal_init(), dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, channels, kernel_init=normal_init(), dtype=dtype, rngs=rngs)
        if options.ffn_conv:
            self.dwconv = DepthwiseConv(hidden, 3, kernels=options.kernels, dtype=dtype, rngs=rngs)
        self.has_conv = options.ffn_conv

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        # The backward pass makes the GELU's output again, which is `ratio` times as large as x.
        return jax.checkpoint(self._from_hidden)(self.fc1(x))

    def _from_hidden(self, x: Float[Array, "b h w k"]) -> Float[Array, "b h w c"]:
        x = gelu(x)
        if self.has_conv:
            x = x + self.dwconv(x)
        return self.fc2(x)


class Block(nnx.Module):
    """Positional convolution, retention and feed-forward, each a residual."""

    draws = 2  # from the keys, for drop path

    def __init__(
        self,
        variant: Variant,
        stage: int,
        *,
        drop_path: float,
        options: EncoderOptions,
        rngs: nnx.Rngs,
    ):
        channels, dtype = variant.widths[stage], options.dtype
        self.pos = DepthwiseConv(channels, 3, kernels=options.kernels, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.retention = Retention(
            channels,
            head_log_decay(
                variant.heads[stage],
                initial=variant.decay_initial,
                span=variant.decay_spans[stage],
            ),
            decomposed=variant.decomposed[stage],
            rotary=options.rotary,
            decay=options.decay,
            max_scores=options.max_scores,
            kernels=options.kernels,
            capability=options.platform.capability,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.ffn = FeedForward(channels, variant.ffn_ratios[stage], options=options, rngs=rngs)

        def gamma() -> nnx.Param | None:
            return (
                nnx.Param(jnp.full(channels, 1e-6, jnp.float32))
                if variant.layer_scale[stage]
                else None
            )

        self.gamma1, self.gamma2 = gamma(), gamma()
        self.drop_rate = drop_path

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        *,
        train: bool,
        keys: SampleKeys | None,
        drop_rate: Float[Array, ""] | None = None,  # instead of its own
    ) -> Float[Array, "b h w c"]:
        rate = self.drop_rate if drop_rate is None else drop_rate

        def scaled(branch: Array, gamma: nnx.Param | None) -> Array:
            if gamma is not None:
                branch = gamma[...].astype(branch.dtype) * branch
            if train and keys is not None:
                branch = drop_path(branch, rate, keys=keys)
            return branch

        with jax.named_scope("pos"):
            x = x + self.pos(x)
        with jax.named_scope("retention"):
            x = x + scaled(self.retention(self.norm1(x)), self.gamma1)
        with jax.named_scope("ffn"):
            return x + scaled(self.ffn(self.norm2(x)), self.gamma2)


class Downsample(nnx.Module):
    """Halve the resolution: 3×3 convolution of stride 2, batch norm."""

    def __init__(self, c_in: int, c_out: int, *, options: EncoderOptions, rngs: nnx.Rngs):
        self.conv = conv3x3(c_in, c_out, stride=2, dtype=options.dtype, rngs=rngs)
        self.norm = BatchNorm(c_out, dtype=options.dtype)

    @jax.named_scope("downsample")
    def __call__(self, x: Float[Array, "b H W c"], *, train: bool) -> Float[Array, "b h w k"]:
        return self.norm(self.conv(x), train=train)


class Encoder(nnx.Module):
    """Map an image to the four stages' feature maps, at strides 4, 8, 16 and 32.

    Drop path grows linearly from 0 at the first block to `drop_path` at the last.
    """

    def __init__(
        self, variant: Variant, *, drop_path: float, options: EncoderOptions, rngs: nnx.Rngs
    ):
        total = sum(variant.depths)
        rates = iter([drop_path * i / max(total - 1, 1) for i in range(total)])
        self.stem = Stem(variant.widths[0], options=options, rngs=rngs)
        self.stages = nnx.List(
            nnx.List(
                Block(variant, stage, drop_path=next(rates), options=options, rngs=rngs)
                for _ in range(depth)
            )
            for stage, depth in enumerate(variant.depths)
        )
        self.downsamples = nnx.List(
            Downsample(c_in, c_out, options=options, rngs=rngs)
            for c_in, c_out in zip(variant.widths[:-1], variant.widths[1:], strict=True)
        )
        self.remat = options.remat
        # Measured on CPU alone: a shorter compilation, less memory, the same speed.
        self.has_loops = options.platform.is_cpu

    @jax.named_scope("encoder")
    def __call__(
        self,
        image: Float[Array, "b H W 3"],
        *,
        train: bool = False,
        keys: SampleKeys | None = None,
    ) -> Sequence[Float[Array, "b h w c"]]:
        x = self.stem(image, train=train)
        maps = []
        for i, blocks in enumerate(self.stages):
            with jax.named_scope(f"stage{i + 1}"):
                if i > 0:
                    x = self.downsamples[i - 1](x, train=train)
                remat = jax.checkpoint if i + 1 in self.remat else lambda f: f
                if train and self.has_loops and len(blocks) >= MIN_LOOP:
                    with jax.named_scope("blocks"):
                        x = _in_loop(blocks, x, keys=keys, remat=remat)
                else:
                    for j, block in enumerate(blocks):
                        apply = functools.partial(block, train=train, keys=keys)
                        with jax.named_scope(f"block{j}"):
                            x = remat(apply)(x)
            maps.append(x)  # before the downsample
        return maps


def _in_loop(
    blocks: Sequence[Block],
    x: Float[Array, "b h w c"],
    *,
    keys: SampleKeys | None,
    remat: Callable,
) -> Float[Array, "b h w c"]:
    """Train equal blocks one after another: one program, run for each with its parameters."""
    graphs, states = zip(*(nnx.split(block, nnx.Param) for block in blocks), strict=True)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    rates = [block.drop_rate for block in blocks]
    keys = keys if any(rates) else None
    draws = None if keys is None else keys.reserve(len(blocks), Block.draws)

    def apply(x: Array, block: Any) -> tuple[Array, None]:
        params, rate, draws = block
        own_keys = None if keys is None else keys.at(draws)
        model = nnx.merge(graphs[0], params)
        return model(x, train=True, keys=own_keys, drop_rate=rate), None

    return jax.lax.scan(remat(apply), x, (params, jnp.array(rates), draws))[0]
