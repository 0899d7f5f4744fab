"""The zero-initialized residual decoder (SegRet, eq. 16 and 17).

Each stage's map f_i gets a linear projection and, beside it, a branch that starts at zero:

    F_i = ReLU(Linear_i(f_i) + BN(ZeroConv_i(f_i)))

The maps, resized to stride 4 and concatenated in the order F_4, F_3, F_2, F_1, are fused by a
1×1 convolution and classified. (The paper adds the zero convolution of F_i to f_i, which their
channel counts forbid; this is what the released code does.)
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
from segret_jax.models.kernels import Kernels
from segret_jax.models.layers import FeatureMap, MapSize, SampleKeys

Maps = Sequence[Float[Array, "b _h _w _c"]]  # of the four stages


class Projection(nnx.Module):
    """F_i of one stage; without the zero branch (the paper's ablation) F_i = Linear_i(f_i)."""

    def __init__(
        self, c_in: int, c_out: int, *, zero_branch: bool, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        linear = functools.partial(nnx.Linear, c_in, c_out, dtype=dtype, rngs=rngs)
        self.linear = linear(kernel_init=layers.normal_init())
        self.zero_branch, self.dtype = zero_branch, dtype
        if zero_branch:
            self.zero_conv = linear(kernel_init=nnx.initializers.zeros_init())
            self.zero_norm = layers.BatchNorm(c_out, dtype=dtype)

    def __call__(self, x: FeatureMap, *, train: bool) -> Float[Array, "b h w k"]:
        if not self.zero_branch:
            return self.linear(x)
        if train:
            return jax.nn.relu(self.linear(x) + self.zero_norm(self.zero_conv(x), train=True))
        # In evaluation both branches are one product.
        zero = self.zero_norm.fold(*layers.kernel_and_bias(self.zero_conv))
        branches = zip(layers.kernel_and_bias(self.linear), zero, strict=True)
        kernel, bias = (jnp.add(*pair).astype(self.dtype) for pair in branches)
        return jax.nn.relu(x.astype(self.dtype) @ kernel + layers.per_channel(bias, 4))


class Decoder(nnx.Module):
    """Fuse the stages' maps into class logits at the resolution of the first.

        logits = Classify(ReLU(BN(Fuse(concat(F_4↑, F_3↑, F_2↑, F_1)))))

    ↑ is bilinear resizing to the size of F_1. In training, dropout drops channels before Classify.
    """

    dropout = 0.1

    def __init__(
        self,
        widths: Sequence[int],
        channels: int,
        num_classes: int,
        *,
        zero_branch: bool,
        kernels: Kernels = Kernels.AUTO,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Initialize the weights.

        Args:
            widths: The channels of the stages' maps.
            channels: The channels of the decoder.
            num_classes: The number of classes of the logits.
            zero_branch: Whether the projections have the branch that starts at zero.
            kernels: The choice of kernels.
            dtype: The dtype of the computation; parameters are float32.
            rngs: The source of the initial weights.
        """
        self.kernels = kernels
        self.projections = nnx.List(
            Projection(width, channels, zero_branch=zero_branch, dtype=dtype, rngs=rngs)
            for width in widths
        )
        linear = functools.partial(nnx.Linear, dtype=dtype, rngs=rngs)
        kaiming = layers.normal_init(math.sqrt(2 / channels))  # for ReLU, by fan-out
        self.fuse = linear(len(widths) * channels, channels, use_bias=False, kernel_init=kaiming)
        self.fuse_norm = layers.BatchNorm(channels, dtype=dtype)
        init = layers.uniform_init(channels)
        self.classify = linear(channels, num_classes, kernel_init=init, bias_init=init)

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
            size: The true height and width of the first map, if the maps are padded.

        Returns:
            Logits of the k classes, at the size of the first map.
        """
        fused = self._fuse(maps, train=train, size=size)
        with jax.named_scope("fuse"):
            x = jax.nn.relu(self.fuse_norm(fused, train=train))
        if train and keys is not None:
            x = layers.channel_dropout(x, self.dropout, keys=keys)
        with jax.named_scope("classify"):
            logits = self.classify(x)
        return logits.astype(layers.accum_dtype(logits.dtype))

    def _fuse(self, maps: Maps, *, train: bool, size: MapSize | None) -> FeatureMap:
        """Return fuse(concat(F_4↑, F_3↑, F_2↑, F_1)) without building the concatenation.

        The fuse is linear, per pixel and without bias, so it commutes with the upsampling: each
        map is multiplied by its own rows of the kernel at its own resolution, then resized and
        summed. Same result, a quarter of the memory.
        """
        kernels = jnp.split(self.fuse.kernel[...], len(maps))  # F_4's rows first
        _, h, w, _ = maps[0].shape
        by_products = self.kernels is Kernels.REFERENCE or size is not None
        terms = []
        by_stage = zip(maps, self.projections, reversed(kernels), strict=True)
        for i, (f, project, kernel) in enumerate(by_stage, start=1):
            with jax.named_scope(f"project{i}"):
                projected = project(f, train=train)
            with jax.named_scope("fuse"):
                x = projected @ kernel.astype(projected.dtype)
                if by_products:
                    x = layers.upsample(x, (h, w), factor=2 ** (i - 1), true_size=size)
                else:
                    x = layers.resize_bilinear(x, (h, w))
                terms.append(x)
        with jax.named_scope("fuse"):
            return functools.reduce(jnp.add, terms)
