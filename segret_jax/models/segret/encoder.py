"""The encoder: Vision RetNet (RMT, Fan et al., CVPR 2024), as SegRet and as RMT have it.

Four stages of retention blocks at strides 4, 8, 16 and 32. SegRet's encoder leaves out two parts of
the RMT ImageNet classifier's, so their checkpoints need different options:

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
from jaxtyping import Array, Float

from segret_jax.models import layers
from segret_jax.models.config import ModelConfig
from segret_jax.models.kernels import ANY_PLATFORM, Kernels, Platform, announce_blocks
from segret_jax.models.layers import FeatureMap, Rate, SampleKeys
from segret_jax.models.retention.decay import Decay, head_log_decay
from segret_jax.models.retention.layer import Retention, RetentionOptions
from segret_jax.models.segret.variants import Variant

MIN_LOOP = 16  # blocks of a stage from which on a loop is worth stacking their parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderOptions(RetentionOptions):
    """Options beside the variant; the defaults are SegRet's released encoder."""

    ffn_conv: bool = False
    remat: tuple[int, ...] = ()  # stages, from 1, whose blocks the backward pass recomputes


def encoder_options(config: ModelConfig, platform: Platform = ANY_PLATFORM) -> EncoderOptions:
    """Return the options of the encoder.

    Prints a line, once, if the devices are GPUs that cannot run the Triton kernels.

    Args:
        config: The settings of the model.
        platform: The devices that will run the model (`kernels.platform_of`).

    Returns:
        The options that the settings give.
    """
    announce_blocks(platform.capability)
    settings = config.settings
    return EncoderOptions(
        rotary=settings.rotary,
        ffn_conv=settings.ffn_conv,
        decay=Decay(settings.decay),
        max_scores=settings.max_scores,
        kernels=Kernels(config.kernels),
        platform=platform,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )


class Stem(nnx.Module):
    """Four 3×3 convolutions with batch norm; stride 4 in all."""

    def __init__(self, channels: int, *, options: EncoderOptions, rngs: nnx.Rngs):
        half = channels // 2
        plan = [(3, half, 2), (half, half, 1), (half, channels, 2), (channels, channels, 1)]
        self.convs = nnx.List(
            layers.conv3x3(i, o, stride=s, dtype=options.dtype, rngs=rngs) for i, o, s in plan
        )
        self.norms = nnx.List(layers.BatchNorm(o, dtype=options.dtype) for _, o, _ in plan)

    @jax.named_scope("stem")
    def __call__(self, x: Float[Array, "b H W 3"], *, train: bool) -> FeatureMap:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x if i == 0 else layers.gelu(x)), train=train)
        return x


class FeedForward(nnx.Module):
    """FFN(x) = W_2 C(GELU(W_1 x)); with `ffn_conv` C(h) = h + DWConv(h), else C(h) = h."""

    def __init__(self, channels: int, ratio: int, *, options: EncoderOptions, rngs: nnx.Rngs):
        hidden, dtype, kernels = ratio * channels, options.dtype, options.kernels
        init = layers.normal_init()
        self.fc1 = nnx.Linear(channels, hidden, kernel_init=init, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, channels, kernel_init=init, dtype=dtype, rngs=rngs)
        if options.ffn_conv:
            self.dwconv = layers.DepthwiseConv(hidden, 3, kernels=kernels, dtype=dtype, rngs=rngs)
        self.has_conv = options.ffn_conv

    def __call__(self, x: FeatureMap) -> FeatureMap:
        # Recompute the GELU's output in the backward pass: it is `ratio` times as large as x.
        return jax.checkpoint(self._from_hidden)(self.fc1(x))

    def _from_hidden(self, x: Float[Array, "b h w k"]) -> FeatureMap:
        x = layers.gelu(x)
        if self.has_conv:
            x = x + self.dwconv(x)
        return self.fc2(x)


class Block(nnx.Module):
    """A retention block: three residual branches.

        x ← x + DWConv(x)
        x ← x + γ₁ · Retention(LN(x))
        x ← x + γ₂ · FFN(LN(x))

    Only stages with layer scale have γ. In training, drop path drops the last two branches.
    """

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
        channels, dtype, kernels = variant.widths[stage], options.dtype, options.kernels
        log_decay = head_log_decay(variant.heads[stage], span=variant.decay_spans[stage])
        self.pos = layers.DepthwiseConv(channels, 3, kernels=kernels, dtype=dtype, rngs=rngs)
        self.norm1 = layers.LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.retention = Retention(
            channels, log_decay, decomposed=variant.decomposed[stage], options=options, rngs=rngs
        )
        self.norm2 = layers.LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.ffn = FeedForward(channels, variant.ffn_ratios[stage], options=options, rngs=rngs)

        gammas: list[Any] = [None, None]
        if variant.layer_scale[stage]:
            gammas = [nnx.Param(jnp.full(channels, 1e-6, jnp.float32)) for _ in range(2)]
        self.gamma1, self.gamma2 = gammas
        self.drop_rate = drop_path

    def __call__(
        self, x: FeatureMap, *, train: bool, keys: SampleKeys | None, drop_rate: Rate | None = None
    ) -> FeatureMap:
        """Return the block's output; `drop_rate`, if given, replaces the block's own."""
        rate = self.drop_rate if drop_rate is None else drop_rate

        def scaled(branch: Array, gamma: nnx.Param | None) -> Array:
            if gamma is not None:
                branch = layers.per_channel(gamma[...].astype(branch.dtype), branch.ndim) * branch
            if train and keys is not None:
                branch = layers.drop_path(branch, rate, keys=keys)
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
        self.conv = layers.conv3x3(c_in, c_out, stride=2, dtype=options.dtype, rngs=rngs)
        self.norm = layers.BatchNorm(c_out, dtype=options.dtype)

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
        """Initialize the weights.

        Args:
            variant: The published size.
            drop_path: The drop path rate of the last block.
            options: The options beside the variant (`encoder_options`).
            rngs: The source of the initial weights.
        """
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
        self, image: Float[Array, "b H W 3"], *, train: bool = False, keys: SampleKeys | None = None
    ) -> Sequence[FeatureMap]:
        """Return the feature maps of the stages.

        Args:
            image: Normalized RGB.
            train: Whether to normalize by the batch, and to update the running statistics.
            keys: The randomness of drop path in training; None: no drop path.

        Returns:
            The four maps, each before the downsample after it. Every halving rounds up.
        """
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
    blocks: Sequence[Block], x: FeatureMap, *, keys: SampleKeys | None, remat: Callable
) -> FeatureMap:
    """Apply equal blocks in training by a scan over their stacked parameters."""
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
