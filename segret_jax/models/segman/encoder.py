"""The encoder of SegMAN: four stages at strides 4, 8, 16 and 32 (arXiv 2412.11890).

Every block attends to the neighborhood of each pixel, by queries and keys that are rotated by the
pixel's position. Stages 1 to 3 then scan the attended map along its rows and columns; stage 4
attends over the whole image, with the output of the neighborhood attention as values. (The paper's
figure scans in all stages; this is what the released code does.)
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from segret_jax.errors import InputError
from segret_jax.models import layers
from segret_jax.models.blocks import Encoder, FeedForward, apply_layer
from segret_jax.models.config import ModelConfig
from segret_jax.models.kernels import ANY_PLATFORM, Kernels, Platform, announce_blocks
from segret_jax.models.layers import FeatureMap, MapSize, Rate, SampleKeys, zero_outside
from segret_jax.models.neighborhood.attention import fast_neighborhood_attention
from segret_jax.models.neighborhood.formulas import Heads, neighborhood_attention
from segret_jax.models.segman.global_attention import TOKENS, global_attention
from segret_jax.models.segman.scan_layer import SelectiveScan
from segret_jax.models.segman.variants import MIN_SIDE, Variant

GLOBAL_STAGE = 3  # from 0: the one without a scan


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """Options beside the variant."""

    kernels: Kernels = Kernels.AUTO
    platform: Platform = ANY_PLATFORM
    dtype: DTypeLike = jnp.float32
    remat: tuple[int, ...] = ()  # stages, from 1, whose blocks the backward pass recomputes

    @property
    def outline(self) -> bool:
        """Whether to choose forms that XLA compiles faster: functions of their own.

        Blocks, norms and position convolutions are such, and what slices the decoder's kernels.
        On CPU, but not in the reference, which may be exported to any backend. SegRet's are
        inlined on CPU, too: its forward pass would be 2 percent slower.
        """
        return self.platform.is_cpu and self.kernels is Kernels.AUTO


def encoder_options(config: ModelConfig, platform: Platform = ANY_PLATFORM) -> EncoderOptions:
    """Return the options that the settings give, for the devices that will run the model."""
    announce_blocks(platform.capability)
    return EncoderOptions(
        kernels=Kernels(config.kernels),
        platform=platform,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )


def check_windows(size: tuple[int, ...]) -> None:
    """Raise InputError for an image in whose last stage the windows do not fit."""
    if min(size) < MIN_SIDE:
        remedy = f"give sides of {MIN_SIDE} pixels or more"
        raise InputError(f"the input is {size[0]}x{size[1]}, which SegMAN does not take: {remedy}")


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
    init, dtype = layers.normal_init(), options.dtype
    return Encoder(
        variant.widths,
        variant.depths,
        lambda stage, rate: Block(variant, stage, drop_path=rate, options=options, rngs=rngs),
        functools.partial(layers.conv3x3, use_bias=False, init=init, dtype=dtype, rngs=rngs),
        drop_path=drop_path,
        remat=options.remat,
        on_cpu=options.platform.is_cpu,
        outline_blocks=options.outline,
        dtype=dtype,
    )


def rotate(x: Heads, *, scale: float | Sequence[float] = 1.0) -> Heads:
    """Rotate channel pairs (2j, 2j+1): the first half by the row, the second by the column.

    With m = ⌊d/4⌋ the angles of each half are position·10000^(−j/(m−1)) for j < m. Positions are
    pixels from 0, whatever the size of the image.

    Args:
        x: Queries, keys or both.
        scale: A factor, of all heads or of each.

    Returns:
        The rotated heads, times `scale`.
    """
    (_, h, w, n, d), dtype = x.shape, layers.accum_dtype(x.dtype)
    frequency = 10000.0 ** -np.linspace(0, 1, d // 4)
    is_by_row = np.arange(d // 2) < d // 4

    def table(side: int, is_used: np.ndarray) -> np.ndarray:
        """Return cos and sin of each pair's angle along an axis; 0 for the other axis's pairs."""
        angles = np.outer(np.arange(side), np.tile(frequency, 2))
        return np.concatenate([np.cos(angles) * is_used, np.sin(angles) * is_used], -1)

    by_row = jnp.asarray(table(h, is_by_row)[None, :, None, None], dtype)
    by_column = jnp.asarray(table(w, ~is_by_row)[None, None, :, None], dtype)
    factors = jnp.asarray(np.broadcast_to(scale, n)[None, None, None, :, None], dtype)
    # XLA compiles this once for equal blocks if operations and their order are the same in all:
    # so there is one table, and it is the left factor.
    cos, sin = jnp.split((by_row + by_column) * factors, 2, -1)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = jnp.stack([cos * even - sin * odd, sin * even + cos * odd], -1)
    return turned.reshape(x.shape).astype(x.dtype)


def normalized(norm: layers.LayerNorm, x: FeatureMap, *, outline: bool, train: bool) -> FeatureMap:
    """Normalize pixels as rows of a matrix: XLA compiles reductions to rank 3 slowly on CPU."""
    rows = x.reshape(-1, x.shape[-1])
    in_one_call = outline and not train  # else the backward pass would keep statistics per channel
    return apply_layer(norm, rows, outline=outline, in_one_call=in_one_call).reshape(x.shape)


class TokenMixer(nnx.Module):
    """Neighborhood attention, then a scan (stages 1 to 3) or global attention (stage 4).

        o = NeighborhoodAttention(R(q)/√d, R(k), v)
        y = LN(SS2D(SiLU(BN(DWConv(o))))) + o, or y = GlobalAttention(R(q)/√d, R(k), o)
        out = W_out (y + DWConv_5×5(v))

    for q, k, v = W x, and R the rotation by position (`rotate`).
    """

    def __init__(self, variant: Variant, stage: int, *, options: EncoderOptions, rngs: nnx.Rngs):
        channels, heads = variant.widths[stage], variant.heads[stage]
        dtype, kernels, side = options.dtype, options.kernels, 2 * variant.windows[stage] - 1
        init = layers.normal_init()
        self.qkv = nnx.Linear(channels, 3 * channels, kernel_init=init, dtype=dtype, rngs=rngs)
        self.lepe = _depthwise(channels, 5, options, rngs)
        self.neighborhood_bias = nnx.Param(jnp.zeros((heads, side, side)))
        self.is_global = stage == GLOBAL_STAGE
        if self.is_global:
            self.global_bias = nnx.Param(jnp.zeros((heads, TOKENS, TOKENS)))
        else:
            self.dwconv = _depthwise(channels, 3, options, rngs)
            self.dwconv_norm = layers.BatchNorm(channels, dtype=dtype)
            self.scan = SelectiveScan(
                channels, kernels=kernels, platform=options.platform, rngs=rngs
            )
            self.norm = layers.LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(channels, channels, kernel_init=init, dtype=dtype, rngs=rngs)
        self.heads, self.options = heads, options

    def __call__(self, x: FeatureMap, *, train: bool, size: MapSize | None = None) -> FeatureMap:
        n = self.heads
        heads = self.qkv(x).reshape(*x.shape[:3], 3 * n, -1)
        scale = [heads.shape[-1] ** -0.5] * n + [1.0] * n
        q, k = jnp.split(rotate(heads[..., : 2 * n, :], scale=scale), 2, axis=3)
        v = heads[..., 2 * n :, :]
        with jax.named_scope("lepe"):
            nearby = self.lepe(zero_outside(v.reshape(x.shape), size))
        with jax.named_scope("neighborhood"):
            o = self._neighborhood(q, k, v, size)
        if self.is_global:
            with jax.named_scope("global"):
                y = global_attention(
                    q, k, o, self.global_bias[...], size=size,
                    kernels=self.options.kernels, platform=self.options.platform,
                ).reshape(x.shape)  # fmt: skip
        else:
            with jax.named_scope("scan"):
                o = zero_outside(o.reshape(x.shape), size)
                tokens = layers.silu(self.dwconv_norm(self.dwconv(o), train=train))
                scanned = self.scan(tokens, size=size)
                outline = self.options.outline
                y = normalized(self.norm, scanned, outline=outline, train=train) + o
        return self.out(y + nearby)

    def _neighborhood(self, q: Heads, k: Heads, v: Heads, size: MapSize | None) -> Heads:
        bias, options = self.neighborhood_bias[...], self.options
        if options.kernels is Kernels.REFERENCE:
            return neighborhood_attention(q, k, v, bias, size=size)
        return fast_neighborhood_attention(q, k, v, bias, size=size, platform=options.platform)


def _depthwise(
    channels: int, size: int, options: EncoderOptions, rngs: nnx.Rngs
) -> layers.DepthwiseConv:
    init = layers.normal_init()
    return layers.DepthwiseConv(
        channels, size, init=init,
        kernels=options.kernels, platform=options.platform, dtype=options.dtype, rngs=rngs,
    )  # fmt: skip


class LayerScale(nnx.Module):
    """Scale and shift each channel; at first nearly to zero."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.full(channels, 1e-6, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: FeatureMap) -> FeatureMap:
        scale, bias = (
            layers.per_channel(p[...].astype(x.dtype), x.ndim) for p in (self.scale, self.bias)
        )
        return x * scale + bias


