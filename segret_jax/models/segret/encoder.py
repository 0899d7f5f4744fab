"""The encoder: Vision RetNet (RMT, Fan et al., CVPR 2024), as SegRet and as RMT have it.

Four stages of retention blocks at strides 4, 8, 16 and 32. SegRet's encoder leaves out two parts of
the RMT ImageNet classifier's, so their checkpoints need different options:

    SegRet        rotary=False, ffn_conv=False
    RMT ImageNet  rotary=True,  ffn_conv=True
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from segret_jax.models import layers
from segret_jax.models.blocks import Encoder, FeedForward
from segret_jax.models.config import ModelConfig
from segret_jax.models.kernels import ANY_PLATFORM, Kernels, Platform, announce_blocks
from segret_jax.models.layers import FeatureMap, MapSize, Rate, SampleKeys, zero_outside
from segret_jax.models.retention.decay import Decay, head_log_decay
from segret_jax.models.retention.layer import Retention, RetentionOptions
from segret_jax.models.segret.variants import Variant


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
        channels, dtype = variant.widths[stage], options.dtype
        kernels, platform = options.kernels, options.platform
        log_decay = head_log_decay(variant.heads[stage], span=variant.decay_spans[stage])
        self.pos = layers.DepthwiseConv(
            channels, 3, kernels=kernels, platform=platform, dtype=dtype, rngs=rngs
        )
        self.norm1 = layers.LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.retention = Retention(
            channels, log_decay, decomposed=variant.decomposed[stage], options=options, rngs=rngs
        )
        self.norm2 = layers.LayerNorm(channels, dtype=dtype, rngs=rngs)
        hidden = variant.ffn_ratios[stage] * channels
        self.ffn = FeedForward(
            channels, hidden, conv=options.ffn_conv,
            kernels=kernels, platform=platform, dtype=dtype, rngs=rngs,
        )  # fmt: skip

        gammas: list[Any] = [None, None]
        if variant.layer_scale[stage]:
            gammas = [nnx.Param(jnp.full(channels, 1e-6, jnp.float32)) for _ in range(2)]
        self.gamma1, self.gamma2 = gammas
        self.drop_rate = drop_path

    def __call__(
        self,
        x: FeatureMap,
        *,
        train: bool,
        keys: SampleKeys | None,
        drop_rate: Rate | None = None,
        size: MapSize | None = None,
    ) -> FeatureMap:
        """Return the block's output; `drop_rate`, if given, replaces the block's own.

        `size` is the true height and width of a padded map.
        """
        rate = self.drop_rate if drop_rate is None else drop_rate

        def scaled(branch: Array, gamma: nnx.Param | None) -> Array:
            if gamma is not None:
                branch = layers.per_channel(gamma[...].astype(branch.dtype), branch.ndim) * branch
            if train and keys is not None:
                branch = layers.drop_path(branch, rate, keys=keys)
            return branch

        with jax.named_scope("pos"):
            x = zero_outside(x, size)
            x = x + self.pos(x)
        with jax.named_scope("retention"):
            x = x + scaled(self.retention(self.norm1(x), size=size), self.gamma1)
        with jax.named_scope("ffn"):
            return x + scaled(self.ffn(self.norm2(x), size=size), self.gamma2)


def build_encoder(
    variant: Variant, *, drop_path: float, options: EncoderOptions, rngs: nnx.Rngs
) -> Encoder:
    """Return an encoder with initial weights.

    Args:
        variant: The published size.
        drop_path: The drop path rate of the last block.
        options: The options beside the variant (`encoder_options`).
        rngs: The source of the initial weights.
    """
    return Encoder(
        variant.widths,
        variant.depths,
        lambda stage, rate: Block(variant, stage, drop_path=rate, options=options, rngs=rngs),
        functools.partial(layers.conv3x3, dtype=options.dtype, rngs=rngs),
        drop_path=drop_path,
        remat=options.remat,
        on_cpu=options.platform.is_cpu,
        dtype=options.dtype,
    )
