"""The decoder of SegMAN: a state-space block over three scales of the fused stages, at stride 32.

With p_i = Linear_i(c_i) of stages 2 to 4 and ↑ bilinear resizing to stride 8:

    x = Fuse(concat(p_4↑, p_3↑, p_2))
    m = concat(C_1(x), C_2(D_2(x)), C_4(D_4(x)))                  all at stride 32
    v = Block(m)                                                  SS2D and FFN, residual
    f = Out(v↑)
    logits = Classify(Cat(concat(S(x), G(mean x), v↑, p_2 + f, p_3↑ + f, p_4↑ + f)))

Each capital but Linear, Block and Classify is a convolution, batch norm and ReLU. D_2 and D_4 are
strided; C_1, C_2 and C_4 collect 4×4, 2×2 and 1×1 pixels (as PyTorch's pixel_unshuffle and a 1×1
convolution do). Stage 1 is not used. (The paper's figure differs; this is the released code.)
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from segret_jax.models import layers
from segret_jax.models.blocks import FeedForward, apply_layer, split_rows
from segret_jax.models.layers import FeatureMap, MapSize, SampleKeys, strided, zero_outside
from segret_jax.models.segman.encoder import EncoderOptions, normalized
from segret_jax.models.segman.scan_layer import SelectiveScan

Maps = Sequence[Float[Array, "b _h _w _c"]]  # of the four stages


class ConvNorm(nnx.Module):
    """A convolution without bias, batch norm and ReLU."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        size: int = 1,
        *,
        stride: int = 1,
        padding: int = 0,
        fan_out: int | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        fan_out = fan_out or c_out * size**2
        self.conv = nnx.Conv(
            c_in, c_out, (size, size), strides=stride, padding=((padding, padding),) * 2,
            use_bias=False, kernel_init=layers.normal_init(math.sqrt(2 / fan_out)),
            dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.norm = layers.BatchNorm(c_out, dtype=dtype)

    def __call__(self, x: FeatureMap, *, train: bool) -> Float[Array, "b h_ w_ k"]:
        return self.activate(self.conv(x), train=train)

    def activate(self, x: FeatureMap, *, train: bool) -> FeatureMap:
        """Apply what follows the convolution."""
        return jax.nn.relu(self.norm(x, train=train))

    @property
    def matrix(self) -> Float[Array, "c k"]:
        """The kernel of a 1×1 convolution."""
        return self.conv.kernel[0, 0].astype(self.conv.dtype)


class ScanBlock(nnx.Module):
    """A state-space block: four residual branches, DWConv, SS2D(LN), DWConv and FFN(LN)."""

    def __init__(self, channels: int, *, options: EncoderOptions, rngs: nnx.Rngs):
        dtype, kernels, platform = options.dtype, options.kernels, options.platform
        self.norm1 = layers.LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.scan = SelectiveScan(channels, kernels=kernels, platform=platform, rngs=rngs)
        self.norm2 = layers.LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.ffn = FeedForward(
            channels, 4 * channels, conv=True, uniform=True,
            kernels=kernels, platform=platform, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.pos1, self.pos2 = (
            layers.DepthwiseConv(
                channels, 3, kernels=kernels, platform=platform, dtype=dtype, rngs=rngs
            )
            for _ in range(2)
        )
        self.outline = options.outline

    def __call__(self, x: FeatureMap, *, train: bool, size: MapSize | None = None) -> FeatureMap:
        outline = self.outline
        x = apply_layer(self.pos1, zero_outside(x, size), outline=outline, residual=True)
        tokens = normalized(self.norm1, x, outline=outline, train=train)
        x = x + self.scan(tokens, size=size).astype(x.dtype)
        x = apply_layer(self.pos2, zero_outside(x, size), outline=outline, residual=True)
        return x + self.ffn(normalized(self.norm2, x, outline=outline, train=train), size=size)


class Decoder(nnx.Module):
    """Map the stages' maps to class logits at stride 8."""

    dropout = 0.1

    def __init__(
        self,
        widths: Sequence[int],
        channels: int,
        projected: int,
        num_classes: int,
        *,
        options: EncoderOptions,
        rngs: nnx.Rngs,
    ):
        """Initialize the weights.

        Args:
            widths: The channels of the four stages' maps.
            channels: The channels of the decoder.
            projected: The channels of the projected stages.
            num_classes: The number of classes of the logits.
            options: Kernels, platform and dtype.
            rngs: The source of the initial weights.
        """
        conv = functools.partial(ConvNorm, dtype=options.dtype, rngs=rngs)
        linear = functools.partial(nnx.Linear, dtype=options.dtype, rngs=rngs)
        c, f = channels, projected
        self.projections = nnx.List(
            linear(width, f, kernel_init=init, bias_init=init)
            for width in widths[1:]
            for init in (layers.uniform_init(width),)
        )
        self.fuse, self.short = conv(3 * f, c), conv(c, c)
        self.pool = conv(c, c)
        self.down2 = conv(c, 2 * c, 3, stride=2, padding=1)
        self.down4 = conv(c, 4 * c, 5, stride=4, padding=1)
        # The original's fan-out is that of its 1×1 convolution.
        self.collect1 = conv(c, c, 4, stride=4, fan_out=c)
        self.collect2 = conv(2 * c, c, 2, stride=2, fan_out=c)
        self.collect4 = conv(4 * c, c)
        self.block = ScanBlock(3 * c, options=options, rngs=rngs)
        self.out = conv(3 * c, f)
        self.concat = conv(5 * c + 3 * f, c)
        init = layers.normal_init(0.01)
        self.classify = linear(c, num_classes, kernel_init=init)
        self.widths = (c, c, 3 * c, f, f, f)  # of what `concat` takes
        self.outline = options.outline

    @jax.named_scope("decoder")
    def __call__(
        self,
        maps: Maps,
        *,
        train: bool = False,
        keys: SampleKeys | None = None,
        size: MapSize | None = None,
    ) -> Float[Array, "b h w k"]:
        """Return float32 logits.

        Args:
            maps: The stages' maps, at strides 4, 8, 16 and 32.
            train: Whether to normalize by the batch, and to update the running statistics.
            keys: The randomness of dropout in training; None: no dropout.
            size: The true height and width of the second map, if the maps are padded.

        Returns:
            Logits of the k classes, at the size of the second map.
        """
        p2, p3, p4 = (project(x) for project, x in zip(self.projections, maps[1:], strict=True))
        _, h, w, f = p2.shape
        upsample = functools.partial(layers.upsample, size=(h, w), true_size=size)
        split = functools.partial(split_rows, outline=self.outline and not train)
        # A product per pixel commutes with the resize, and is cheaper before it. So there is no
        # concatenation: each part is multiplied by its own rows of the kernel.
        with jax.named_scope("fuse"):
            to4, to3, to2 = split(self.fuse.matrix, [f] * 3)
            fused = upsample(p4 @ to4, factor=4) + upsample(p3 @ to3, factor=2) + p2 @ to2
            x = self.fuse.activate(fused, train=train)
        with jax.named_scope("block"):
            scales = self._three_scales(zero_outside(x, size), train=train)
            v = self.block(scales, train=train, size=strided(size, 4))
        with jax.named_scope("concat"):
            of_short, of_pool, of_v, of_2, of_3, of_4 = split(self.concat.matrix, self.widths)
            added = self.out.activate(upsample(v @ self.out.matrix, factor=4), train=train)  # f
            pooled = self.pool(_mean(x, size), train=train)
            x = self.short(x, train=train) @ of_short + pooled @ of_pool
            x = x + p2 @ of_2 + added @ (of_2 + of_3 + of_4)
            x = x + upsample(p3 @ of_3, factor=2) + upsample(v @ of_v + p4 @ of_4, factor=4)
            x = self.concat.activate(x, train=train)
        if train and keys is not None:
            x = layers.channel_dropout(x, self.dropout, keys=keys)
        with jax.named_scope("classify"):
            logits = self.classify(x)
        return logits.astype(layers.accum_dtype(logits.dtype))

    def _three_scales(self, x: FeatureMap, *, train: bool) -> Float[Array, "b h_ w_ _"]:
        x2, x4 = self.down2(x, train=train), self.down4(x, train=train)
        scales = (self.collect1, x), (self.collect2, x2), (self.collect4, x4)
        return jnp.concatenate([collect(t, train=train) for collect, t in scales], -1)


def _mean(x: FeatureMap, size: MapSize | None) -> Float[Array, "b 1 1 c"]:
    """Return the mean over the pixels of a map of this true size."""
    if size is None:
        return jnp.mean(x, (1, 2), keepdims=True)
    total = jnp.sum(zero_outside(x, size), (1, 2), dtype=layers.accum_dtype(x.dtype), keepdims=True)
    return (total / (size[0] * size[1])).astype(x.dtype)