class Block(nnx.Module):
    """A block: four residual branches.

        x ← x + DWConv(x)
        x ← x + LayerScale(TokenMixer(LN(x)))
        x ← x + DWConv(x)
        x ← x + LayerScale(FFN(LN(x)))

    Only base and large have LayerScale. In training, drop path drops the second and fourth branch.
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
        self.pos1 = _depthwise(channels, 3, options, rngs)
        self.norm1 = layers.LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.mixer = TokenMixer(variant, stage, options=options, rngs=rngs)
        self.pos2 = _depthwise(channels, 3, options, rngs)
        self.norm2 = layers.LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.ffn = FeedForward(
            channels,
            int(variant.ffn_ratios[stage] * channels),
            conv=True,
            conv_init=layers.normal_init(),
            kernels=options.kernels,
            platform=options.platform,
            dtype=dtype,
            rngs=rngs,
        )
        if variant.layer_scale:
            self.scale1, self.scale2 = LayerScale(channels), LayerScale(channels)
        self.has_scale, self.drop_rate = variant.layer_scale, drop_path
        self.outline = options.outline

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

        def drop(branch: FeatureMap) -> FeatureMap:
            if train and keys is not None:
                return layers.drop_path(branch, rate, keys=keys)
            return branch

        with jax.named_scope("pos1"):
            x = apply_layer(self.pos1, zero_outside(x, size), outline=self.outline, residual=True)
        with jax.named_scope("mixer"):
            tokens = normalized(self.norm1, x, outline=self.outline, train=train)
            mixed = self.mixer(tokens, train=train, size=size)
            x = x + drop(self.scale1(mixed) if self.has_scale else mixed)
        with jax.named_scope("pos2"):
            x = apply_layer(self.pos2, zero_outside(x, size), outline=self.outline, residual=True)
        with jax.named_scope("ffn"):
            tokens = normalized(self.norm2, x, outline=self.outline, train=train)
            hidden = self.ffn(tokens, size=size)
            return x + drop(self.scale2(hidden) if self.has_scale else hidden)
